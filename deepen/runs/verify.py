"""Check the bytes on disk against every manifest of a run, checkpoints included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepen.errors import RunError
from deepen.formats.files.atomic import damage
from deepen.formats.manifest import Artifact, open_artifact
from deepen.formats.training.checkpoints import checkpoint_at, list_checkpoints
from deepen.formats.training.checkpoints import verify as verify_checkpoint
from deepen.progress import track
from deepen.runs.directory import STAGE_NAMES, stage_directory


@dataclass(frozen=True)
class VerifyResult:
    """What was checked and what is damaged."""

    num_files: int
    num_bytes: int
    damages: list[str]


def verify(path: Path) -> VerifyResult:
    """Hash every file of a run (or of one stage or checkpoint) again and compare with the manifests.

    Raises ``RunError`` when there is nothing to check.
    """
    if (checkpoint := checkpoint_at(path)) is not None:
        return VerifyResult(1, sum(file.stat().st_size for file in path.iterdir()), verify_checkpoint(checkpoint))
    own = open_artifact(path)
    artifacts = [own] if own is not None else _artifacts(path)
    if not artifacts and not (path / "train" / "checkpoints").is_dir():
        raise RunError(f"`{path}` has nothing to verify", hint="give a run directory or a finished stage of one")
    num_bytes = sum(entry.bytes for artifact in artifacts for entry in artifact.manifest.files)
    num_files = sum(len(artifact.manifest.files) for artifact in artifacts)
    damages: list[str] = []
    with track("verify", total=num_bytes, unit="B") as tracker:
        for artifact in artifacts:
            for entry in artifact.manifest.files:
                wrong = damage(entry, artifact.path)
                damages += [wrong] if wrong else []
                tracker.advance(entry.bytes)
    for directory in [path, path / "train"]:
        for checkpoint in list_checkpoints(directory / "checkpoints"):
            damages += [line for line in verify_checkpoint(checkpoint) if line not in damages]
            num_files += 1
    return VerifyResult(num_files, num_bytes, damages)


def _artifacts(run: Path) -> list[Artifact]:
    found = (open_artifact(stage_directory(run, name)) for name in STAGE_NAMES)
    return [artifact for artifact in found if artifact is not None]
