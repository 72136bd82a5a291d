"""Who decides what at the end of a step, and in which order it is written, done and asked again.

What an earlier start of the run recorded for this step is done again and nobody is asked. Otherwise the deciders are:
each is a pure function of what the run has recorded, so that it would say the same once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deepen.errors import DeepenError, TrainingError
from deepen.formats.files.records import read_models
from deepen.formats.training.decisions import DECISIONS, Action, Decider, Decision
from deepen.formats.training.scores import SCORES, CheckpointScores
from deepen.progress import say
from deepen.train.faults.actions import carry_out, prepared
from deepen.train.faults.divergence import Divergence
from deepen.train.faults.spikes import MOST_NOT_FINITE, NOT_FINITE, SkipSpikes
from deepen.train.run import Progress, Run
from deepen.train.step import StepResult

Ask = Callable[[tuple[Decision, ...]], Sequence[Decision]]
"""What is to be done, given all decisions so far; asked again as long as nothing of it can be done."""

# A decider that goes on wishing for the impossible must not hold up the run.
_MOST_TRIES = 16


def settle(run: Run, by: Decider, ask: Ask) -> Run:
    """Do what ``by`` decided at this step: what is recorded, else what ``ask`` says, in the order of its wishes.

    Every decision is on the disk before it is carried out. One that cannot be is recorded with the reason, and ``ask``
    is asked again, knowing that.
    """
    step = run.progress.step
    done = False
    # Recorded by an earlier start: done again in the same order, without what could not be done.
    for decision in run.ledger.at(step, by):
        if decision.cannot is None:
            run, done = _try(run, decision, done)
    for _ in range(_MOST_TRIES):
        if done:
            break
        wanted = [prepared(run, d.model_copy(update={"by": by})) for d in ask(run.ledger.until(step))]
        if not wanted:
            break
        run.ledger.write(wanted)
        for decision in wanted:
            if decision.cannot is not None:
                say(f"train: step {step}: `{decision.action}` cannot be done: {decision.cannot}")
            else:
                run, done = _try(run, decision, done)
    return run


def _try(run: Run, decision: Decision, done: bool) -> tuple[Run, bool]:
    try:
        return carry_out(run, decision), True
    except DeepenError as error:
        say(f"train: step {decision.step}: `{decision.action}` cannot be done: {error.message}")
        run.ledger.write([decision.model_copy(update={"cannot": error.message})])
        return run, done


def faults(run: Run, batch_index: int, result: StepResult) -> Run:
    """What a skipped batch, many of them, or a loss that keeps rising lead to."""
    if result.skipped:
        note_skip(run, batch_index, result)
        run = settle(run, "spikes", lambda decisions: rewind_from_spikes(run.skip_spikes, run.progress, decisions))
        # A way back sets the count to 0: it is this high only where there was none.
        if run.progress.skips_in_a_row >= MOST_NOT_FINITE and result.skipped == NOT_FINITE:
            raise _not_finite(run, batch_index)
    elif run.divergence is not None:
        settings = run.divergence
        run = settle(run, "divergence", lambda decisions: divergence_actions(settings, run.progress, decisions))
        if run.ledger.at(run.progress.step, "divergence"):
            # Also after a way back: the trend that came with the checkpoint has its own count.
            run.progress.trend.wait_again()
        if (stop := run.ledger.stop_until(run.progress.step)) is not None and stop.by == "divergence":
            raise diverged(stop)
    return run


def by_scores(run: Run) -> tuple[Run, bool]:
    """What the scores lead to, and whether the run went back to an earlier checkpoint and must be scored anew."""
    decide, step = run.hooks.decide, run.progress.step
    if decide is None:
        return run, False
    scores = list(read_models(run.out / SCORES, CheckpointScores))
    # As much as was known at this step, whenever it is asked: so the same is decided again.
    scores = [score for score in scores if score.known <= step]
    run = settle(run, "forgetting", lambda decisions: decide(scores, decisions))
    made = run.ledger.at(step, "forgetting")
    return run, any(decision.action == "rewind" and decision.cannot is None for decision in made)


def note_skip(run: Run, batch_index: int, result: StepResult) -> None:
    """Write down which batch was passed over and why.

    Several spikes in a row that are finite are where the run now is: what went before is forgotten.
    """
    progress, reason = run.progress, str(result.skipped)
    # Noted already where an earlier start got as far as this.
    if run.ledger.skip_at(progress.step) is None:
        # Rows that are not finite are the suspects; a finite spike may come from any row.
        bad_rows = set(np.flatnonzero(~np.isfinite(result.nll_B)).tolist())
        decision = Decision(
            step=progress.step,
            action="skip_batch",
            batch=batch_index,
            by="spikes",
            reason=reason,
            documents=tuple(run.batches.document_names(batch_index, bad_rows or None)),
            parent_step=progress.saved_step,
        )
        run.ledger.write([decision])
    say(f"train: step {progress.step} changed nothing: {reason} (batch {batch_index}, see {DECISIONS})")
    if reason != NOT_FINITE and run.skip_spikes and progress.skips_in_a_row >= run.skip_spikes.believe_after:
        say(f"train: {progress.skips_in_a_row} spikes in a row are no accident: earlier steps are forgotten")
        progress.recent.forget()


def _not_finite(run: Run, batch_index: int) -> TrainingError:
    documents = run.batches.document_names(batch_index)
    listed = ", ".join(documents[:8]) + (f" and {len(documents) - 8} more" if len(documents) > 8 else "")
    return TrainingError(
        f"loss or gradient was not finite in {MOST_NOT_FINITE} steps in a row, up to step {run.progress.step}; "
        f"documents in the last batch: {listed}",
        hint="look at these documents, lower `train.learning_rate`, or use `train.precision: fp32`; "
        "the run goes on from its last checkpoint",
    )


def diverged(stop: Decision) -> TrainingError:
    """The error that ends a run which nothing else could bring back."""
    return TrainingError(
        f"stopped after step {stop.step}: {stop.reason}",
        hint="lower `train.learning_rate`, and look at the documents that decisions.jsonl names; "
        "`train.divergence: null` lets it go on",
    )


def rewind_from_spikes(
    settings: SkipSpikes | None, progress: Progress, decisions: Sequence[Decision]
) -> tuple[Decision, ...]:
    """The way back when there were too many skipped steps of late; nothing when there were not, or it was tried."""
    rule = settings.rewind if settings is not None else None
    mine = [decision for decision in decisions if decision.by == "spikes" and decision.action == "rewind"]
    if rule is None or any(decision.step == progress.step for decision in mine):
        return ()
    last = max(
        (decision.step for decision in mine), default=0
    )  # what could not be done then cannot be done a step later
    first = max(last, progress.step - rule.within)
    skips = [d.step for d in decisions if d.action == "skip_batch" and d.step > first]
    stuck = progress.skips_in_a_row >= MOST_NOT_FINITE and decisions[-1].reason == NOT_FINITE
    if (len(skips) < rule.after and not stuck) or sum(d.cannot is None for d in mine) >= rule.most:
        return ()
    begin = progress.step - progress.skips_in_a_row + 1 if stuck else skips[0]
    reason = (
        f"{max(len(skips), progress.skips_in_a_row)} steps were skipped from step {skips[0] if skips else begin} on"
    )
    details = {"before": begin - rule.steps_before, "suspect_from": begin}
    return (Decision(step=progress.step, action="rewind", by="spikes", reason=reason, details=details),)


def divergence_actions(settings: Divergence, progress: Progress, decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """What to do at this step: a lower rate, then the way back, then the end; nothing when the loss is in order."""
    trend = progress.trend
    if not trend.diverges(settings):
        return ()
    mine = [decision for decision in decisions if decision.by == "divergence"]
    impossible = {decision.action for decision in mine if decision.cannot and decision.step == progress.step}
    done = [decision.action for decision in mine if decision.cannot is None]
    reason = f"the smoothed loss has been {trend.rise:.3f} nats above its lowest for {trend.steps_above} steps"
    answers: tuple[tuple[Action, int, dict[str, Any]], ...] = (
        ("lower_learning_rate", settings.lower_times, {"to": settings.lower_to}),
        ("rewind", settings.rewinds, {"before": trend.since - settings.smoothing, "suspect_from": trend.since}),
        ("stop", 1, {}),
    )
    # In this order, each until it is used up; what cannot be done now makes way for the next.
    for action, most, details in answers:
        if done.count(action) < most and action not in impossible:
            return (Decision(step=progress.step, action=action, by="divergence", reason=reason, details=details),)
    return ()
