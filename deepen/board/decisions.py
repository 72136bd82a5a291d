"""What a training decided about itself, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deepen.board import charts
from deepen.board.page import Section, table
from deepen.formats.manifest import Artifact
from deepen.formats.training.decisions import Decision
from deepen.formats.training.scores import SCORES, score_records
from deepen.runs.decisions import decisions_of

COLUMNS = ("step", "action", "by", "change", "outcome", "why")


def decision_rows(decisions: Sequence[Decision]) -> list[tuple[Any, ...]]:
    """A row under ``COLUMNS`` for each decision; steps that were skipped one by one share one."""
    rows: list[tuple[Any, ...]] = [
        (d.step, d.action, d.by, _change_of(d), "done" if d.cannot is None else f"cannot: {d.cannot}", d.reason)
        for d in decisions
        if d.action != "skip_batch"
    ]
    skipped = [decision for decision in decisions if decision.action == "skip_batch"]
    if skipped:
        steps = f"{skipped[0].step} to {skipped[-1].step}" if len(skipped) > 1 else str(skipped[0].step)
        batches = f"{len(skipped)} batches" if len(skipped) > 1 else "1 batch"
        rows.append((steps, "skip_batch", skipped[-1].by, batches, "done", skipped[-1].reason))
    return rows


def _change_of(decision: Decision) -> str:
    """What an action changes, in a word or two."""
    details = decision.details
    match decision.action:
        case "lower_learning_rate":
            return f"x {details.get('to')}"
        case "more_replay":
            share = f", to {details['domain_share']:.0%} domain" if "domain_share" in details else ""
            return f"{100 * details.get('by', 0):+.3g} points of replay{share}"
        case "strengthen":
            return f"{details.get('penalty')} x {details.get('by')}"
        case "rewind":
            return f"to step {details['to']}" if "to" in details else ""
        case "smaller_micro_batch":
            return f"{details.get('from')} to {details.get('rows')} rows"
    return ""


def timeline_sections(run: Path, train: Artifact, budget: float) -> Iterator[Section]:
    """A section when something was decided during training: the kept ability over time, marks, and a table."""
    decisions = decisions_of(run)
    if not decisions:
        return
    scores = score_records(train.path / SCORES)
    kept = [
        (one["step"], score)
        for one in scores
        for score in one["scores"]
        if (score["probe"], score["ability"]) == ("held_out", "kept")
    ]
    done = [one for one in decisions if one.cannot is None]
    by_monitor = sum(one.by == "forgetting" for one in done)
    lead = f"{len(done)} decisions during training, {by_monitor} of them by the forgetting monitor."
    chart = charts.timeline_chart(kept, budget, [one.record() for one in done]) if kept else ""
    yield Section("What the run decided", lead, chart + table(COLUMNS, decision_rows(decisions)))
