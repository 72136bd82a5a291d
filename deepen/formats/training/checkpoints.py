"""Checkpoints of a training run: ``checkpoints/step-000100/`` with ``manifest.json`` inside.

A checkpoint directory appears by a rename when it is complete and synced, so its presence means that it was finished;
the hashes in its manifest say whether it still is what was written. This module lists and verifies them without torch;
the training stage writes and loads them. What each is kept for is in ``roles.py``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.errors import DamageError
from deepen.formats.files.atomic import FileEntry, damage, sync_directory, write_json
from deepen.formats.files.json_text import read_model, read_object
from deepen.formats.manifest import MANIFEST
from deepen.settings import Many, Settings

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
LAYOUT = "layout.json"
"""Of a checkpoint that several processes wrote: which box of which tensor is in which file. Then weights lie in
``model-0000I-of-0000N.safetensors`` and moments in ``optimizer-...``."""

_NAME = re.compile(r"step-(\d{6,})")


class CheckpointManifest(Settings):
    """Contents of a checkpoint's ``manifest.json``."""

    step: int
    """Optimizer steps that were finished."""
    fingerprint: str
    """Identity of the training stage that wrote it."""
    milestone: bool
    """Kept when older checkpoints are pruned."""
    begins_decay: bool = False
    """The learning rate decays from here on: a longer continuation starts here, so the optimizer's state stays."""
    good: bool = False
    """The last step was no spike and, where the run is scored, this checkpoint was, within the forgetting budget."""
    new: float | None = None
    """Relative change of the new ability against the base, where the model was scored; negative is better."""
    kept: float | None = None
    """Relative change of the kept ability; positive is forgetting."""
    awaits_scores: bool = False
    """Another process is to score it, and it stays until then."""
    scored_late: bool = False
    """Another process has scored it: ``good``, ``new`` and ``kept`` were filled in later."""
    weights_only: bool = False
    """The optimizer's state was dropped: it can be scored, chosen and exported, but training cannot go on from it."""
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


def checkpoint_at(path: Path) -> CheckpointInfo | None:
    """The checkpoint in the directory ``path``; None when it is no complete one."""
    name = _NAME.fullmatch(path.name)
    return CheckpointInfo(int(name[1]), path) if name is not None and (path / MANIFEST).is_file() else None


def list_checkpoints(directory: Path) -> list[CheckpointInfo]:
    """The complete checkpoints in a ``checkpoints`` directory, oldest first; contents are not looked at."""
    if not directory.is_dir():
        return []
    found = [info for path in directory.iterdir() if (info := checkpoint_at(path)) is not None]
    return sorted(found, key=lambda info: info.step)


def read_checkpoint(info: CheckpointInfo) -> CheckpointManifest:
    """The manifest of a checkpoint; raises ``DamageError`` when it cannot be read."""
    return read_model(info.path / MANIFEST, CheckpointManifest, hint="remove this checkpoint directory")


def read_state(info: CheckpointInfo) -> dict[str, Any]:
    """The contents of ``state.json``: step, batch index, counts; see the docs of file formats.

    Raises ``DamageError`` when it cannot be read.
    """
    return read_object(info.path / STATE, hint="remove this checkpoint directory")


def verify(info: CheckpointInfo) -> list[str]:
    """Everything that is wrong with a checkpoint, by hashing all its files; empty when it is intact."""
    try:
        manifest = read_checkpoint(info)
    except DamageError as error:
        return [error.message]
    problems = [problem for entry in manifest.files if (problem := damage(entry, info.path))]
    if _missing(manifest) or manifest.step != info.step:
        problems.append(f"`{info.path / MANIFEST}` does not describe this checkpoint")
    return problems


def _missing(manifest: CheckpointManifest) -> set[str]:
    """What a manifest must name and does not."""
    names = {entry.path for entry in manifest.files}
    if LAYOUT in names:
        return {STATE} - names
    return {WEIGHTS, STATE} - names if manifest.weights_only else {WEIGHTS, OPTIMIZER, STATE} - names


def _is_of_optimizer(name: str) -> bool:
    return name == OPTIMIZER or (name.startswith("optimizer-") and name.endswith(".safetensors"))


def is_of_weights(name: str) -> bool:
    """Whether a file of a checkpoint holds weights, or says where they are."""
    return name == LAYOUT or (name.endswith(".safetensors") and not _is_of_optimizer(name))


def is_resumable(info: CheckpointInfo) -> bool:
    """Whether training can go on from a checkpoint: it still has the optimizer's state. Damage is not looked for."""
    try:
        return not read_checkpoint(info).weights_only
    except DamageError:
        return False


def newest_intact(directory: Path, say: Callable[[str], None]) -> CheckpointInfo | None:
    """The newest checkpoint that training can go on from and whose files are what was written.

    Damaged ones, and those that hold weights only, are passed over, each with a message.
    """
    for info in reversed(list_checkpoints(directory)):
        problems = verify(info)
        if problems:
            say(f"checkpoint {info.path.name} is damaged and passed over: {'; '.join(problems)}")
        elif not is_resumable(info):
            say(f"checkpoint {info.path.name} holds weights only and is passed over")
        else:
            return info
    return None


def checkpoint_before(directory: Path, step: int, *, good_only: bool) -> CheckpointInfo | None:
    """The newest intact checkpoint of fewer than ``step`` finished steps that training can go back to, or None.

    With ``good_only`` only one whose manifest says ``good``. Files are hashed before they are believed.
    """
    for info in reversed(list_checkpoints(directory)):
        fits = info.step < step and is_resumable(info) and not verify(info)  # `verify` hashes gigabytes: asked last
        if fits and (not good_only or read_checkpoint(info).good):
            return info
    return None


def mark_scored(info: CheckpointInfo, *, good: bool, new: float | None, kept: float | None) -> None:
    """Fill in, atomically, what the scores of another process say about a checkpoint."""
    _remark(info, {"awaits_scores": False, "scored_late": True, "good": good, "new": new, "kept": kept})


def unmark_scored(info: CheckpointInfo) -> None:
    """Take back ``mark_scored``: the run is back where these scores are not known yet."""
    _remark(info, {"awaits_scores": True, "scored_late": False, "good": False, "new": None, "kept": None})


def _remark(info: CheckpointInfo, marks: dict[str, Any]) -> None:
    changed = read_checkpoint(info).model_copy(update=marks)
    write_json(info.path / MANIFEST, changed.model_dump(mode="json"))


def drop_optimizer(info: CheckpointInfo) -> None:
    """Leave of a checkpoint what scoring and exporting need: weights and ``state.json``.

    The manifest changes first, atomically, so that a kill leaves an intact checkpoint of one kind or the other; a file
    that a kill left behind goes the next time.
    """
    manifest = read_checkpoint(info)
    if not manifest.weights_only:
        files = tuple(entry for entry in manifest.files if not _is_of_optimizer(entry.path))
        changed = manifest.model_copy(update={"weights_only": True, "files": files})
        write_json(info.path / MANIFEST, changed.model_dump(mode="json"))
    left = [path for path in info.path.iterdir() if _is_of_optimizer(path.name)]  # also those of an earlier try
    for path in left:
        path.unlink()
    if left:
        sync_directory(info.path)


def remove_checkpoint(info: CheckpointInfo) -> None:
    """Delete a checkpoint; its manifest goes first, so that a kill half-way leaves nothing that looks complete.

    What another thread removes at the same time (pruning behind training does) is no error.
    """
    (info.path / MANIFEST).unlink(missing_ok=True)
    while info.path.exists():
        try:
            shutil.rmtree(info.path)
        except FileNotFoundError:
            continue
