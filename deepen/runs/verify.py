"""Check the bytes on disk against every manifest of a run, checkpoints included, and say what little mends them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deepen.errors import DamageError, RunError
from deepen.formats.files.atomic import damage
from deepen.formats.files.own_hash import own_hash_fault
from deepen.formats.manifest import MANIFEST, Artifact, open_artifact
from deepen.formats.training.checkpoints import CheckpointInfo, checkpoint_at, is_resumable, list_checkpoints
from deepen.formats.training.checkpoints import verify as verify_checkpoint
from deepen.formats.unchanged import remedy
from deepen.progress import track
from deepen.runs.directory import STAGE_NAMES, stage_directory

REPORT = "report.html"


@dataclass(frozen=True)
class VerifyResult:
    """What was checked and what is damaged."""

    num_files: int
    num_bytes: int
    damages: list[str]
    remedies: list[str] = field(default_factory=list)
    """The smallest things that mend the damages, in the order in which they are to be done."""


def verify(path: Path) -> VerifyResult:
    """Hash every file of a run (or of one stage or checkpoint) again and compare with the manifests.

    Raises ``RunError`` when there is nothing to check.
    """
    if (checkpoint := checkpoint_at(path)) is not None:
        faults = verify_checkpoint(checkpoint)
        mends = [_of_checkpoints(path.parents[1], [checkpoint])] if faults else []
        return VerifyResult(1, sum(file.stat().st_size for file in path.iterdir()), faults, mends)
    damages: list[str] = []
    remedies: list[str] = []
    artifacts: list[Artifact] = []
    one = (path / MANIFEST).is_file()
    for directory in [path] if one else [stage_directory(path, name) for name in STAGE_NAMES]:
        try:
            found = open_artifact(directory)
        except DamageError as error:
            damages.append(error.message)
            remedies.append(remedy(directory))
            continue
        artifacts += [found] if found is not None else []
    checkpoints = [info for folder in (path, path / "train") for info in list_checkpoints(folder / "checkpoints")]
    if not artifacts and not checkpoints and not damages:
        raise RunError(f"`{path}` has nothing to verify", hint="give a run directory or a finished stage of one")
    num_bytes = sum(entry.bytes for artifact in artifacts for entry in artifact.manifest.files)
    num_files = sum(len(artifact.manifest.files) for artifact in artifacts) + len(checkpoints)
    with track("verify", total=num_bytes, unit="B") as tracker:
        for artifact in artifacts:
            names = []
            for entry in artifact.manifest.files:
                if (wrong := damage(entry, artifact.path)) is not None:
                    damages.append(wrong)
                    names.append(entry.path)
                tracker.advance(entry.bytes)
            if any(not name.startswith("checkpoints/") for name in names):
                remedies.append(_of_stage(artifact, names))
    damaged = [info for info in checkpoints if _note(verify_checkpoint(info), damages)]
    train = path if path.name == "train" else path / "train"
    if damaged and not any(f"deepen train {train.parent} " in line for line in remedies):
        remedies.append(_of_checkpoints(train, damaged))
    _check_report(path / REPORT, damages, remedies)
    return VerifyResult(num_files, num_bytes, damages, list(dict.fromkeys(remedies)))


def _note(wrong: list[str], damages: list[str]) -> bool:
    """Add what is not named yet to ``damages``; whether anything is wrong at all."""
    damages += [line for line in wrong if line not in damages]
    return bool(wrong)


def _check_report(report: Path, damages: list[str], remedies: list[str]) -> None:
    fault = own_hash_fault(report) if report.is_file() else None
    if fault is not None:
        damages.append(fault)
        remedies.append(f"`deepen report {report.parent}` writes the report anew")


def _of_stage(artifact: Artifact, names: list[str]) -> str:
    """What mends a stage of which files other than checkpoints are damaged."""
    told = remedy(artifact.path)
    if artifact.manifest.stage == "train":
        told += " (all of the training: its records are damaged, and not only checkpoints)"
    shards = {Path(name).name.partition(".")[0] for name in names if name.startswith("shards/")}
    if artifact.manifest.stage == "tokenize" and all(name.startswith("shards/") for name in names):
        told += f": only {', '.join(sorted(shards))} is encoded again"
    return told


def _of_checkpoints(train: Path, damaged: list[CheckpointInfo]) -> str:
    """What mends a training of which checkpoints are damaged, and how much of it is done again."""
    steps = {info.step for info in damaged}
    intact = [
        info
        for info in list_checkpoints(train / "checkpoints")
        if info.step not in steps and is_resumable(info) and not verify_checkpoint(info)
    ]
    names = ", ".join(info.path.name for info in damaged)
    if not intact:
        return f"{remedy(train)}: no checkpoint is intact, so all of the training"
    last = intact[-1]
    if max(steps) < last.step:
        return f"{remedy(train)}: {names} is left out, nothing is trained again"
    return f"{remedy(train)}: training goes on from {last.path.name}, the newest intact checkpoint"
