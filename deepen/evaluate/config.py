"""Settings of evaluation: which probes measure a model, how often, and how much forgetting is allowed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from deepen.errors import Problem
from deepen.evaluate.forgetting.config import Forgetting
from deepen.evaluate.models import blends
from deepen.evaluate.models.blends import Blends
from deepen.evaluate.probes.answers import ExactAnswer, Facts
from deepen.evaluate.probes.choices import Cloze, MultipleChoice
from deepen.evaluate.probes.generated import PANELS, Arithmetic, Instructions
from deepen.evaluate.probes.harness import LmEval
from deepen.evaluate.probes.held_out import HeldOut
from deepen.evaluate.probes.probe import Probe
from deepen.evaluate.probes.samples import Samples
from deepen.plug import plug_from
from deepen.settings import Amount, AmountSetting, Interval, IntervalSetting, Many, Settings, Share

HELD_OUT = "held_out"
"""The probe that the forgetting budget, selection, diagnosis and report are about."""

PROBES: dict[str, type[Probe]] = {
    HELD_OUT: HeldOut,
    "multiple_choice": MultipleChoice,
    "cloze": Cloze,
    "exact_answer": ExactAnswer,
    "facts": Facts,
    "lm_eval": LmEval,
    "samples": Samples,
    "arithmetic": Arithmetic,
    "instructions": Instructions,
}


ProbeSetting = Annotated[Probe, plug_from(PROBES)]


class BaselineConfig(Settings):
    """The part of the evaluation that the untouched base's likelihoods depend on."""

    probes: Many[ProbeSetting] = (HeldOut(),)
    """As in `evaluate.probes`."""


class EvaluateConfig(Settings):
    """What is measured against the untouched base."""

    every: IntervalSetting = Interval((Amount(0.05, "share"),))
    """How often the subset is scored during training: 5 % of the run gives a curve of twenty points."""
    probes: Many[ProbeSetting] = (HeldOut(),)
    """What is measured: one at least."""
    panel: Literal["none", "offline", "default"] = "none"
    """More probes by one word, of what must be kept: `offline` is `arithmetic` and `instructions`; `default` adds MMLU
    (5 examples, 1,000 items over all subjects), HellaSwag (1,000 items) and ARC challenge, which need the extra
    `lm-eval` and data from the hub. The bits per byte of kept text come from `held_out`."""
    full_every: AmountSetting | None = None
    """How often everything is measured during training instead of the subset, such as `25%`, and at the end: what is
    found there is not measured again afterwards. Scores of the curve, and what acts on them, stay those of the subset.
    Not given: everything is measured after training only."""
    overhead: Annotated[Share, Field(gt=0)] | None = None
    """Share of training time that measuring during training may take, such as `3%`: subsets are made smaller, once, at
    the first measurement, and stay so. Not given: the subsets have the sizes that the probes say."""
    lag: AmountSetting | None = None
    """Another process, `deepen evaluate RUN --watch`, scores the checkpoints in full, and what it found is acted on so
    much later, such as `20 steps` or `2%`: exactly then, whichever is faster. Not given: training stands still and
    scores a subset by itself."""
    wait: AmountSetting = Amount(7200, "seconds")
    """How long training waits for scores that `lag` says should be there, before it saves and ends with an error.
    Changes no result. Our choice."""
    forgetting: Forgetting = Forgetting()
    """The budget of the kept ability."""
    blends: Blends = Blends()
    """Averages and interpolations that are scored and can be chosen: none, since each costs a full evaluation."""
    contamination_scan: bool = True
    """Look in the trained documents for the items of probes that curation did not keep out, and show scores with and
    without those that are found."""

    @property
    def all_probes(self) -> tuple[Probe, ...]:
        """The probes that are listed, and those of the panel."""
        return (*self.probes, *PANELS[self.panel])

    @property
    def late_probes(self) -> tuple[Probe, ...]:
        """The probes that are not measured during training."""
        return tuple(probe for probe in self.all_probes if not probe.in_loop)

    @property
    def in_loop(self) -> EvaluateConfig:
        """The settings as training knows them: without what only comes after it."""
        probes = tuple(probe for probe in self.probes if probe.in_loop)
        # Defaults leave no trace in a fingerprint: what only comes after training must not make it another one.
        return self.model_copy(update={"probes": probes, "contamination_scan": True, "blends": Blends()})

    @property
    def baseline(self) -> BaselineConfig:
        """What the baseline depends on: its fingerprint must not change with the budget or the interval."""
        return BaselineConfig(probes=self.all_probes)


def problems(config: EvaluateConfig, *, total_steps: int, tokens_per_step: int) -> list[Problem]:
    """What cannot work in a run of ``total_steps``: an interval that never fires, names given twice, missing files."""
    found = []
    if any(amount.value <= 0 for amount in config.every.amounts):
        remedy = "use an interval such as `5%`; `100%` measures once, at the end"
        found.append(Problem("evaluate.every", "must be more than nothing", remedy, str(config.every)))
    every = config.every.every_steps(total_steps=total_steps, tokens_per_step=tokens_per_step)
    if every is not None and every > total_steps and config.every.every_seconds is None:
        remedy = "use a shorter interval, for example `5%`"
        message = f"never fires: the run has {total_steps} steps"
        found.append(Problem("evaluate.every", message, remedy, str(config.every)))
    found += _full_problems(config, total_steps, tokens_per_step)
    found += _lag_problems(config, total_steps, tokens_per_step)
    times = Counter(probe.label for probe in config.all_probes)
    for label in sorted(label for label, count in times.items() if count > 1):
        message = "two probes have the same name"
        found.append(Problem("evaluate.probes", message, "keep one of them, or give one a `name`", label))
    found += [*_held_out_problems(config), *blends.problems(config.blends)]
    if not config.probes:
        found.append(Problem("evaluate.probes", "is empty", "add `held_out`"))
    elif not config.in_loop.all_probes:
        message = "none is measured during training, which would be blind: all have `in_loop: false`"
        found.append(Problem("evaluate.probes", message, "add `held_out`"))
    for index, probe in enumerate(config.probes):
        found += probe.problems(f"evaluate.probes[{index}]")
    found += [problem for probe in PANELS[config.panel] for problem in probe.problems("evaluate.panel")][:1]
    return found


def _full_problems(config: EvaluateConfig, total_steps: int, tokens_per_step: int) -> Iterator[Problem]:
    if config.full_every is None:
        return
    place, value = "evaluate.full_every", str(config.full_every)
    if config.lag is not None:
        message = "with `evaluate.lag` another process measures everything, each time"
        yield Problem(place, message, "take one of the two out", value)
    if config.full_every.unit == "seconds":
        message = "a time is another number of steps on every machine"
        yield Problem(place, message, "give steps, tokens or a share, for example `25%`", value)
        return
    steps = config.full_every.in_steps(total_steps=total_steps, tokens_per_step=tokens_per_step)
    if not 1 <= steps <= total_steps:
        yield Problem(place, f"is {steps} steps: the run has {total_steps}", "use for example `25%`", value)
    if config.every.every_steps(total_steps=total_steps, tokens_per_step=tokens_per_step) is None:
        message = "with `evaluate.full_every` models are scored at fixed steps"
        yield Problem("evaluate.every", message, "give a share, steps or tokens", str(config.every))


def _held_out_problems(config: EvaluateConfig) -> Iterator[Problem]:
    """The budget, selection and diagnosis read the scores called `held_out`: under another name nothing would be held
    against the budget, and under this name nothing else may stand."""
    texts = [probe for probe in config.probes if isinstance(probe, HeldOut)]
    for index, probe in enumerate(config.probes):
        place, is_text = f"evaluate.probes[{index}].name", isinstance(probe, HeldOut)
        if probe.label == HELD_OUT and not is_text:
            yield Problem(place, "is the name of the held-out text, which the budget is about", "another", HELD_OUT)
        elif is_text and len(texts) == 1 and probe.label != HELD_OUT:
            message = "the budget, selection and report look for the held-out text under the name `held_out`"
            yield Problem(place, message, "leave the name out", probe.label)
    if len(texts) > 1 and HELD_OUT not in [probe.label for probe in texts]:
        message = "several probes of held-out text, and none that the budget, selection and report look at"
        yield Problem("evaluate.probes", message, "leave the `name` of that one out")


def _lag_problems(config: EvaluateConfig, total_steps: int, tokens_per_step: int) -> Iterator[Problem]:
    if config.wait.unit != "seconds" or config.wait.value <= 0:
        yield Problem("evaluate.wait", "must be a time", "for example `2h`", str(config.wait))
    if config.lag is None:
        return
    place, value = "evaluate.lag", str(config.lag)
    if config.lag.unit == "seconds":
        message = "a time is another number of steps on every machine, and so would the results be"
        yield Problem(place, message, "give steps, tokens or a share, for example `2%`", value)
        return
    steps = config.lag.in_steps(total_steps=total_steps, tokens_per_step=tokens_per_step)
    if steps < 1:
        yield Problem(place, f"is less than a step: the run has {total_steps}", "give `1 steps` or more", value)
    elif steps >= total_steps:
        message = f"no scores would ever be acted on: it is {steps} steps, and the run has {total_steps}"
        yield Problem(place, message, "make it shorter", value)
    if config.every.every_steps(total_steps=total_steps, tokens_per_step=tokens_per_step) is None:
        message = "with `evaluate.lag` models are scored at fixed steps"
        yield Problem("evaluate.every", message, "give a share, steps or tokens", str(config.every))
    if config.overhead is not None:
        message = "with `evaluate.lag` another process measures, and training spends no time on it"
        yield Problem("evaluate.overhead", message, "take one of the two out", f"{config.overhead:g}")
