"""Which weights a run trains: all of them, or low-rank adapters beside a frozen base.

A method is a plug: it says what adapters a model gets, and what of the other settings it cannot go with. Everything
else (loss, schedule, checkpoints, resuming) is the same loop.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from deepen.formats.training.adapters import ALL_LINEAR, Adapters
from deepen.plug import Plug
from deepen.settings import Many

TrainTable = Literal["auto"] | bool


@dataclass(frozen=True)
class Start:
    """What a method must know of the model that training starts from."""

    tables: tuple[str, ...]
    """Its tables with a row per token: ``input``, and ``output`` and ``output_bias`` where the head has its own."""
    grew: bool
    """Whether the run's vocabulary has tokens that the base did not know."""
    base: str
    """Fingerprint of the base."""


@dataclass(frozen=True)
class Plans:
    """What a method must know of the recipe before anything is there."""

    random_base: bool = False
    grows: bool = False
    """Whether the vocabulary is to grow."""
    freezes: bool = False
    """Whether ``train.freeze`` names weights."""


class Method(Plug):
    """A choice of weights to train: ``adapters`` says which low-rank matrices stand in for the frozen ones."""

    @abstractmethod
    def adapters(self, start: Start) -> Adapters | None:
        """The adapters of a run from ``start``; None: all weights are trained."""

    def problems(self, plans: Plans) -> Iterator[tuple[str, str, str]]:
        """What cannot work: key below ``train``, message, remedy."""
        return iter(())


class Full(Method):
    """All weights (but those of ``train.freeze``): what learns most, and what every comparison is made against."""

    use: Literal["full"] = "full"

    def adapters(self, start: Start) -> Adapters | None:
        """See ``Method.adapters``: none."""
        return None


class Lora(Method):
    """Low-rank adapters beside frozen linear layers (Hu et al., arXiv 2106.09685), through the package ``peft``.

    Learns less and forgets less than ``full`` (Biderman et al., arXiv 2405.09673: continued pretraining on 20B tokens
    of code gave HumanEval 0.224 at rank 256 against 0.263; general benchmarks fell less), in a fraction of the memory.
    It wants about ten times the learning rate of ``full``: 1e-4 to 2e-4 there, tuned for every rank.
    """

    use: Literal["lora"] = "lora"
    rank: int = Field(default=64, ge=1)
    """Rank of the adapters. 64 to 256 is for continued pretraining, where arXiv 2405.09673 still gained at 256 and 16
    fell far behind; 64 is the cheapest of these (our choice)."""
    alpha: float | None = Field(default=None, gt=0)
    """The adapters' product counts ``alpha / rank`` times. None: twice the rank, a factor of 2 (arXiv 2405.09673); with
    ``rank_stabilized`` 16, which gives the same factor at rank 64 (our choice)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapters' inputs zeroed in training. 0 to 0.05 is usual; 0 is our choice, since data that is seen
    once needs no regularising."""
    targets: Annotated[
        Annotated[Literal["all_linear"], Tag("all")] | Annotated[Many[str], Field(min_length=1), Tag("patterns")],
        Discriminator(lambda value: "all" if isinstance(value, str) else "patterns"),  # a mistake is reported once
    ] = "all_linear"
    """Which linear layers have adapters: all but the head (arXiv 2405.09673: attention alone learns less), or patterns
    of their names or last parts, such as ``[q_proj, v_proj]`` or ``["model.layers.1?.mlp.*"]``."""
    rank_stabilized: bool = False
    """Divide alpha by the root of the rank instead of the rank, so that high ranks learn as fast as low ones (rsLoRA,
    Kalajdzievski, arXiv 2312.03732)."""
    dora: bool = False
    """Learn the lengths of the weights' rows apart from their directions (DoRA, Liu et al., arXiv 2402.09353); each
    step costs more, nearer to ``full`` at low ranks."""
    train_embeddings: TrainTable = "auto"
    """Train the input embedding whole. ``auto``: when the vocabulary grew, since the rows of new
    tokens would else stay guesses (Chinese-LLaMA, arXiv 2304.08177, trained both tables whole)."""
    train_head: TrainTable = "auto"
    """Train the output head whole; ``auto`` as above. A tied head is the embedding: it is trained if either says so."""

    def adapters(self, start: Start) -> Adapters:
        """See ``Method.adapters``."""
        embeddings, head = (start.grew if one == "auto" else one for one in (self.train_embeddings, self.train_head))
        if "output" not in start.tables:  # tied
            # Of the same table `auto` gives one answer for both: only a head that is asked for adds to it.
            embeddings = embeddings or (head and self.train_head is True)
        wanted = {"input": embeddings, "output": head, "output_bias": head}
        tables = [name for name in start.tables if wanted[name]]
        return Adapters(
            rank=self.rank,
            alpha=self.alpha if self.alpha is not None else 16.0 if self.rank_stabilized else 2.0 * self.rank,
            dropout=self.dropout,
            targets=(ALL_LINEAR,) if isinstance(self.targets, str) else self.targets,
            rank_stabilized=self.rank_stabilized,
            dora=self.dora,
            tables=tuple(tables),
            base=start.base,
        )

    def problems(self, plans: Plans) -> Iterator[tuple[str, str, str]]:
        """See ``Method.problems``."""
        if find_spec("peft") is None:
            yield "method", "adapters need the package `peft`, which is not installed", "pip install 'deepen[lora]'"
        if plans.random_base:
            yield "method", "a random network has nothing to freeze", "set `full`, or name a pretrained base"
        if plans.freezes:
            message = "all weights of the base are frozen already"
            yield "freeze", message, "take it out; `train.method.targets` says which layers have adapters"
        for name in ("train_embeddings", "train_head"):
            if plans.grows and getattr(self, name) is False:
                message = "the rows of new tokens would stay the guesses that they start as"
                yield f"method.{name}", message, "leave it at `auto`, or keep the vocabulary"


METHODS: dict[str, type[Method]] = {"full": Full, "lora": Lora}
