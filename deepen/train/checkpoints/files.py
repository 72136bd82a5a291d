"""Writing and loading checkpoints: weights, optimizer, position in the data, random state. Safetensors, never pickle.

A checkpoint is built in ``step-N.tmp/``, every file hashed while it is written and synced; the manifest goes in last,
then the directory is renamed. Tensors are streamed one after another: writing itself needs no second copy of the model
(``saving.py`` makes one where training is to go on meanwhile).
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from deepen.formats.files.atomic import FileEntry, sync_directory, write_json
from deepen.formats.files.records import keeps_records
from deepen.formats.manifest import MANIFEST
from deepen.formats.training.checkpoints import (
    OPTIMIZER,
    STATE,
    WEIGHTS,
    CheckpointInfo,
    CheckpointManifest,
    checkpoint_name,
    list_checkpoints,
    read_state,
    remove_checkpoint,
)
from deepen.model.weights.load import load_weights, stored_weights
from deepen.model.weights.pieces import StoredTensors, local_box, local_part
from deepen.model.weights.tensor_files import write_tensors

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_CPU_RANDOM_STATE = "random.cpu"
_GPU_RANDOM_STATE = "random.cuda"


@dataclass(frozen=True)
class Marks:
    """What a checkpoint's manifest says about it, besides what it holds; meanings as in ``CheckpointManifest``."""

    milestone: bool = False
    begins_decay: bool = False
    good: bool = False
    new: float | None = None
    kept: float | None = None
    awaits_scores: bool = False


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is written from. Its tensors may be those that training moves: see ``Saver``."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    """Moments by ``MOMENT/NAME``, and the states of the random generators."""
    state: Mapping[str, Any]
    """Contents of ``state.json``; at least ``step`` and ``fingerprint``."""
    marks: Marks

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = (*self.weights.values(), *self.optimizer.values())
        return sum(tensor.nbytes for tensor in tensors)


def snapshot_of(model: PreTrainedModel, optimizer: AdamW, state: Mapping[str, Any], marks: Marks) -> Snapshot:
    """The present state of a run: weights and moments themselves, and copies of everything else."""
    moments = _optimizer_tensors(model, optimizer)
    return Snapshot(stored_weights(model), {**moments, **_random_state()}, copy.deepcopy(dict(state)), marks)


def write_checkpoint(directory: Path, snapshot: Snapshot) -> CheckpointInfo:
    """Write a snapshot into ``directory`` (``train/checkpoints``); an equal one is replaced."""
    final, temporary = places_of(directory, snapshot)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    files = (
        write_tensors(temporary / WEIGHTS, snapshot.weights),
        write_tensors(temporary / OPTIMIZER, snapshot.optimizer),
    )
    commit_checkpoint(temporary, final, snapshot, files)
    return final


def places_of(directory: Path, snapshot: Snapshot) -> tuple[CheckpointInfo, Path]:
    """Where the checkpoint of a snapshot will lie, and where it is built."""
    step = int(snapshot.state["step"])
    name = checkpoint_name(step)
    return CheckpointInfo(step, directory / name), directory / f"{name}.tmp"


def commit_checkpoint(temporary: Path, final: CheckpointInfo, snapshot: Snapshot, tensors: Sequence[FileEntry]) -> None:
    """All files of ``tensors`` being there, add state and manifest, and give the directory its name."""
    files = (*tensors, write_json(temporary / STATE, dict(snapshot.state)))
    manifest = CheckpointManifest(
        step=final.step, fingerprint=str(snapshot.state["fingerprint"]), files=files, **asdict(snapshot.marks)
    )
    write_json(temporary / MANIFEST, manifest.model_dump(mode="json"))
    if final.path.exists():  # left by an earlier start: a directory cannot be renamed onto a full one
        remove_checkpoint(final)
    temporary.replace(final.path)
    # A rename is lost when power fails unless the directory is synced, too.
    sync_directory(final.path.parent)


def save_checkpoint(
    directory: Path, model: PreTrainedModel, optimizer: AdamW, state: Mapping[str, Any], *, milestone: bool
) -> CheckpointInfo:
    """Write the checkpoint of ``state["step"]`` into ``directory`` at once, while the caller waits."""
    return write_checkpoint(directory, snapshot_of(model, optimizer, state, Marks(milestone=milestone)))


def load_checkpoint(info: CheckpointInfo, model: PreTrainedModel, optimizer: AdamW, rank: int = 0) -> dict[str, Any]:
    """Put weights, optimizer and random state back as they were, bit by bit; returns ``state.json``.

    Model and optimizer may be spread over processes, of which this is ``rank``, and the checkpoint may come from any
    other number of them: each reads what it holds. Random states go back to the process they were of; a process that
    was not there takes the first one's.
    """
    load_weights(model, info.weights)
    with StoredTensors(info.path / OPTIMIZER) as stored:
        for name, parameter in model.named_parameters():
            # Frozen weights have no moments, nor has one that never had a gradient: AdamW makes them when it moves it.
            if f"step/{name}" in stored.tensors:
                optimizer.state[parameter] = {
                    # The fused AdamW wants its count of steps on the device of the parameter.
                    "step": stored.read(f"step/{name}").to(parameter.device),
                    "exp_avg": _moment(stored, f"exp_avg/{name}", parameter),
                    "exp_avg_sq": _moment(stored, f"exp_avg_sq/{name}", parameter),
                }
        torch.set_rng_state(stored.read(_of_rank(_CPU_RANDOM_STATE, rank, stored)))
        if torch.cuda.is_available() and (name := _of_rank(_GPU_RANDOM_STATE, rank, stored)) in stored.tensors:
            torch.cuda.set_rng_state(stored.read(name))
    return read_state(info)


def _moment(stored: StoredTensors, name: str, parameter: Tensor) -> Tensor:
    """A moment laid out as its parameter is."""
    part = stored.read(name, local_box(parameter))
    # Of a DTensor this is a DTensor with the same cuts, and only the local part has to be filled.
    moment = torch.zeros_like(parameter, dtype=part.dtype)
    local_part(moment).copy_(part)
    return moment


def own_random_state(optimizer: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The ``optimizer`` part of a snapshot with this process's random states under names of their own."""
    kinds = (_CPU_RANDOM_STATE, _GPU_RANDOM_STATE)
    return {(f"{name}/{rank}" if name in kinds else name): tensor for name, tensor in optimizer.items()}


def _of_rank(kind: str, rank: int, stored: StoredTensors) -> str:
    # By rank where several processes wrote; a single one stores it under `kind` itself.
    return next((name for name in (f"{kind}/{rank}", f"{kind}/0") if name in stored.tensors), kind)


def _optimizer_tensors(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    known = {name: parameter for name, parameter in model.named_parameters() if parameter in optimizer.state}
    assert len(known) == len(optimizer.state), "a parameter is not there as the optimizer knows it: gathered by FSDP?"
    return {
        f"{moment}/{name}": optimizer.state[parameter][moment]
        for name, parameter in known.items()
        for moment in _MOMENTS
    }


def _random_state() -> dict[str, Tensor]:
    states = {_CPU_RANDOM_STATE: torch.get_rng_state()}
    if torch.cuda.is_available():
        states[_GPU_RANDOM_STATE] = torch.cuda.get_rng_state()
    return states


def remove_later(directory: Path, step: int) -> None:
    """Remove what a resume at ``step`` will write again: unfinished, damaged and pruned-half checkpoints."""
    if not keeps_records():
        return
    known = {info.path.name for info in list_checkpoints(directory) if info.step <= step}
    # Also `step-N.tmp` of a kill, and folders without a manifest, which list_checkpoints does not see.
    for path in sorted(directory.glob("step-*")):
        if path.name not in known:
            (path / MANIFEST).unlink(missing_ok=True)  # first: a kill half-way leaves nothing that looks complete
            shutil.rmtree(path)


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints stay besides those that have a role of their own."""

    newest: int
    weights_only: bool = False
    """Drop the optimizer's state where no role needs it."""
