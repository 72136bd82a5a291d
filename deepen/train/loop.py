"""The training loop: ``train_step`` is one update, ``training_steps`` one run.

Everything that happens once in a while (evaluate, save, stop) is written in ``training_steps`` as a plain ``if``. What
a run has done is a small ``Progress``; together with weights, optimizer and random state it is all that a checkpoint
holds, because the data of a step is a function of its batch index.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import AdamW

from deepen.errors import TrainingError
from deepen.formats.records import append_record
from deepen.formats.scores import CheckpointScores, Score
from deepen.model.loss import LossModel
from deepen.parallel.config import Compute
from deepen.parallel.process import memory_bytes
from deepen.progress import say
from deepen.train.batches import IGNORED, Batch, Batches
from deepen.train.checkpoint import prune, save_checkpoint
from deepen.train.counts import SourceCounts, count_batch, counts_to_json
from deepen.train.flops import Flops
from deepen.train.groups import RowRate
from deepen.train.interrupt import StopRequest, stopped
from deepen.train.new_rows import NewRowsFirst, RowHold
from deepen.train.optimizer import clip_gradients, set_learning_rate
from deepen.train.schedules import Schedule, Shape
from deepen.train.spikes import NOT_FINITE, RecentSteps, SkipSpikes, not_finite, spike
from deepen.train.watch import Watch

METRICS = "metrics.jsonl"
SCORES = "scores.jsonl"
DECISIONS = "decisions.jsonl"
CHECKPOINTS = "checkpoints"

_MOST_SKIPS_IN_A_ROW = 5


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


@dataclass(frozen=True)
class Calendar:
    """When what happens once in a while happens, in steps (None: never) or seconds."""

    log_every: int
    save_every: int | None
    save_every_seconds: float | None
    milestone_every: int | None
    evaluate_every: int | None
    keep: int


@dataclass
class Progress:
    """How far a run is: what a checkpoint remembers besides tensors."""

    counts: list[SourceCounts]
    step: int = 0
    """Finished steps."""
    batch_index: int = 0
    """The next batch of the order."""
    skipped_steps: int = 0
    skips_in_a_row: int = 0
    last_loss: float | None = None
    recent: RecentSteps = field(default_factory=lambda: RecentSteps(0))
    last_save: float = field(default_factory=time.monotonic)
    elapsed_seconds: float = 0.0
    """Time spent on training, earlier starts of the run included."""

    @property
    def tokens(self) -> int:
        """Tokens trained, padding and skipped batches not counted."""
        return sum(total.tokens for total in self.counts)


@dataclass(frozen=True)
class Run:
    """A run that is ready to go."""

    out: Path
    fingerprint: str
    trainee: Trainee
    batches: Batches
    names: tuple[str, ...]
    """Sources by index."""
    tokens_per_byte: npt.NDArray[np.float64]
    """By source index, of the whole shard; turns nats per token into bits per byte."""
    schedule: Schedule
    shape: Shape
    peak_learning_rate: float
    new_rows: NewRowsFirst
    skip_spikes: SkipSpikes | None
    calendar: Calendar
    progress: Progress
    watch: Watch
    flops: Flops
    order_changes: tuple[dict[str, Any], ...] = ()
    """Changes of the mixture that are in force, as ``describe_changes`` gives them."""


def train_step(
    trainee: Trainee, batch: Batch, learning_rate: float, why_skip: Callable[[float, float], str | None] = not_finite
) -> StepResult:
    """One update on one batch: the mean loss over *its* valid tokens, however many micro-batches it takes.

    Nothing is changed when ``why_skip(loss, gradient norm)`` gives a reason.
    """
    num_valid = int((batch.labels_BT != IGNORED).sum())
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

    gradient_norm = clip_gradients(trainee.optimizer, trainee.clip)
    nll_B = torch.cat(nll_rows).cpu().numpy()
    skipped = why_skip(float(nll_B.sum()) / max(1, num_valid), gradient_norm)
    if skipped is None:
        update(trainee, learning_rate)
    trainee.optimizer.zero_grad(set_to_none=True)
    return StepResult(nll_B, num_valid, gradient_norm, skipped)


def update(trainee: Trainee, learning_rate: float) -> None:
    """Let the optimizer move what the gradients say."""
    set_learning_rate(trainee.optimizer, learning_rate)
    before = trainee.row_rate.rows() if trainee.row_rate is not None else []
    trainee.optimizer.step()
    if trainee.row_rate is not None:
        trainee.row_rate.scale(before)


def training_steps(run: Run, stop: StopRequest) -> Iterator[dict[str, Any]]:
    """Train from where ``run.progress`` stands to the end, yielding the record of each step once all of it is done."""
    progress, total_steps = run.progress, run.shape.total_steps
    stall_seconds = 0.0
    while progress.step < total_steps:
        if progress.step == run.new_rows.steps and run.new_rows.hold is not None:
            run = train_everything(run, run.new_rows.hold)
        started = time.perf_counter()
        batch_index = run.batches.order.next_batch(progress.batch_index)
        batch = run.batches[batch_index]
        data_wait_seconds = time.perf_counter() - started

        learning_rate = run.peak_learning_rate * run.schedule.multiplier(progress.step, run.shape)
        learning_rate *= run.new_rows.factor(progress.step, run.shape)
        why_skip = partial(spike, run.skip_spikes, progress.recent)
        result = train_step(run.trainee, batch, learning_rate, why_skip)
        _advance(progress, batch_index, batch, result)

        seconds = time.perf_counter() - started
        progress.elapsed_seconds += seconds
        record = _record(run, batch, result) | {"learning_rate": learning_rate}
        record |= _speed(run, batch, seconds) | {
            "data_wait_seconds": data_wait_seconds,
            "checkpoint_stall_seconds": stall_seconds,
        }
        is_last = progress.step == total_steps
        evaluates = run.watch.evaluate is not None and (is_last or _is_due(progress.step, run.calendar.evaluate_every))
        is_milestone = evaluates or is_last or _is_milestone(run, progress.step)
        stop.heed_limit(progress.elapsed_seconds, run.watch.stop_after_seconds)
        saves = is_milestone or stop.requested or _is_time_to_save(run.calendar, progress)

        if saves or result.skipped or progress.step % run.calendar.log_every == 0:
            append_record(run.out / METRICS, record, sync=saves)
        if result.skipped:
            decide_about_skip(run, batch_index, result)
        if evaluates:
            record["scores"] = evaluate_now(run)
        stall_seconds = save_now(run, milestone=is_milestone) if saves else 0.0
        progress.elapsed_seconds += time.perf_counter() - started - seconds
        yield record
        if stop.requested and not is_last:
            if not saves:  # the signal came after the decision above
                save_now(run, milestone=False)
            raise stopped(stop, progress.step, total_steps)


def train_everything(run: Run, hold: RowHold) -> Run:
    """The same run from where not only new rows move any more."""
    trainee = replace(run.trainee, optimizer=hold.release())
    run.progress.recent.forget()  # from here on gradients are those of all weights
    return replace(run, trainee=trainee, new_rows=replace(run.new_rows, hold=None))


def _advance(progress: Progress, batch_index: int, batch: Batch, result: StepResult) -> None:
    progress.step += 1
    progress.batch_index = batch_index + 1
    count_batch(progress.counts, batch, applied=result.skipped is None)
    if result.skipped is None:
        progress.skips_in_a_row = 0
        progress.last_loss = result.loss
        progress.recent.add(result.loss, result.gradient_norm)
    else:
        progress.skipped_steps += 1
        progress.skips_in_a_row += 1


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _is_milestone(run: Run, step: int) -> bool:
    """Regular milestones, and where a decay begins: a longer continuation starts there."""
    begins_decay = run.schedule.extendable and step == run.shape.decay_start
    return begins_decay or _is_due(step, run.calendar.milestone_every)


def _is_time_to_save(calendar: Calendar, progress: Progress) -> bool:
    waited = time.monotonic() - progress.last_save
    return _is_due(progress.step, calendar.save_every) or (
        calendar.save_every_seconds is not None and waited >= calendar.save_every_seconds
    )


def _record(run: Run, batch: Batch, result: StepResult) -> dict[str, Any]:
    """What a step measured: losses in nats per token and bits per byte, overall and per source."""
    num_sources = len(run.names)
    labels_B = (batch.labels_BT != IGNORED).sum(1)
    nll_S = np.bincount(batch.source_B, result.nll_B, num_sources)
    labels_S = np.bincount(batch.source_B, labels_B, num_sources)
    bytes_S = labels_S / run.tokens_per_byte
    present = [source for source in range(num_sources) if labels_S[source]]
    return {
        "step": run.progress.step,
        "tokens": run.progress.tokens,
        "loss": _finite(nll_S.sum() / max(1, labels_S.sum())),
        "bits_per_byte": _finite(nll_S.sum() / math.log(2) / max(1.0, bytes_S.sum())),
        "loss_by_source": {run.names[s]: _finite(nll_S[s] / labels_S[s]) for s in present},
        "bits_per_byte_by_source": {run.names[s]: _finite(nll_S[s] / math.log(2) / bytes_S[s]) for s in present},
        "gradient_norm": _finite(result.gradient_norm),
        "skipped": result.skipped,
    }


def _speed(run: Run, batch: Batch, seconds: float) -> dict[str, Any]:
    """Speed of a step without evaluation and saving: tokens (no padding), and FLOP/s as a share of the peak (MFU)."""
    num_tokens = int((batch.documents_BT >= 0).sum())
    flops_per_second = run.flops.of(num_tokens, batch.tokens_BT.shape[1], seconds)
    return {
        "tokens_per_second": num_tokens / seconds,
        "model_flops_per_second": flops_per_second,
        "mfu": flops_per_second / run.flops.peak if flops_per_second and run.flops.peak else None,
        "memory_bytes": memory_bytes(run.trainee.device),
        "elapsed_seconds": run.progress.elapsed_seconds,
    }


def _finite(value: float) -> float | None:
    """A number for JSON, which knows neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def decide_about_skip(run: Run, batch_index: int, result: StepResult) -> None:
    """Write down which batch was passed over and why; raises ``TrainingError`` when numbers stay not finite.

    Several spikes in a row that are finite are where the run now is: what went before is forgotten.
    """
    progress = run.progress
    bad_rows = set(np.flatnonzero(~np.isfinite(result.nll_B)).tolist())
    documents = run.batches.document_names(batch_index, bad_rows or None)
    decision = {"step": progress.step, "action": "skip_batch", "batch": batch_index, "reason": result.skipped}
    append_record(run.out / DECISIONS, decision | {"documents": documents}, sync=True)
    say(f"train: step {progress.step} changed nothing: {result.skipped} (batch {batch_index}, see {DECISIONS})")
    if result.skipped == NOT_FINITE and progress.skips_in_a_row >= _MOST_SKIPS_IN_A_ROW:
        listed = ", ".join(documents[:8]) + (f" and {len(documents) - 8} more" if len(documents) > 8 else "")
        raise TrainingError(
            f"loss or gradient was not finite in {_MOST_SKIPS_IN_A_ROW} steps in a row, up to step {progress.step}; "
            f"documents in the last batch: {listed}",
            hint="look at these documents, lower `train.learning_rate`, or use `train.precision: fp32`; "
            "the run goes on from its last checkpoint",
        )
    if run.skip_spikes is not None and progress.skips_in_a_row >= run.skip_spikes.believe_after:
        say(f"train: {progress.skips_in_a_row} spikes in a row are no accident: earlier steps are forgotten")
        progress.recent.forget()


def evaluate_now(run: Run) -> list[Score]:
    """Score the model as it is and append the result to scores.jsonl; training is not affected in any bit."""
    assert run.watch.evaluate is not None, "nothing to evaluate with"
    model, progress = run.trainee.model, run.progress
    devices = [run.trainee.device] if run.trainee.device.type == "cuda" else []
    model.eval()
    with torch.random.fork_rng(devices=devices):
        scores = run.watch.evaluate(model, progress.step, progress.tokens)
    model.train()
    record = CheckpointScores(step=progress.step, tokens=progress.tokens, scores=tuple(scores))
    append_record(run.out / SCORES, record.model_dump(mode="json"), sync=True)
    return scores


def save_now(run: Run, *, milestone: bool) -> float:
    """Write a checkpoint of the present state and prune old ones; returns the seconds that training stood still."""
    started = time.perf_counter()
    progress, directory = run.progress, run.out / CHECKPOINTS
    state = {
        "step": progress.step, "batch_index": progress.batch_index, "tokens": progress.tokens,
        "skipped_steps": progress.skipped_steps, "skips_in_a_row": progress.skips_in_a_row,
        "last_loss": progress.last_loss, "recent": progress.recent.to_json(),
        "sources": counts_to_json(run.names, progress.counts), "order": list(run.order_changes),
        "fingerprint": run.fingerprint,
    }  # fmt: skip
    save_checkpoint(directory, run.trainee.model.model, run.trainee.optimizer, state, milestone=milestone)
    prune(directory, run.calendar.keep)
    progress.last_save = time.monotonic()
    return time.perf_counter() - started
