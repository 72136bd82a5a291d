"""Settings of evaluation: which probes measure a model, how often, and how much forgetting is allowed.

A probe turns the held-out material into a measuring function once (``prepare``); that function is then called for the
base and for every checkpoint. Probes that need torch import it inside their method, so reading a recipe stays light.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from deepen.errors import Problem
from deepen.plug import Plug, plug_from
from deepen.settings import Amount, Count, Interval, IntervalSetting, Many, Settings, Share

if TYPE_CHECKING:
    import pyarrow as pa

    from deepen.evaluate.material import Material
    from deepen.model.loss import LossModel

    Measure = Callable[[LossModel, str | None], pa.Table]


class Probe(Plug):
    """Base of all probes."""

    @abstractmethod
    def prepare(self, material: Material) -> Measure:
        """Encode the material once.

        The returned function takes a model and a title for the progress display (None: show nothing) and returns a
        table of ``likelihoods.SCHEMA`` with one row for every held-out document.
        """

    @abstractmethod
    def subset(self, material: Material, baseline: pa.Table) -> frozenset[str]:
        """Ids of the documents that are measured during training; ``baseline`` is the base's table of this probe."""


class HeldOut(Probe):
    """Bits per byte of the held-out documents of every source."""

    use: Literal["held_out"] = "held_out"
    context: Annotated[Count, Field(ge=2)] = 2048
    """Tokens of context at most, fewer when the model has fewer positions; longer documents are read in overlapping
    windows. The same number for base and checkpoints, so that differences come from the weights alone."""
    stride: Annotated[Share, Field(gt=0)] = 0.5
    """Step from window to window as a share of the context. At one half every token has at least half a context before
    it (once the document has that much), at twice the cost of no overlap."""
    in_loop_tokens: Annotated[Count, Field(ge=1)] = 50_000
    """Scored tokens per source during training, chosen once by smallest content hash; full evaluation uses all."""

    def prepare(self, material: Material) -> Measure:
        """Encode the held-out documents; see ``Probe.prepare``."""
        from deepen.evaluate.held_out import prepare

        return prepare(material, context=self.context, stride=self.stride)

    def subset(self, material: Material, baseline: pa.Table) -> frozenset[str]:
        """Documents with the smallest content hashes, per source until ``in_loop_tokens`` is reached."""
        from deepen.evaluate.material import smallest_hashes

        return smallest_hashes(material, baseline, tokens_per_source=self.in_loop_tokens)


PROBES: dict[str, type[Probe]] = {"held_out": HeldOut}


class Forgetting(Settings):
    """How much of the kept ability may be lost."""

    budget: Share = 0.03
    """Largest allowed relative rise of the kept sources' bits per byte. 3 % is deepen's own default: far above the
    noise of a few hundred held-out documents, below what users of the model notice first. Answers in the literature
    range from none to much more, so state your own."""


ProbeSetting = Annotated[Probe, plug_from(PROBES)]


class BaselineConfig(Settings):
    """The part of the evaluation that the untouched base's likelihoods depend on."""

    probes: Many[ProbeSetting] = (HeldOut(),)
    """As in `evaluate.probes`."""


class EvaluateConfig(Settings):
    """What is measured against the untouched base."""

    every: IntervalSetting = Interval((Amount(0.05, "share"),))
    """How often the subset is scored during training: 5 % of the run gives a curve of twenty points."""
    probes: Annotated[Many[ProbeSetting], Field(min_length=1)] = (HeldOut(),)
    """What is measured."""
    forgetting: Forgetting = Forgetting()
    """The budget of the kept ability."""

    @property
    def baseline(self) -> BaselineConfig:
        """What the baseline depends on: its fingerprint must not change with the budget or the interval."""
        return BaselineConfig(probes=self.probes)


def problems(config: EvaluateConfig, *, total_steps: int, tokens_per_step: int) -> list[Problem]:
    """What cannot work in a run of ``total_steps``: an interval that never fires, a probe named twice."""
    found = []
    every = config.every.every_steps(total_steps=total_steps, tokens_per_step=tokens_per_step)
    if every is not None and every > total_steps and config.every.every_seconds is None:
        remedy = "use a shorter interval, for example `5%`"
        message = f"never fires: the run has {total_steps} steps"
        found.append(Problem("evaluate.every", message, remedy, str(config.every)))
    names = [probe.use for probe in config.probes]
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append(Problem("evaluate.probes", "the probe is listed twice", "keep one of them", name))
    return found
