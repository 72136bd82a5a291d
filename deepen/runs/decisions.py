"""What the training of a run decided about itself, for people and for later runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepen.errors import RunError
from deepen.formats.documents.quarantine import quarantine_records
from deepen.formats.training.decisions import DECISIONS, Decision, read_decisions
from deepen.runs.directory import check_is_run, stage_directory


def decisions_of(run: Path) -> list[Decision]:
    """The decisions of a run's training, finished or not; none where nothing was decided."""
    return read_decisions(stage_directory(run, "train") / DECISIONS)


def quarantined(run: Path) -> list[dict[str, Any]]:
    """The documents that the decisions of a run name; raises ``RunError`` when it has not trained yet."""
    check_is_run(run)
    if not stage_directory(run, "train").is_dir():
        raise RunError(f"the training of `{run}` has not begun", hint="run it first: `deepen run RECIPE`")
    return list(quarantine_records(decisions_of(run)))
