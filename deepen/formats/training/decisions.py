"""What a run decided about itself: ``train/decisions.jsonl``, written and synced before anything is done.

A resumed run does what is recorded at the step where it was decided and asks nobody again, so that it goes the way of
the undisturbed one. A decision is void when training goes back, on purpose, to before the checkpoint that it rests on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deepen.formats.files.records import cut_torn_line, keeps_records, read_models, write_records
from deepen.settings import Many, Settings

DECISIONS = "decisions.jsonl"

Action = Literal[
    "skip_batch", "lower_learning_rate", "more_replay", "strengthen", "rewind", "smaller_micro_batch", "stop"
]
Decider = Literal["spikes", "divergence", "forgetting", "memory", "user"]


class Decision(Settings):
    """One thing that was decided; see the docs of training for what each action does."""

    step: int
    """Finished steps when it was decided (of ``skip_batch`` the step that changed nothing)."""
    action: Action
    """What is done."""
    batch: int = 0
    """The first batch that it holds for; of ``skip_batch`` the batch that was passed over. Filled in by the loop."""
    by: Decider = "spikes"
    """Who decided."""
    reason: str
    """Why, for people, with the numbers."""
    details: dict[str, Any] = {}
    """What the action needs: ``to`` (the factor of ``lower_learning_rate``; the step that ``rewind`` goes back to,
    filled in by the loop), ``by`` (points of token share that ``more_replay`` moves to replay, 0.1 for ten; negative
    gives back; the factor of ``strengthen``, whose ``penalty`` says of what), ``rows`` (of ``smaller_micro_batch``)."""
    documents: Many[str] = ()
    """``SOURCE:DOCUMENT_ID`` of what was in the batches that are suspected."""
    parent_step: int = 0
    """The newest checkpoint then; going back beyond it makes the decision void. Filled in by the loop."""
    cannot: str | None = None
    """Why the action could not be carried out; None: it was."""

    def record(self) -> dict[str, Any]:
        """The decision as a line of ``decisions.jsonl``."""
        return self.model_dump(mode="json")


@dataclass
class Ledger:
    """The decisions of a run that are in force, those that lie ahead of a resumed run included."""

    path: Path
    decisions: list[Decision] = field(default_factory=list)
    """By step; of one step as they were made."""

    def write(self, new: Sequence[Decision]) -> None:
        """Append decisions, all in one piece, and return when they are on the disk."""
        if keeps_records():  # of several processes that decide alike one writes
            lines = "".join(json.dumps(decision.record(), ensure_ascii=False) + "\n" for decision in new)
            cut_torn_line(self.path)
            with self.path.open("ab") as file:
                # One write, so that a kill hardly ever parts decisions that belong together.
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        self.decisions = _folded([*self.decisions, *new])

    def at(self, step: int, by: Decider) -> list[Decision]:
        """What ``by`` decided at a step, other than to pass over its batch."""
        return [d for d in self.decisions if d.step == step and d.by == by and d.action != "skip_batch"]

    def skip_at(self, step: int) -> Decision | None:
        """The decision to pass over the batch of a step."""
        return next((d for d in self.decisions if d.step == step and d.action == "skip_batch"), None)

    def until(self, step: int) -> tuple[Decision, ...]:
        """Everything that was decided up to a step."""
        return tuple(d for d in self.decisions if d.step <= step)

    def rewinds(self) -> list[Decision]:
        """Every return to an earlier checkpoint that was carried out."""
        return [d for d in self.decisions if d.action == "rewind" and d.cannot is None]

    def rewind_from(self, step: int) -> Decision | None:
        """The last recorded return to this step: training does not go on from here, but from where it was decided."""
        return next((d for d in reversed(self.rewinds()) if d.details["to"] == step < d.step), None)

    def before(self, rewind: Decision) -> list[Decision]:
        """What was decided, and done, between the step that ``rewind`` goes back to and ``rewind`` itself."""
        earlier = self.decisions[: self.decisions.index(rewind)]
        return [d for d in earlier if d.step > rewind.details["to"] and d.cannot is None]

    def stop_until(self, step: int) -> Decision | None:
        """The decision that ended the run, if one did by this step."""
        return next((d for d in self.until(step) if d.action == "stop" and d.cannot is None), None)

    def resume_limit(self, step: int) -> int:
        """The step up to which a run may resume whose newest checkpoint has ``step``: not within what was rolled
        back."""
        for rewind in reversed(self.rewinds()):
            # The newest rewind first: one may lead to a step that an earlier one has rolled back.
            if rewind.details["to"] < step < rewind.step:
                step = int(rewind.details["to"])
        return step


def read_decisions(path: Path) -> list[Decision]:
    """The decisions in a file, by step; none when it does not exist. Raises ``DamageError`` for what is no decision."""
    return _folded(list(read_models(path, Decision)))


def open_ledger(path: Path, reached: int) -> tuple[Ledger, list[Decision]]:
    """The decisions that hold for a run whose newest checkpoint has ``reached`` steps, and those that are void.

    The file is cut back to the former.
    """
    found = read_decisions(path)
    kept = [decision for decision in found if decision.parent_step <= reached]
    if path.is_file() and keeps_records():
        write_records(path, [decision.record() for decision in kept], path.parent)
    return Ledger(path, kept), [decision for decision in found if decision.parent_step > reached]


def drop_decisions_after(path: Path, step: int) -> None:
    """Make void what was decided after ``step``, where the run is to go another way from there."""
    found = read_decisions(path)
    if any(decision.step > step for decision in found):
        write_records(path, [decision.record() for decision in found if decision.step <= step], path.parent)


def _folded(decisions: Sequence[Decision]) -> list[Decision]:
    """By step; a decision that turned out impossible replaces itself."""
    kept: list[Decision] = []
    for decision in sorted(decisions, key=lambda decision: decision.step):
        if decision.cannot is not None:
            # The same but for `cannot`.
            kept = [d for d in kept if d.model_copy(update={"cannot": decision.cannot}) != decision]
        kept.append(decision)
    return kept
