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
from deepen.parallel.config import Compute
from deepen.train.batches import IGNORED, Batch
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
    device: torch.device
    row_rate: RowRate | None = None
    """Moves the rows of new tokens faster or slower than the rest."""


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
    gradient_norm = clip_gradients(trainee.optimizer, trainee.clip)
    skipped = why_skip(float(nll_B.sum()) / max(1, num_valid), gradient_norm)
    if skipped is None:
        update(trainee, learning_rate)
    trainee.optimizer.zero_grad(set_to_none=True)
    return StepResult(nll_B, num_valid, gradient_norm, skipped)


def gradients(trainee: Trainee, batch: Batch, num_valid: int) -> npt.NDArray[np.float64]:
    """Add up the gradients of a batch, micro-batch by micro-batch; each token counts ``1 / num_valid``.

    Returns the sum of negative log-likelihoods (nats) of each row.
    """
    nll_rows: list[Tensor] = []
    num_rows, sequence_length = batch.tokens_BT.shape
    at_once = trainee.compute.rows_per_micro_batch(
        rows_per_batch=num_rows, sequence_length=sequence_length, device=trainee.device.type
    )
    for begin in range(0, num_rows, at_once):
        rows = slice(begin, begin + at_once)
        tokens_BT, labels_BT, positions_BT = (
            torch.from_numpy(values[rows]).to(trainee.device, non_blocking=True)
            for values in (batch.tokens_BT, batch.labels_BT, batch.positions_BT)
        )
        with torch.autocast(trainee.device.type, torch.bfloat16, enabled=trainee.precision == "bf16"):
            total, nll_BT = trainee.model(tokens_BT, labels_BT, positions_BT)
        (total / max(1, num_valid)).backward()
        nll_rows.append(nll_BT.sum(1, dtype=torch.float64))
    return torch.cat(nll_rows).cpu().numpy()


def update(trainee: Trainee, learning_rate: float) -> None:
    """Let the optimizer move what the gradients say."""
    set_learning_rate(trainee.optimizer, learning_rate)
    before = trainee.row_rate.rows() if trainee.row_rate is not None else []
    trainee.optimizer.step()
    if trainee.row_rate is not None:
        trainee.row_rate.scale(before)
