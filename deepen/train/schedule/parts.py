"""What moves how fast: parts of the model that are frozen, or learn at a multiple of the schedule's rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deepen.errors import TrainingError
from deepen.model.token_tables import rows_here, token_tables


def freeze(model: PreTrainedModel, patterns: Sequence[str]) -> int:
    """Freeze the parameters whose names match a pattern (``model.layers.[0-3].*``); returns how many numbers they hold.

    A head tied to the embedding has the embedding's name. Raises ``TrainingError`` when a pattern matches nothing, or
    nothing is left to train.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            examples = ", ".join(list(named)[:3])
            raise TrainingError(
                f"`train.freeze`: no parameter of the model matches `{pattern}`",
                hint=f"its names are like {examples}; * stands for anything",
            )
    frozen = [value for name, value in named.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]
    for parameter in frozen:
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("`train.freeze` freezes everything", hint="leave out a pattern")
    return sum(parameter.numel() for parameter in frozen)


def rate_multiples(model: PreTrainedModel, *, embeddings: float, head: float) -> dict[int, float]:
    """Multiples of the schedule's rate by ``id`` of the parameter; a tied head is the embedding."""
    tables = token_tables(model)
    multiples = {id(tables["input"]): embeddings}
    for name in ("output", "output_bias"):
        if name in tables:
            multiples[id(tables[name])] = head
    return multiples


@dataclass(frozen=True)
class RowRate:
    """Lets the rows of new tokens move ``multiple`` times as far as the optimizer would move them.

    AdamW divides by the size of a gradient, so scaling the gradient of some rows would change nothing; what an update
    did to them is scaled instead.
    """

    tables: Sequence[nn.Parameter]
    ids: Tensor
    """int64[k]"""
    multiple: float

    @torch.no_grad()
    def rows(self) -> list[Tensor]:
        """The rows as they are, to be given to ``scale``."""
        return [table[ids].clone() for table, ids in self._here()]

    @torch.no_grad()
    def scale(self, before: Sequence[Tensor]) -> None:
        """Stretch what moved the rows since ``before``."""
        for (table, ids), rows in zip(self._here(), before, strict=True):
            table[ids] = torch.lerp(rows, table[ids], self.multiple)

    def _here(self) -> list[tuple[Tensor, Tensor]]:
        return [rows_here(table, self.ids.to(table.device)) for table in self.tables]
