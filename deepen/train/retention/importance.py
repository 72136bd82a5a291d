"""How much each weight matters to the base: the diagonal of the empirical Fisher information on replay rows.

Measured once, before the first step, and kept as ``importance.safetensors`` in the training directory, which every
later start reads. One row at a time, since the square of a mean gradient is not the mean of squares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from deepen.errors import DamageError, TrainingError
from deepen.formats.files.atomic import FileEntry, damage, write_json
from deepen.formats.tokens.order import source_of
from deepen.model.loss.chunked import LossSettings
from deepen.model.loss.model import LossModel, evaluating
from deepen.model.weights.pieces import StoredTensors, fill, local_part
from deepen.model.weights.tensor_files import write_streamed
from deepen.parallel.process import Process
from deepen.parallel.shards.gradients import add_over_shards
from deepen.progress import readable, say, track
from deepen.train.batches.read import IGNORED, Batch, Batches
from deepen.train.retention.config import Ewc
from deepen.train.step import Trainee, gradients

IMPORTANCE = "importance.safetensors"
RECORD = "importance.json"

_NUM_BINS = 1 << 15
"""Of the histogram of values: their sign is plus, so the upper half of fp32's bits has 15 that differ."""


@dataclass(frozen=True)
class Measured:
    """What importance is measured on."""

    batches: Batches
    is_replay_S: npt.NDArray[np.bool_]
    settings: Ewc


def importance(trainee: Trainee, measured: Measured, out: Path) -> dict[str, Tensor]:
    """Importance of every trained weight by name, fp32, laid out as the weight is.

    The model must be as the run begins. What an earlier start measured is read from ``out``; raises ``DamageError``
    when that is damaged, ``TrainingError`` when the order has no replay row.
    """
    process, model = trainee.process, trainee.model.model
    if process.from_main((out / RECORD).is_file()):
        return read_importance(out, model)
    rows = islice(replay_rows(measured.batches, measured.is_replay_S), measured.settings.sequences)
    with track("importance", measured.settings.sequences, "rows") as tracker:
        values, num_rows, num_tokens = fisher_diagonal(trainee, _counted(rows, tracker.advance))
    if num_rows < measured.settings.sequences:
        say(f"train: importance is measured on {num_rows:,} replay rows, the order has no more")
    limit = clip_(values, measured.settings.clip_percentile, process)
    write_importance(out, values, {"rows": num_rows, "tokens": num_tokens, "limit": limit}, process)
    say(f"train: importance of the base's weights measured on {num_rows:,} rows, {readable(num_tokens)} tokens")
    return values


def _counted(rows: Iterator[Batch], advance: Any) -> Iterator[Batch]:
    for row in rows:
        yield row
        advance(1)


def replay_rows(batches: Batches, is_replay_S: npt.NDArray[np.bool_]) -> Iterator[Batch]:
    """Every replay row of the order once, as a batch of its own, in the order in which they are trained first."""
    seen: set[int] = set()
    index = batches.order.next_batch(0)
    while index < len(batches):
        ids_B = np.asarray(batches.order.batch(index))
        found = [at for at in np.flatnonzero(is_replay_S[source_of(ids_B)]).tolist() if int(ids_B[at]) not in seen]
        if found:
            batch = batches[index]
            for at in found:
                if int(ids_B[at]) not in seen:
                    seen.add(int(ids_B[at]))
                    yield one_row(batch, at)
        index = batches.order.next_batch(index + 1)


def one_row(batch: Batch, at: int) -> Batch:
    """Row ``at`` of a batch, as a batch of its own."""
    rows = slice(at, at + 1)
    return Batch(
        batch.tokens_BT[rows], batch.labels_BT[rows], batch.positions_BT[rows], batch.documents_BT[rows],
        batch.source_B[rows], batch.masked_B[rows],
    )  # fmt: skip


def fisher_diagonal(trainee: Trainee, rows: Iterator[Batch]) -> tuple[dict[str, Tensor], int, int]:
    """Sum over ``rows`` (batches of one row) of the squared gradient of the row's log-likelihood, per token.

    Also how many rows and tokens there were. Where a model's tokens are told apart by their past alone, the expected
    square of a row's gradient is the sum of those of its tokens, so that dividing by tokens gives the information per
    token, whatever the length of rows. On every layout one row is computed at a time, by all processes together.
    """
    model = trainee.model.model
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    sums = {name: torch.zeros_like(weight, dtype=torch.float32).detach() for name, weight in weights.items()}
    num_rows = num_tokens = 0
    with _as_it_is(trainee.model):
        for row in rows:
            # Divided by 1: the gradient of the row's sum, not of a mean.
            gradients(replace(trainee, penalties=None), row, 1)
            for name, weight in weights.items():
                if weight.grad is not None:
                    # Squared when it is complete: the square of a sum over processes is not the sum of their squares.
                    local_part(sums[name]).add_(local_part(weight.grad).float().square_())
            trainee.model.zero_grad(set_to_none=True)
            num_rows += 1
            num_tokens += int((row.labels_BT != IGNORED).sum())
    if num_tokens == 0:
        raise TrainingError(
            "`train.retention.ewc`: the training order has no row of replay to measure importance on",
            hint="raise the share of replay (`mix.domain_share`), or use `train.retention.l2_sp`",
        )
    for value in sums.values():
        local_part(value).div_(num_tokens)
    return sums, num_rows, num_tokens


@contextmanager
def _as_it_is(model: LossModel) -> Iterator[None]:
    """Without dropout and noise, and the plain likelihood as the loss."""
    settings = model.loss
    model.loss = LossSettings(replace(settings.rules, z_loss=0.0), settings.gradient)
    try:
        with evaluating(model):
            yield
    finally:
        model.loss = settings


@torch.no_grad()
def clip_(values: Mapping[str, Tensor], percentile: float, process: Process) -> float:
    """Lower values in place to the ``percentile`` of those that are not zero, over all weights; returns that limit.

    It is found in a histogram whose bins are fp32 numbers that agree in exponent and 7 bits of mantissa, and so at most
    0.8 % above the exact one: no layout needs all values in one place.
    """
    histograms = [(value, _histogram(local_part(value))) for value in values.values()]
    counts = add_over_shards(histograms, process).cpu()
    # The bin of zeros: weights that never had a gradient would move the percentile.
    counts[0] = 0
    wanted = percentile / 100 * float(counts.sum())
    at = int(torch.searchsorted(counts.cumsum(0).double(), torch.tensor(wanted, dtype=torch.float64)))
    # The upper edge of the bin, so that nothing below the percentile is lowered.
    limit = torch.tensor((min(at, _NUM_BINS - 2) + 1) << 16, dtype=torch.int32).view(torch.float32)
    for value in values.values():
        local_part(value).clamp_(max=float(limit))
    return float(limit)


def _histogram(value: Tensor) -> Tensor:
    # The bits of numbers that are not negative are ordered as the numbers are: their upper half is a bin.
    bins = value.contiguous().view(torch.int32).flatten() >> 16
    return torch.bincount(bins, minlength=_NUM_BINS)[:_NUM_BINS].cpu()


def write_importance(out: Path, values: Mapping[str, Tensor], facts: dict[str, Any], process: Process) -> None:
    """Write whole tensors, put together one at a time; the record with the file's hash comes last."""
    if process.is_main:
        entry = write_streamed(out / IMPORTANCE, values, lambda name: _whole(values[name]))
        write_json(out / RECORD, {**facts, "file": entry.model_dump(mode="json")})
    else:
        for value in values.values():
            # Putting a tensor together is a collective: these take part, and drop what they get.
            _whole(value)
    process.barrier()


def _whole(value: Tensor) -> Tensor:
    if not isinstance(value, DTensor):
        return value
    on_device = value.to(value.device_mesh.device_type)  # groups of GPUs cannot gather what lies in the host
    assert isinstance(on_device, DTensor)
    return on_device.full_tensor()


def read_importance(out: Path, model: PreTrainedModel) -> dict[str, Tensor]:
    """What ``write_importance`` left in ``out``, of what this process holds of the model's trained weights.

    Raises ``DamageError`` when it is not what was written.
    """
    remedy = "remove importance.json, and it is measured anew; it differs where the mixture was changed since"
    record = json.loads((out / RECORD).read_bytes())
    wrong = damage(FileEntry.model_validate(record["file"]), out)
    if wrong is not None:
        raise DamageError(f"`{out / IMPORTANCE}`: {wrong}", hint=remedy)
    found = {}
    with StoredTensors(out / IMPORTANCE) as stored:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if name not in stored.tensors:
                raise DamageError(f"`{out / IMPORTANCE}` does not have `{name}`", hint=remedy)
            found[name] = torch.zeros_like(parameter, dtype=torch.float32).detach()
            fill(found[name], stored, name)
    return found
