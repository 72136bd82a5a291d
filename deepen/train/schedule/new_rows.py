"""New rows first: at the beginning of a run only the rows of new tokens move, then everything.

New rows start as guesses; their large gradients would otherwise pull at weights that are right already. While they are
held, every other number of the model stays bit-identical: gradients of other rows are zeroed before the optimizer sees
them, there is no weight decay, and AdamW leaves a number alone whose moments are zero. Afterwards the optimizer begins
anew over all parameters and the learning rate is warmed up once more, since their moments know nothing yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from deepen.model.token_tables import rows_here, token_tables
from deepen.train.schedule.schedules import Shape


class RowHold:
    """While it holds a model, nothing of it can move but the rows of the tokens ``ids`` in its tables."""

    def __init__(self, model: PreTrainedModel, ids: Tensor, everything: AdamW) -> None:
        """``everything`` is the unused optimizer over all parameters, for the time after; its settings are used."""
        tables = token_tables(model)
        in_tables = {id(table) for table in tables.values()}
        whole = [table for table in tables.values() if not isinstance(table, DTensor)]
        self._sharded = [table for table in tables.values() if isinstance(table, DTensor)]
        self._ids = ids
        # FSDP computes the gradients of all weights of a unit once it has begun to: there the optimizer alone decides.
        self._frozen = [
            parameter
            for parameter in model.parameters()
            if parameter.requires_grad and id(parameter) not in in_tables and not self._sharded
        ]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        # A hook on a weight sees each gradient before it is added up, so the rest of the table never has any.
        self._hooks = [_keep_rows(table, ids.to(table.device)) for table in whole]
        settings = everything.defaults
        # Without decay, which would move every row, also those without a gradient.
        self.optimizer = AdamW(
            tables.values(), lr=0.0, betas=settings["betas"], eps=settings["eps"], weight_decay=0.0, fused=True
        )
        self._everything = everything

    @torch.no_grad()
    def keep_rows(self) -> None:
        """Zero the gradients of other rows of sharded tables, which no hook is told of; before they are clipped."""
        for table in self._sharded:
            if table.grad is not None:
                gradient, ids = rows_here(table.grad, self._ids.to(table.grad.device))
                others = torch.ones(len(gradient), *[1] * (gradient.ndim - 1), dtype=torch.bool, device=gradient.device)
                others[ids] = False
                gradient.masked_fill_(others, 0.0)

    def release(self) -> AdamW:
        """Let everything move again; returns the optimizer over all parameters."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        for hook in self._hooks:
            hook.remove()
        return self._everything


def _keep_rows(table: nn.Parameter, ids: Tensor) -> RemovableHandle:
    """Zero the gradient of all rows of ``table`` but ``ids``, whenever it is computed."""
    others = torch.ones(len(table), *[1] * (table.ndim - 1), dtype=torch.bool, device=ids.device)
    others[ids] = False

    def keep(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(others, 0.0)

    handle: RemovableHandle = table.register_hook(keep)  # type: ignore[no-untyped-call]
    return handle


@dataclass(frozen=True)
class NewRowsFirst:
    """How a run begins when new rows go first."""

    steps: int
    """Steps in which only new rows move; 0: everything moves from the start."""
    multiple: float
    """Their learning rate as a multiple of the schedule's."""
    hold: RowHold | None = None
    """What holds the model; None when that time is over."""

    def factor(self, step: int, shape: Shape) -> float:
        """What the schedule's rate of ``step`` (from 0) is multiplied by: ``multiple`` at first, then a second warm-up
        as long as the first one, then 1."""
        if step < self.steps:
            return self.multiple
        if self.steps == 0 or shape.warmup_steps == 0:
            return 1.0
        return min(1.0, (step - self.steps + 1) / shape.warmup_steps)
