"""Scores of another process, taken exactly ``lag`` steps after the step that they are of.

Training waits when they are late and leaves them lying when they are early, so that what is decided on them depends on
neither machine's speed. The price is that a decision comes ``lag`` steps later than it could.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from deepen.errors import DamageError, TrainingError
from deepen.formats.files.records import append_record
from deepen.formats.training.checkpoints import (
    CheckpointInfo,
    checkpoint_name,
    list_checkpoints,
    mark_scored,
    read_checkpoint,
    read_state,
    unmark_scored,
    verify,
)
from deepen.formats.training.scores import SCORES, CheckpointScores
from deepen.formats.training.scores_beside import identity_of, read_scores_beside
from deepen.progress import say
from deepen.train.beside.hooks import Lag
from deepen.train.beside.interrupt import StopRequest, stopped
from deepen.train.checkpoints.marks import changes_of, within_budget
from deepen.train.run import CHECKPOINTS, Run

_LOOK_EVERY_SECONDS = 0.2
_SAY_EVERY_SECONDS = 60.0


def due_scores(run: Run) -> Sequence[int]:
    """The steps that were given to another process to score, ``lag`` steps ago or more, and not taken yet."""
    lag, every = run.hooks.lag, run.calendar.evaluate_every
    if lag is None or every is None:
        return ()
    # The first multiple of `every` behind what was judged: also where a longer run has another interval.
    first = run.progress.judged_step // every * every + every
    return range(first, run.progress.step - lag.steps + 1, every)


def take_scores(run: Run, stop: StopRequest) -> list[CheckpointScores]:
    """Take what is due: into ``scores.jsonl`` and the marks of the checkpoints; waits for it.

    Steps that were rolled back since have no scores any more. Raises ``TrainingError`` when the scores do not come in
    time, and its subclass ``StoppedError`` when the run is asked to stop meanwhile; then nothing counts as taken.
    """
    due, taken = due_scores(run), list[CheckpointScores]()
    if not due:
        return []
    run.saver.wait()  # the checkpoint may still be on its way, and its manifest is about to change
    for step in due:
        if any(rewind.details["to"] < step < rewind.step for rewind in run.ledger.rewinds()):
            continue
        info = CheckpointInfo(step, run.out / CHECKPOINTS / checkpoint_name(step))
        scores = _wait_for(run, info, stop)
        # When they were due and not when they came: a faster scorer must not change what is decided.
        taken.append(scores.model_copy(update={"known_at": step + _lag(run).steps}))
    # Only once all are there: where one is late nothing counts as taken, and the next start waits for the same.
    with run.trainee.process.main_first():
        if run.trainee.process.is_main:
            for one in taken:
                _write_down(run, one)
    run.progress.judged_step = due[-1]
    return taken


def _lag(run: Run) -> Lag:
    assert run.hooks.lag is not None, "nothing is scored elsewhere"
    return run.hooks.lag


def _wait_for(run: Run, info: CheckpointInfo, stop: StopRequest) -> CheckpointScores:
    """The scores of a checkpoint when they are there; of several processes one looks, and all agree."""
    lag, process, started = _lag(run), run.trainee.process, time.monotonic()
    next_line = started
    while True:
        found: CheckpointScores | None = process.from_main(_look(lag.scores.parent, info) if process.is_main else None)
        if found is not None:
            return found
        # Once, when the first look finds nothing: it hashes the whole checkpoint.
        if next_line == started:
            wrong: str | None = process.from_main(_wrong(info) if process.is_main else None)
            if wrong is not None:
                return _without_scores(run, info.step, wrong)
        waited = time.monotonic() - started
        # Waiting counts against the limit of time: a scorer that died must not hold the machine.
        stop.heed_limit(run.progress.elapsed_seconds + waited, run.hooks.stop_after_seconds)
        stop.requested, is_late = process.any_of(stop.requested, waited >= lag.wait_seconds)
        if stop.requested:
            raise stopped(stop, run.progress.step, run.shape.total_steps)
        if is_late:
            raise _too_late(run, info.step)
        if time.monotonic() >= next_line:
            say(
                f"train: step {run.progress.step}: waiting for the scores of step {info.step} from `{lag.command}` "
                f"({waited:.0f} s so far, at most {lag.wait_seconds:.0f} s)"
            )
            next_line = time.monotonic() + _SAY_EVERY_SECONDS
        time.sleep(_LOOK_EVERY_SECONDS)


def _look(directory: Path, info: CheckpointInfo) -> CheckpointScores | None:
    try:
        found = read_scores_beside(directory).get((info.step, identity_of(info)))
    except DamageError:  # told about by `_wrong`
        return None
    return None if found is None else found.plain


def _wrong(info: CheckpointInfo) -> str | None:
    """Why nobody will ever score a checkpoint, if so."""
    return next(iter(verify(info)), None)


def _without_scores(run: Run, step: int, wrong: str) -> CheckpointScores:
    say(f"train: step {run.progress.step}: step {step} has no scores: {wrong}")
    tokens = run.progress.tokens * step // max(1, run.progress.step)  # nothing else is left to tell
    return CheckpointScores(step=step, tokens=tokens, scores=(), failed={"checkpoint": wrong})


def _too_late(run: Run, step: int) -> TrainingError:
    lag = _lag(run)
    return TrainingError(
        f"stopped after step {run.progress.step}: the scores of step {step} did not come within "
        f"{lag.wait_seconds:.0f} s; everything is saved",
        hint=f"start `{lag.command}` in another process and run the same command again, which goes on from here; "
        "`evaluate.wait` says how long to wait, and without `evaluate.lag` training scores by itself",
    )


def _write_down(run: Run, scores: CheckpointScores) -> None:
    append_record(run.out / SCORES, scores.model_dump(mode="json"), sync=True)
    info = CheckpointInfo(scores.step, run.out / CHECKPOINTS / checkpoint_name(scores.step))
    if "checkpoint" in scores.failed:
        return
    state, (new, kept) = read_state(info), changes_of(scores.scores)
    applied = state["last_loss"] is not None and state["skips_in_a_row"] == 0
    mark_scored(info, good=applied and within_budget(run, scores.scores), new=new, kept=kept)


def forget_scores(directory: Path, judged_step: int) -> None:
    """Let checkpoints after ``judged_step`` await their scores again, where a run goes on from before it had them."""
    for info in list_checkpoints(directory):
        try:
            if info.step > judged_step and read_checkpoint(info).scored_late:
                unmark_scored(info)
        except DamageError:  # who needs it says so
            continue
