"""The part of the report about what a run decided about itself, and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deepen.board import charts
from deepen.board.decisions import COLUMNS, decision_rows
from deepen.board.page import Section, table
from deepen.formats.manifest import Artifact
from deepen.formats.training.scores import SCORES, score_records
from deepen.runs.decisions import decisions_of


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
