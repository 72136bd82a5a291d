"""One update: forward and backward over micro-batches, clip, check, optimizer.

``gradients`` is the only place where a batch is cut into micro-batches; ``train_step`` is all that a step does to the
model. Nothing here knows of runs, files or schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import AdamW

from deepen.model.compute.precision import bf16_copies
from deepen.model.loss.closeness import nats_of_rows
from deepen.model.loss.model import LossModel
from deepen.parallel.axes.pipeline import PipelinedModel
from deepen.parallel.axes.rows import NO_ROW, agree, collect, rows_of, take
from deepen.parallel.config import Compute
from deepen.parallel.process import Process
from deepen.parallel.shards.gradients import clip_spread
from deepen.parallel.spread import SpreadModel
from deepen.train.batches.read import IGNORED, PADDING_TOKEN, Batch
from deepen.train.faults.spikes import not_finite
from deepen.train.retention.penalties import Penalties
from deepen.train.schedule.new_rows import RowHold
from deepen.train.schedule.optimizer import clip_gradients, set_learning_rate
from deepen.train.schedule.parts import RowRate


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
    hold: RowHold | None = None
    """While it is there, only the rows of new tokens move."""
    penalties: Penalties | None = None
    """What holds the model near its base."""

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
    penalties: dict[str, float] = field(default_factory=dict)
    """What each penalty added to the objective (nats per token), before the update; no part of the loss."""

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
    # Of the whole batch, before it is cut and dealt out: each micro-batch's loss is then a part of one mean.
    num_valid = int((batch.labels_BT != IGNORED).sum())
    nll_B, divergence = gradients(trainee, batch, num_valid)
    if trainee.hold is not None:
        # Before penalties and clipping, so that rows that are held count neither in the update nor in the norm.
        trainee.hold.keep_rows()
    penalties = _penalize(trainee, divergence / max(1, num_valid))
    gradient_norm = _clip(trainee)
    # Told by the norm before clipping. That gradients are clipped by now is no harm: a skipped step drops them.
    skipped = why_skip(float(nll_B.sum()) / max(1, num_valid), gradient_norm)
    if skipped is None:
        update(trainee, learning_rate)
    if trainee.hold is None:
        # None and not zeros: the next step's activations get this memory.
        trainee.optimizer.zero_grad(set_to_none=True)
    else:  # also of what the optimizer does not move
        trainee.model.zero_grad(set_to_none=True)
    return StepResult(nll_B, num_valid, gradient_norm, skipped, penalties)


def gradients(trainee: Trainee, batch: Batch, num_valid: int) -> tuple[npt.NDArray[np.float64], float]:
    """Add up the gradients of a batch, micro-batch by micro-batch; each token counts ``1 / num_valid``.

    Each data-parallel process computes its share of the rows; gradients are those of the whole batch afterwards.
    Returns the sum of negative log-likelihoods (nats) of each row of the batch, and the divergence from the base of
    all rows that are compared with it (nats); the same on every process.
    """
    model, process = trainee.model, trainee.process
    num_rows, sequence_length = batch.tokens_BT.shape
    mine = rows_of(num_rows, process)
    at_once = trainee.compute.rows_per_micro_batch(
        rows_per_batch=len(mine), sequence_length=sequence_length, device=process.device.type
    )
    if isinstance(model, SpreadModel):
        model.begin_gradients()
    if isinstance(model, PipelinedModel):
        nats_mine = _through_stages(trainee, batch, mine, at_once, num_valid)
    else:
        nats_mine = _one_after_another(trainee, batch, mine, at_once, num_valid)
    if isinstance(model, SpreadModel | PipelinedModel):
        model.finish_gradients()
    # From here on all processes have the same bits, and so decide alike whether to skip.
    nats = agree(collect(nats_mine, num_rows, process), process).cpu().numpy()
    return (nats, 0.0) if nats.ndim == 1 else (np.ascontiguousarray(nats[:, 0]), float(nats[:, 1].sum()))


def _one_after_another(
    trainee: Trainee, batch: Batch, mine: npt.NDArray[np.int64], at_once: int, num_valid: int
) -> Tensor:
    """Micro-batches through the whole model; nats of each of ``mine``, with a second column of divergence from the base
    where there is a penalty on it."""
    model, device, penalties = trainee.model, trainee.device, trainee.penalties
    compares = penalties is not None and penalties.base is not None
    # NO_ROW is -1, and would read the last row's source.
    source_B = np.where(mine == NO_ROW, -1, batch.source_B[mine])
    nats_rows: list[Tensor] = []
    # Around the loop: weights are rounded once for all micro-batches of a step.
    with bf16_copies(model.model) if _makes_bf16(trainee) else nullcontext():
        for begin in range(0, len(mine), at_once):
            inputs = _inputs(batch, mine[begin : begin + at_once], device)
            near = penalties.closeness(inputs, source_B[begin : begin + at_once]) if penalties is not None else None
            if isinstance(model, SpreadModel):
                # Told before it runs, since hooks in the backward pass start the communication.
                model.before_backward(is_last=begin + at_once >= len(mine))
            total, nll_BT = model(*inputs) if near is None else model(*inputs, near)
            (total / max(1, num_valid)).backward()
            # Stays on the device: reading a number here would make the CPU wait for every micro-batch.
            nll_B = nll_BT.sum(1, dtype=torch.float64)
            nats_rows.append(torch.stack([nll_B, nats_of_rows(near, inputs[1])], 1) if compares else nll_B)
    return torch.cat(nats_rows)


def _through_stages(
    trainee: Trainee, batch: Batch, mine: npt.NDArray[np.int64], at_once: int, num_valid: int
) -> Tensor:
    """Micro-batches of one size through a pipeline; nats of each of ``mine``."""
    assert isinstance(trainee.model, PipelinedModel)
    num_micro_batches = math.ceil(len(mine) / at_once)
    # A schedule sends tensors of one shape: the last micro-batch is filled up with rows that are none.
    padded = np.full(num_micro_batches * at_once, NO_ROW)
    padded[: len(mine)] = mine
    inputs = _inputs(batch, padded, trainee.device)
    with bf16_copies(trainee.model.model) if _makes_bf16(trainee) else nullcontext():
        return trainee.model.accumulate(inputs, num_micro_batches, num_valid)[: len(mine)]


def _inputs(batch: Batch, rows: npt.NDArray[np.int64], device: torch.device) -> tuple[Tensor, ...]:
    """Tokens, labels and positions of some rows; a row that is none has no label and counts for nothing."""
    arrays = ((batch.tokens_BT, PADDING_TOKEN), (batch.labels_BT, IGNORED), (batch.positions_BT, 0))
    # Does not wait where the batch lies in pinned memory (batches/prefetch.py).
    return tuple(take(values, rows, padding).to(device, non_blocking=True) for values, padding in arrays)


def _makes_bf16(trainee: Trainee) -> bool:
    """Whether weights are rounded to bf16 here for each step; FSDP gathers them so."""
    return trainee.precision == "bf16" and not trainee.process.is_sharded


def _penalize(trainee: Trainee, divergence: float) -> dict[str, float]:
    """Add the gradients of what pulls at weights; values of all penalties, given the ``divergence`` per token."""
    penalties, model = trainee.penalties, trainee.model
    if penalties is None:
        return {}
    values = penalties.pull(trainee.process, model.repeated() if isinstance(model, PipelinedModel) else ())
    return values | ({} if penalties.base is None else {"kl": penalties.strength("kl") * divergence})


def _clip(trainee: Trainee) -> float:
    """Clip the gradients of the model, whatever its layout; returns the norm before."""
    if trainee.process.mesh is None:
        return clip_gradients(trainee.optimizer, trainee.clip)
    parameters = (parameter for group in trainee.optimizer.param_groups for parameter in group["params"])
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    repeated = trainee.model.repeated() if isinstance(trainee.model, PipelinedModel) else []
    # A table at both ends of a pipeline has one gradient twice: both are scaled, and one counts in the norm.
    counted_elsewhere = [parameter.grad for parameter in repeated if parameter.grad is not None]
    return clip_spread(gradients, trainee.clip, trainee.process, counted_elsewhere)


def update(trainee: Trainee, learning_rate: float) -> None:
    """Let the optimizer move what the gradients say."""
    set_learning_rate(trainee.optimizer, learning_rate)
    before = trainee.row_rate.rows() if trainee.row_rate is not None else []
    trainee.optimizer.step()
    if trainee.row_rate is not None:
        trainee.row_rate.scale(before)
