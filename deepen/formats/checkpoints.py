"""Checkpoints of a training run: ``checkpoints/step-000100/`` with ``manifest.json`` inside.

A checkpoint directory appears by a rename when it is complete and synced, so its presence means that it was finished;
the hashes in its manifest say whether it still is what was written. This module lists and verifies them without torch;
the training stage writes and loads them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deepen.errors import DamageError
from deepen.formats.atomic import FileEntry, damage
from deepen.formats.manifest import MANIFEST
from deepen.settings import Many, Settings

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"

_NAME = re.compile(r"step-(\d{6,})")


class CheckpointManifest(Settings):
    """Contents of a checkpoint's ``manifest.json``."""

    step: int
    """Optimizer steps that were finished."""
    fingerprint: str
    """Identity of the training stage that wrote it."""
    milestone: bool
    """Kept when older checkpoints are pruned."""
    files: Many[FileEntry]


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint directory."""

    step: int
    path: Path

    @property
    def weights(self) -> Path:
        """The model's weights, under their Hugging Face names."""
        return self.path / WEIGHTS


def checkpoint_name(step: int) -> str:
    """Directory name of a checkpoint: ``step-000100``."""
    return f"step-{step:06d}"


def list_checkpoints(directory: Path) -> list[CheckpointInfo]:
    """The complete checkpoints in a ``checkpoints`` directory, oldest first; contents are not looked at."""
    if not directory.is_dir():
        return []
    found = [(_NAME.fullmatch(path.name), path) for path in directory.iterdir()]
    complete = [
        CheckpointInfo(int(name[1]), path) for name, path in found if name is not None and (path / MANIFEST).is_file()
    ]
    return sorted(complete, key=lambda info: info.step)


def read_checkpoint(info: CheckpointInfo) -> CheckpointManifest:
    """The manifest of a checkpoint; raises ``DamageError`` when it cannot be read."""
    path = info.path / MANIFEST
    try:
        return CheckpointManifest.model_validate_json(path.read_bytes(), strict=False)
    except (OSError, ValidationError) as error:
        raise DamageError(f"`{path}` cannot be read: {error}", hint="remove this checkpoint directory") from error


def read_state(info: CheckpointInfo) -> dict[str, Any]:
    """The contents of ``state.json``: step, batch index, counts; see the docs of file formats."""
    state = json.loads((info.path / STATE).read_text(encoding="utf-8"))
    assert isinstance(state, dict)
    return state


def verify(info: CheckpointInfo) -> list[str]:
    """Everything that is wrong with a checkpoint, by hashing all its files; empty when it is intact."""
    try:
        manifest = read_checkpoint(info)
    except DamageError as error:
        return [error.message]
    problems = [problem for entry in manifest.files if (problem := damage(entry, info.path))]
    if {WEIGHTS, OPTIMIZER, STATE} - {entry.path for entry in manifest.files} or manifest.step != info.step:
        problems.append(f"`{info.path / MANIFEST}` does not describe this checkpoint")
    return problems


def newest_intact(directory: Path, say: Callable[[str], None]) -> CheckpointInfo | None:
    """The newest checkpoint whose files are what was written; damaged ones are passed over, each with a message."""
    for info in reversed(list_checkpoints(directory)):
        problems = verify(info)
        if not problems:
            return info
        say(f"checkpoint {info.path.name} is damaged and passed over: {'; '.join(problems)}")
    return None


def remove_checkpoint(info: CheckpointInfo) -> None:
    """Delete a checkpoint; its manifest goes first, so that a kill half-way leaves nothing that looks complete."""
    (info.path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(info.path)
