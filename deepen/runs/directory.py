"""A run directory: which stages lie in it, finished or not. What only looks at a run begins here."""

from __future__ import annotations

from pathlib import Path

from deepen.errors import RunError
from deepen.formats.manifest import Artifact, open_artifact

STAGE_NAMES = ("ingest", "curate", "tokenize", "mix", "baseline", "train", "evaluate", "select", "export")
"""All stages in the order in which they run; each is a folder of the run."""


def stage_directory(run: Path, name: str) -> Path:
    """Where a stage of ``run`` keeps its artifact."""
    return run / name


def check_is_run(run: Path) -> None:
    """Raise ``RunError`` when ``run`` is no run directory, however little was done in it."""
    if not run.is_dir() or not any((run / name).exists() for name in (*STAGE_NAMES, "recipe.yaml")):
        raise RunError(
            f"`{run}` is no run directory", hint="give the folder that `deepen run` printed, such as runs/NAME"
        )


def finished_stages(run: Path) -> dict[str, Artifact]:
    """All finished stages of a run directory, in pipeline order."""
    found = {name: open_artifact(stage_directory(run, name)) for name in STAGE_NAMES}
    return {name: artifact for name, artifact in found.items() if artifact is not None}
