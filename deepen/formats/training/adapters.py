"""Adapters of a checkpoint: what low-rank matrices were trained beside a frozen base, as ``state.json`` says it.

A checkpoint of such a run holds the adapters and the tables that were trained whole, and nothing of the base; this
record is what it takes to put them back where they belong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from deepen.errors import DamageError
from deepen.formats.training.checkpoints import CheckpointInfo, read_state
from deepen.settings import Many, Settings

ADAPTERS = "adapters"
"""Name of the record in ``state.json``; a run that trains all weights has none."""
ALL_LINEAR = "all_linear"
"""Target that stands for every linear layer but the output head."""


class Adapters(Settings):
    """Low-rank adapters (LoRA, arXiv 2106.09685): W + factor * B A, with W frozen, A random and B zero at first."""

    rank: int
    """Rows of A and columns of B."""
    alpha: float
    """The factor is ``alpha / rank``, or ``alpha / sqrt(rank)`` when it is rank-stabilized."""
    dropout: float = 0.0
    """Share of the adapter's inputs that is zeroed in training."""
    targets: Many[str] = (ALL_LINEAR,)
    """Patterns of the names of the layers that have adapters."""
    rank_stabilized: bool = False
    """Divide by the root of the rank (rsLoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Learn the lengths of the weights' rows apart from their directions (DoRA, arXiv 2402.09353)."""
    tables: Many[str] = ()
    """Tables that are trained whole: ``input``, ``output``, ``output_bias``."""
    base: str
    """Fingerprint of the frozen base."""

    @property
    def factor(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    @property
    def title(self) -> str:
        """A phrase for people: ``LoRA of rank 64, alpha 128, embeddings trained whole``."""
        name = ("rank-stabilized " if self.rank_stabilized else "") + ("DoRA" if self.dora else "LoRA")
        tables = [word for table, word in (("input", "embedding"), ("output", "head")) if table in self.tables]
        whole = f", {' and '.join(tables)} trained whole" if tables else ""
        return f"{name} of rank {self.rank}, alpha {self.alpha:g}{whole}"


def adapters_from(state: Mapping[str, Any]) -> Adapters | None:
    """The record in the contents of a ``state.json``; None when all weights were trained."""
    record = state.get(ADAPTERS)
    return None if record is None else Adapters.model_validate(record, strict=False)


def read_adapters(info: CheckpointInfo) -> Adapters | None:
    """The adapters of a checkpoint, None when it holds whole weights; raises ``DamageError`` for what is neither."""
    try:
        return adapters_from(read_state(info))
    except ValidationError as error:
        raise DamageError(
            f"`{info.path}` has adapters that this version of deepen does not know: {error}",
            hint="use the version that trained it",
        ) from error
