"""One update: forward and backward over micro-batches, clip, check, optimizer.

``gradients`` is the only place where a batch is cut into micro-batches; ``train_step`` is all that a step does to the
model. Nothing here knows of runs, files or schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import AdamW

from deepen.model.loss import LossModel
from deepen.parallel.apply import SpreadModel
from deepen.parallel.config import Compute
from deepen.parallel.gradients import clip_spread
from deepen.parallel.process import Process
from deepen.parallel.rows import agree, collect, rows_of, take
from deepen.train.batches import IGNORED, PADDING_TOKEN, Batch
from deepen.train.groups import RowRate
from deepen.train.optimizer import clip_gradients, set_learning_rate
from deepen.train.spikes import not_finite


@dataclass(frozen=True)
class Trainee:
    """What an update changes, and how."""

    model: LossModel
    optimizer: AdamW
    clip: float
    compute: Compute
    """How many rows are computed at once."""
    precision: str
    process: Process
    """Where it computes, and with whom."""
    row_rate: RowRate | None = None
    """Moves the rows of new tokens faster or slower than the rest."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.process.device


@dataclass(frozen=True)
class StepResult:
    """What an update did."""

    nll_B: npt.NDArray[np.float64]
    """Sum of negative log-likelihoods (nats) of each row."""
    loss_tokens: int
    gradient_norm: float
    skipped: str | None
    """Why nothing was changed: loss or gradient was not finite, or far above what recent steps had."""

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats per token."""
        return float(self.nll_B.sum()) / max(1, self.loss_tokens)


def train_step(
    trainee: Trainee, batch: Batch, learning_rate: float, why_skip: Callable[[float, float], str | None] = not_finite
) -> StepResult:
    """One update on one batch: the mean loss over *its* valid tokens, however many micro-batches it takes.

    Nothing is changed when ``why_skip(loss, gradient norm)`` gives a reason.
    """
    num_valid = int((batch.labels_BT != IGNORED).sum())
    nll_B = gradients(trainee, batch, num_valid)
    gradient_norm = _clip(trainee)
    skipped = why_skip(float(nll_B.sum()) / max(1, num_valid), gradient_norm)
    if skipped is None:
        update(trainee, learning_rate)
    trainee.optimizer.zero_grad(set_to_none=True)
    return StepResult(nll_B, num_valid, gradient_norm, skipped)


def gradients(trainee: Trainee, batch: Batch, num_valid: int) -> npt.NDArray[np.float64]:
    """Add up the gradients of a batch, micro-batch by micro-batch; each token counts ``1 / num_valid``.

    Each data-parallel process computes its share of the rows; gradients are those of the whole batch afterwards.
    Returns the sum of negative log-likelihoods (nats) of each row of the batch, the same on every process.
    """
    model, process = trainee.model, trainee.process
    num_rows, sequence_length = batch.tokens_BT.shape
    mine = rows_of(num_rows, process)
    at_once = trainee.compute.rows_per_micro_batch(
        rows_per_batch=len(mine), sequence_length=sequence_length, device=process.device.type
    )
    nll_rows: list[Tensor] = []
    for begin in range(0, len(mine), at_once):
        inputs = _inputs(batch, mine[begin : begin + at_once], process.device)
        if isinstance(model, SpreadModel):
            model.before_backward(is_last=begin + at_once >= len(mine))
        with torch.autocast(process.device.type, torch.bfloat16, enabled=_autocasts(trainee)):
            total, nll_BT = model(*inputs)
        (total / max(1, num_valid)).backward()
        nll_rows.append(nll_BT.sum(1, dtype=torch.float64))
    if isinstance(model, SpreadModel):
        model.finish_gradients()
    nll_B = collect(torch.cat(nll_rows), num_rows, process)
    return agree(nll_B, process).cpu().numpy()


def _inputs(batch: Batch, rows: npt.NDArray[np.int64], device: torch.device) -> tuple[Tensor, ...]:
    """Tokens, labels and positions of some rows; a row that is none has no label and counts for nothing."""
    arrays = ((batch.tokens_BT, PADDING_TOKEN), (batch.labels_BT, IGNORED), (batch.positions_BT, 0))
    return tuple(take(values, rows, padding).to(device, non_blocking=True) for values, padding in arrays)


def _autocasts(trainee: Trainee) -> bool:
    """Whether products are made bf16 as they come; FSDP gathers weights in bf16 instead."""
    return trainee.precision == "bf16" and not trainee.process.is_sharded


def _clip(trainee: Trainee) -> float:
    """Clip the gradients of the model, whatever its layout; returns the norm before."""
    if trainee.process.mesh is None:
        return clip_gradients(trainee.optimizer, trainee.clip)
    parameters = (parameter for group in trainee.optimizer.param_groups for parameter in group["params"])
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return clip_spread(gradients, trainee.clip, trainee.process)


def update(trainee: Trainee, learning_rate: float) -> None:
    """Let the optimizer move what the gradients say."""
    set_learning_rate(trainee.optimizer, learning_rate)
    before = trainee.row_rate.rows() if trainee.row_rate is not None else []
    trainee.optimizer.step()
    if trainee.row_rate is not None:
        trainee.row_rate.scale(before)
