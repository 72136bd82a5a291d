"""Carrying out what was decided: a lower rate, more replay, the way back to an earlier checkpoint, the end.

Going back takes weights, optimizer, random state and counts from the checkpoint, never the clock: the steps in between
stay used up and their batches are passed over, as if each had been skipped. So steps, batches and schedule keep their
places, nothing recorded becomes ambiguous, and whoever resumes in between finds the way by the decisions alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepen.errors import RunError
from deepen.formats.files.records import keeps_records, read_records, write_records
from deepen.formats.tokens.order import Order, appended_files
from deepen.formats.training.checkpoints import checkpoint_before, list_checkpoints, read_state, remove_checkpoint
from deepen.formats.training.decisions import Decision, Ledger
from deepen.formats.training.scores import SCORES
from deepen.progress import say
from deepen.train.batches.counts import count_batch, counts_from_json
from deepen.train.checkpoints.files import load_checkpoint
from deepen.train.faults.divergence import LossTrend
from deepen.train.faults.order_changes import ORDER, describe_changes
from deepen.train.faults.spikes import RecentSteps
from deepen.train.run import CHECKPOINTS, METRICS, Progress, Run

ROLLED_BACK = "rolled_back.jsonl"

_LOWEST_RATE = 0.01
"""Share of the peak below which no rate is lowered any more: what such steps do can no longer be told from nothing."""


def prepared(run: Run, decision: Decision) -> Decision:
    """The decision with what only the loop knows: where it holds, what it rests on, what stands in its way."""
    progress = run.progress
    batch = run.batches.order.next_batch(progress.batch_index)
    known = {"step": progress.step, "batch": batch, "parent_step": progress.saved_step}
    decision = decision.model_copy(update=known)
    if decision.action == "rewind" and decision.cannot is None:
        run.saver.wait()  # the checkpoint that is being written now counts, however slow the disk is
        before = int(decision.details.get("before", progress.step))
        info = checkpoint_before(run.out / CHECKPOINTS, before, good_only=bool(decision.details.get("good_only")))
        if info is None:
            return decision.model_copy(update={"cannot": f"there is no such checkpoint before step {max(0, before)}"})
        decision = decision.model_copy(
            update={"details": {**decision.details, "to": info.step}, "documents": suspects(run, decision)}
        )
    return decision.model_copy(update={"cannot": decision.cannot or obstacle(run, decision)})


def suspects(run: Run, decision: Decision) -> tuple[str, ...]:
    """The documents in the batches from the step on where a fault began; none where the decision names no such step."""
    first = decision.details.get("suspect_from")
    if first is None:
        return ()
    steps = range(max(1, int(first)), decision.step + 1)
    batches = [run.batches.order.batch_of_step(step) for step in steps]
    return tuple(dict.fromkeys(name for batch in batches for name in run.batches.document_names(batch)))


def obstacle(run: Run, decision: Decision) -> str | None:
    """Why a decision cannot be carried out here, as far as that shows before it is tried."""
    is_end = run.progress.step >= run.shape.total_steps
    match decision.action:
        case "strengthen" if not has_penalty(run, str(decision.details.get("penalty"))):
            return f"training has no penalty `{decision.details.get('penalty')}`"
        case "lower_learning_rate":
            rate = run.progress.rate_factor * (0 if is_end else run.schedule.multiplier(run.progress.step, run.shape))
            if rate <= _LOWEST_RATE:
                return f"the learning rate is at {rate:.2%} of the peak already"
        case "more_replay" if run.hooks.remix is None:
            return "nobody can change the mixture of this run"
        case "more_replay" if is_end:
            return "no batches are left"
        case "rewind":
            # A checkpoint of that time has the moments of another optimizer, which knew the tables alone.
            if decision.details["to"] <= run.new_rows.steps and run.new_rows.steps and run.new_rows.hold is None:
                return "only new rows moved then, and everything moves now"
    return None


def carry_out(run: Run, decision: Decision) -> Run:
    """The run after a decision that was written down; raises ``DeepenError`` when it turns out to be impossible."""
    say(f"train: step {decision.step}: {_SAYS[decision.action]} ({decision.by}: {decision.reason})")
    return _ACTIONS[decision.action](run, decision)


def _lower(run: Run, decision: Decision) -> Run:
    run.progress.rate_factor *= float(decision.details["to"])
    return run


def has_penalty(run: Run, name: str) -> bool:
    """Whether the run has a penalty of this name on leaving the base."""
    return run.trainee.penalties is not None and name in run.trainee.penalties.settings


def _strengthen(run: Run, decision: Decision) -> Run:
    factors, name = run.progress.penalty_factors, str(decision.details["penalty"])
    factors[name] = factors.get(name, 1.0) * float(decision.details["by"])
    return in_force(run)


def in_force(run: Run) -> Run:
    """The run with its penalties as strong as ``progress`` says."""
    trainee = run.trainee
    if trainee.penalties is None:
        return run
    penalties = trainee.penalties.with_factors(run.progress.penalty_factors)
    return replace(run, trainee=replace(trainee, penalties=penalties))


def _more_replay(run: Run, decision: Decision) -> Run:
    """Append a segment to the order, unless an earlier start did, and read on in the changed order."""
    mine = (decision.batch, decision.reason)
    if mine in [(change["first_batch"], change["reason"]) for change in run.order_changes]:
        return run
    if run.hooks.remix is None:
        raise RunError("nobody can change the mixture of this run")
    with run.trainee.process.main_first():
        if run.trainee.process.is_main:
            run.hooks.remix(decision)
    files = appended_files(run.out / ORDER)
    batches = replace(run.batches, order=Order.open(run.mix, *files))
    return replace(run, batches=batches, order_changes=tuple(describe_changes(run.out, files)))


def _rewind(run: Run, decision: Decision) -> Run:
    run.saver.wait()
    # The decision is on the disk: a start after a kill anywhere in here finds it and does all of this again.
    set_aside(run.out, decision)
    directory, step = run.out / CHECKPOINTS, int(decision.details["to"])
    info = next((info for info in list_checkpoints(directory) if info.step == step), None)
    if info is None:
        raise RunError(f"the checkpoint of step {step} is gone")
    state = read_state(info)
    # Loading sets what is stored: moments of a weight that had none then must not stay.
    run.trainee.optimizer.state.clear()
    load_checkpoint(info, run.trainee.model.model, run.trainee.optimizer, run.trainee.process.rank)
    restore(run.progress, run.names, state)
    return pass_over(in_force(run), decision)


def restore(progress: Progress, names: tuple[str, ...], state: dict[str, Any]) -> None:
    """Put ``progress`` back to where a checkpoint's ``state.json`` says that it was; clock and saves stay:
    ``saved_step``, ``judged_step`` and the time tell what was done."""
    for name in ("step", "batch_index", "skipped_steps", "skips_in_a_row", "last_loss"):
        setattr(progress, name, state[name])
    progress.counts = counts_from_json(names, state["sources"])
    progress.recent = RecentSteps.from_json(progress.recent.window, state["recent"])
    progress.trend = LossTrend.from_json(state.get("trend"))
    progress.rate_factor = state.get("rate_factor", 1.0)
    progress.penalty_factors = state.get("penalty_factors", {})


def pass_over(run: Run, rewind: Decision) -> Run:
    """From the step that ``rewind`` goes back to (where the run is) to the one where it was decided, training nothing.

    What was decided in between and lasts is carried out again.
    """
    progress, earlier = run.progress, run.ledger.before(rewind)
    while progress.step < rewind.step:
        batch_index = run.batches.order.next_batch(progress.batch_index)
        count_batch(progress.counts, run.batches[batch_index], applied=False)
        progress.step += 1
        progress.skipped_steps += 1
        progress.batch_index = batch_index + 1
        for decision in earlier:
            if decision.step == progress.step and decision.action in _LASTING:
                run = _ACTIONS[decision.action](run, decision)
    # These were passed over on purpose, and say nothing about spikes.
    progress.skips_in_a_row = 0
    return run


def _nothing(run: Run, _decision: Decision) -> Run:
    return run


_ACTIONS: dict[str, Callable[[Run, Decision], Run]] = {
    "lower_learning_rate": _lower,
    "more_replay": _more_replay,
    "strengthen": _strengthen,
    "rewind": _rewind,
    "stop": _nothing,  # the loop asks the ledger whether the run has ended
    "smaller_micro_batch": _nothing,  # done where memory ran out
    "skip_batch": _nothing,
}
# Done again by `pass_over`, because they hold for the rest of the run. The others were about their own step, and
# smaller micro-batches are taken from the ledger (faults/memory.py).
_LASTING = {"lower_learning_rate", "more_replay", "strengthen"}
_SAYS = {
    "lower_learning_rate": "a lower learning rate from here on",
    "more_replay": "another share of replay from here on",
    "strengthen": "a stronger penalty on leaving the base from here on",
    "rewind": "back to an earlier checkpoint, passing over what came after it",
    "stop": "the run ends here",
    "smaller_micro_batch": "smaller micro-batches from here on",
    "skip_batch": "this batch is passed over",
}


def set_aside(out: Path, rewind: Decision) -> None:
    """Move the records of the steps that ``rewind`` rolls back to ``rolled_back.jsonl``; safe to repeat."""
    if not keeps_records():
        return
    first, last = int(rewind.details["to"]), rewind.step

    def is_rolled_back(record: dict[str, Any]) -> bool:
        return bool(first < record["step"] <= last)

    kept = list(read_records(out / ROLLED_BACK))
    # Copied first and removed afterwards: after a kill in between, this tells what was copied already.
    known = {(record["rolled_back_at"], record["step"], "scores" in record) for record in kept}
    for name in (METRICS, SCORES):
        records = list(read_records(out / name))
        for record in filter(is_rolled_back, records):
            if (last, record["step"], "scores" in record) not in known:
                kept.append({"rolled_back_at": last, **record})
    write_records(out / ROLLED_BACK, kept, out)
    for name in (METRICS, SCORES):
        if (out / name).is_file():
            rest = [record for record in read_records(out / name) if not is_rolled_back(record)]
            write_records(out / name, rest, out)


def forget_rolled_back(out: Path, ledger: Ledger) -> None:
    """Drop what was set aside by decisions that are void by now."""
    valid = {rewind.step for rewind in ledger.rewinds()}
    records = list(read_records(out / ROLLED_BACK))
    if keeps_records() and any(record["rolled_back_at"] not in valid for record in records):
        write_records(out / ROLLED_BACK, [r for r in records if r["rolled_back_at"] in valid], out)


def remove_rolled_back(directory: Path, ledger: Ledger, step: int) -> None:
    """Remove the checkpoints of steps that were rolled back by a run that has reached ``step`` since."""
    for rewind in ledger.rewinds() if keeps_records() else ():
        for info in list_checkpoints(directory):
            # Not before a newer one is there: without the checkpoint that it rests on (`parent_step`) the
            # decision would be void.
            if rewind.step <= step and rewind.details["to"] < info.step < rewind.step:
                remove_checkpoint(info)
