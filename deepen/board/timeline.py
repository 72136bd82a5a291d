"""The part of the report about what a run decided about itself, and when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deepen.board import charts
from deepen.board.page import Section, table
from deepen.formats.manifest import Artifact
from deepen.formats.records import read_records

_COLUMNS = ("step", "decided by", "what", "why", "details")


def timeline_sections(train: Artifact, budget: float) -> Iterator[Section]:
    """A section when something was decided during training: the kept ability over time, marks, and a table."""
    decisions = list(read_records(train.path / "decisions.jsonl"))
    if not decisions:
        return
    scores = list(read_records(train.path / "scores.jsonl"))
    kept = [
        (one["step"], score)
        for one in scores
        for score in one["scores"]
        if (score["probe"], score["ability"]) == ("held_out", "kept")
    ]
    done = [one for one in decisions if not one.get("cannot")]
    by_monitor = sum(one.get("by") == "forgetting" for one in done)
    lead = f"{len(done)} decisions during training, {by_monitor} of them by the forgetting monitor."
    chart = charts.timeline_chart(kept, budget, done) if kept else ""
    yield Section("What the run decided", lead, chart + table(_COLUMNS, [_row(one) for one in decisions]))


def _row(decision: dict[str, Any]) -> tuple[Any, ...]:
    what = decision["action"].replace("_", " ")
    if decision.get("cannot"):
        what += f" (not done: {decision['cannot']})"
    details = [_detail(key, value) for key, value in decision.get("details", {}).items()]
    documents = decision.get("documents", [])
    if documents:
        details.append(f"{len(documents)} documents")
    return decision["step"], decision.get("by", ""), what, decision["reason"], ", ".join(details)


def _detail(key: str, value: Any) -> str:
    return f"{key.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
