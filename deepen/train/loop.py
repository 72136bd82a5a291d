"""The training loop: what happens from step to step (``step.py`` is one update).

Everything that happens once in a while (evaluate, save, stop) is written in ``training_steps`` as a plain ``if``. What
a run has done is a small ``Progress``; together with weights, optimizer and random state it is all that a checkpoint
holds, because the data of a step is a function of its batch index.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from deepen.errors import TrainingError
from deepen.formats.files.records import append_record
from deepen.formats.training.scores import SCORES, CheckpointScores, Score
from deepen.model.adapters import adapters_record
from deepen.parallel.spread import shard_again
from deepen.train.batches.counts import count_batch, counts_to_json
from deepen.train.batches.read import IGNORED, Batch
from deepen.train.beside.interrupt import StopRequest, stopped
from deepen.train.beside.late_scores import due_scores, take_scores
from deepen.train.beside.step_records import speed_record, step_record
from deepen.train.beside.watchdog import StepAlarm
from deepen.train.checkpoints.marks import marks_of
from deepen.train.faults.actions import pass_over, remove_rolled_back
from deepen.train.faults.memory import within_memory
from deepen.train.faults.settle import by_scores, diverged, faults
from deepen.train.faults.spikes import spike
from deepen.train.run import CHECKPOINTS, METRICS, Calendar, Progress, Run
from deepen.train.schedule.new_rows import RowHold
from deepen.train.step import StepResult, train_step


def training_steps(run: Run, stop: StopRequest, alarm: StepAlarm | None = None) -> Iterator[dict[str, Any]]:
    """Train from where ``run.progress`` stands to the end, yielding the record of each step once all of it is done.

    ``alarm`` is told when a step begins and ends, so that it notices one that does not.
    """
    alarm = alarm or StepAlarm(None, run.out)
    progress, total_steps = run.progress, run.shape.total_steps
    if due_scores(run):  # an earlier start ended while it waited for them
        run, _ = finish_step(run, _due(run, stop), stop)
    while progress.step < total_steps and not has_ended(run):
        run.saver.check()  # a write that failed in the background is raised between steps, where nothing is half done
        if (rewind := run.ledger.rewind_from(progress.step)) is not None:  # an earlier start ended on the way back
            run = pass_over(run, rewind)
            run, _ = finish_step(
                run, replace(_due(run, stop), saves=True, waits=True), stop, decides=rewind.by != "forgetting"
            )
            continue
        if progress.step == run.new_rows.steps and run.new_rows.hold is not None:
            run = train_everything(run, run.new_rows.hold)
        alarm.step_begins(progress.step + 1)
        started, stalled = time.perf_counter(), run.saver.stall_seconds
        batch_index = run.batches.order.next_batch(progress.batch_index)  # a changed mixture leaves holes in the order
        batch = run.prefetch.take(run.batches, batch_index)
        data_wait_seconds = time.perf_counter() - started

        learning_rate = run.peak_learning_rate * run.schedule.multiplier(progress.step, run.shape)
        learning_rate *= run.new_rows.factor(progress.step, run.shape) * progress.rate_factor
        update = partial(train_step, batch=batch, learning_rate=learning_rate, why_skip=_why_skip(run, batch_index))
        run, result = within_memory(run, batch, update)
        _advance(run, batch_index, batch, result)
        alarm.step_ends()

        seconds = time.perf_counter() - started - (run.saver.stall_seconds - stalled)
        progress.elapsed_seconds += seconds
        record = step_record(run, batch, result) | {"learning_rate": learning_rate}
        record |= speed_record(run, batch, seconds) | {
            "data_wait_seconds": data_wait_seconds,
            "checkpoint_stall_seconds": run.saver.take_stall_seconds(),
        }
        # Before anything is decided: processes agree here, once a step, on what their signals and clocks say.
        due = _due(run, stop)
        if due.saves or result.skipped or progress.step % run.calendar.log_every == 0 or due_scores(run):
            append_record(run.out / METRICS, record)  # a checkpoint makes it durable
        num_rewinds = len(run.ledger.rewinds())
        run = faults(run, batch_index, result)
        if len(run.ledger.rewinds()) > num_rewinds:  # without a checkpoint of it a resumed run would go back once more
            due = replace(due, saves=True, waits=True)
        run, scores = finish_step(run, due, stop)
        if scores is not None:
            record["scores"] = scores
        progress.elapsed_seconds += time.perf_counter() - started - seconds
        yield record
        # Alone, a signal since the decision counts as well; of several processes only what all agreed on.
        stops = due.stops if run.trainee.process.mesh is not None else stop.requested
        if stops and progress.step < total_steps:
            if not due.saves:  # the signal came after the decision above
                save_now(run, None, milestone=False, wait=True)
            raise stopped(stop, progress.step, total_steps)


@dataclass(frozen=True)
class Due:
    """What is to be done at the end of a step."""

    evaluates: bool
    """The model is scored, or saved to be scored by another process."""
    is_milestone: bool
    saves: bool
    waits: bool
    """The checkpoint is to be on the disk before anything else happens."""
    stops: bool
    """Some process was asked to stop."""


def _due(run: Run, stop: StopRequest) -> Due:
    progress = run.progress
    is_last = progress.step == run.shape.total_steps
    evaluates = run.hooks.is_scored and (is_last or _is_due(progress.step, run.calendar.evaluate_every))
    is_milestone = (evaluates and run.calendar.evaluated_stay) or is_last or _is_milestone(run, progress.step)
    stop.heed_limit(progress.elapsed_seconds, run.hooks.stop_after_seconds)
    process = run.trainee.process  # signals and clocks differ between processes
    stop.requested, is_time = process.any_of(stop.requested, _is_time_to_save(run.calendar, progress))
    saves = is_milestone or evaluates or stop.requested or is_time
    return Due(evaluates, is_milestone, saves, is_last or stop.requested, stop.requested)


def finish_step(
    run: Run, due: Due, stop: StopRequest | None = None, *, decides: bool = True
) -> tuple[Run, list[Score] | None]:
    """Score, decide on the scores, save, as is due; returns the scores of the model as it then is.

    Whoever went back is scored anew, and nothing more is decided on that. Where another process scores, its scores of
    an earlier step are taken, decided on and returned instead, and what is saved now waits for its own.
    """
    if run.hooks.lag is not None:
        return _finish_with_lag(run, due, stop or StopRequest(), decides=decides)
    # Scored, decided, then saved: the checkpoint carries its scores and what was decided on them.
    scores, went_back = None, False
    if due.evaluates:
        scores = evaluate_now(run)
        if decides:
            run, went_back = by_scores(run)
        if went_back:
            scores = evaluate_now(run)
    if due.saves:
        save_now(run, scores, milestone=due.is_milestone, wait=due.waits or went_back or has_ended(run))
        remove_rolled_back(run.out / CHECKPOINTS, run.ledger, run.progress.saved_step)
    return run, scores


def _finish_with_lag(run: Run, due: Due, stop: StopRequest, *, decides: bool) -> tuple[Run, list[Score] | None]:
    try:
        taken = take_scores(run, stop)
    except TrainingError:  # they did not come, or nobody wants to wait: the next start takes them first
        save_now(run, None, milestone=False, wait=True)
        raise
    went_back = False
    if decides and taken and taken[-1].known == run.progress.step:
        run, went_back = by_scores(run)
    ended = has_ended(run)
    if due.saves or went_back or ended:
        milestone, wait = due.is_milestone or ended, due.waits or went_back or ended
        save_now(run, None, milestone=milestone, wait=wait, awaits=due.evaluates)
        remove_rolled_back(run.out / CHECKPOINTS, run.ledger, run.progress.saved_step)
    return run, list(taken[-1].scores) if taken else None


def has_ended(run: Run) -> bool:
    """Whether it was decided to end the run before its last step; raises ``TrainingError`` where that was a failure."""
    stop = run.ledger.stop_until(run.progress.step)
    if stop is not None and stop.by == "divergence":
        raise diverged(stop)
    return stop is not None


def _why_skip(run: Run, batch_index: int) -> Callable[[float, float], str | None]:
    """What tells a step that is skipped; the reason that an earlier start recorded, if it did."""
    known = run.ledger.skip_at(run.progress.step + 1)
    if known is not None and known.batch == batch_index:
        return lambda _loss, _norm: known.reason
    return partial(spike, run.skip_spikes, run.progress.recent)


def train_everything(run: Run, hold: RowHold) -> Run:
    """The same run from where not only new rows move any more."""
    trainee = replace(run.trainee, optimizer=hold.release(), hold=None)
    run.progress.recent.forget()  # from here on gradients are those of all weights
    return replace(run, trainee=trainee, new_rows=replace(run.new_rows, hold=None))


def _advance(run: Run, batch_index: int, batch: Batch, result: StepResult) -> None:
    progress = run.progress
    progress.step += 1
    progress.batch_index = batch_index + 1
    count_batch(progress.counts, batch, applied=result.skipped is None)
    if result.skipped is None:
        progress.skips_in_a_row = 0
        progress.last_loss = result.loss
        progress.recent.add(result.loss, result.gradient_norm)
        if run.divergence is not None and progress.step > run.new_rows.steps + run.shape.warmup_steps:
            labels_B = (batch.labels_BT != IGNORED).sum(1)
            sums_S = (np.bincount(batch.source_B, values, len(run.names)) for values in (result.nll_B, labels_B))
            progress.trend.add(run.divergence, progress.step, *sums_S)
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


def evaluate_now(run: Run) -> list[Score]:
    """Score the model as it is and append the result to scores.jsonl; training is not affected in any bit."""
    assert run.hooks.evaluate is not None, "nothing to evaluate with"
    model, progress = run.trainee.model, run.progress
    devices = [run.trainee.device] if run.trainee.device.type == "cuda" else []
    model.eval()
    # Probes that write draw random numbers; training goes on with its own, as if nothing had been measured.
    with torch.random.fork_rng(devices=devices):
        scores = run.hooks.evaluate(model, progress.step, progress.tokens)
    if run.trainee.process.is_sharded:
        shard_again(model)
    model.train()
    record = CheckpointScores(step=progress.step, tokens=progress.tokens, scores=tuple(scores))
    append_record(run.out / SCORES, record.model_dump(mode="json"), sync=True)
    return scores


def state_of(run: Run) -> dict[str, Any]:
    """What a checkpoint's ``state.json`` says of where a run stands."""
    progress, tables_at = run.progress, run.hooks.tables_at
    tables = tables_at(progress.step) if tables_at is not None else {}
    return {
        "step": progress.step, "batch_index": progress.batch_index, "tokens": progress.tokens,
        "skipped_steps": progress.skipped_steps, "skips_in_a_row": progress.skips_in_a_row,
        "last_loss": progress.last_loss, "recent": progress.recent.to_json(),
        "trend": progress.trend.to_json(), "rate_factor": progress.rate_factor,
        "penalty_factors": dict(progress.penalty_factors),
        "sources": counts_to_json(run.names, progress.counts), "order": list(run.order_changes),
        "fingerprint": run.fingerprint, **adapters_record(run.trainee.model.model),
        **({} if run.hooks.lag is None else {"judged_step": progress.judged_step}),
        **({"tables": tables} if tables else {}),
    }  # fmt: skip


def save_now(run: Run, scores: list[Score] | None, *, milestone: bool, wait: bool, awaits: bool = False) -> None:
    """Save the present state, scored if ``scores`` are given, to be scored elsewhere if it ``awaits`` that; with
    ``wait`` it is on the disk on return."""
    progress, trainee = run.progress, run.trainee
    with run.saver.standing_still():  # collecting the state counts as standing still, writing it does not
        marks = marks_of(run, scores, milestone=milestone, awaits=awaits)
        run.saver.save(run.saver.take(trainee.model.model, trainee.optimizer, state_of(run), marks))
    progress.last_save = time.monotonic()
    progress.saved_step = progress.step
    if wait:
        run.saver.wait()
