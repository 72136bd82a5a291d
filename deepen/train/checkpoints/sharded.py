"""Checkpoints of several processes: each writes what it holds, and of what several hold one of them writes it.

Beside the files of pieces lies ``layout.json``; otherwise all is as for one process: built in ``step-N.tmp/``, hashed
while it is written, manifest last, then renamed, by rank 0 once all the others are done. They agree on a group of their
own, because the thread that writes runs beside training: on the groups of training it would mix up their messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from deepen.errors import TrainingError
from deepen.formats.files.atomic import FileEntry, sync_file, write_bytes
from deepen.formats.training.checkpoints import LAYOUT, OPTIMIZER, WEIGHTS, CheckpointInfo
from deepen.formats.training.roles import prune
from deepen.model.weights.pieces import Box, Described, Piece, layout_of, local_box, local_part
from deepen.model.weights.tensor_files import write_tensors
from deepen.parallel.process import Process
from deepen.parallel.processes.gang import process_name
from deepen.train.checkpoints.files import (
    Keeping,
    Marks,
    Snapshot,
    commit_checkpoint,
    own_random_state,
    places_of,
    snapshot_of,
)

_PATIENCE = 3
"""How often ``mesh.timeout_seconds`` the fastest disk waits for the slowest."""

Key = tuple[str, Box]
"""A box of the tensor of that name."""


@dataclass(frozen=True)
class SharedSnapshot(Snapshot):
    """The tensors that this process writes of a checkpoint, and where all of them will be."""

    layout: Mapping[str, Mapping[str, Described]] | None = None
    """By file (as for one process) and name."""


class Shards:
    """Takes snapshots of a state that is spread over processes, and writes them together; one per run."""

    def __init__(self, process: Process) -> None:
        """All processes at the same time: it makes a group."""
        assert process.mesh is not None, "a process that is alone has no one to share a checkpoint with"
        self._rank, self._world_size, self._control = process.rank, process.world_size, process.mesh.control
        patience = timedelta(seconds=_PATIENCE * process.mesh.settings.timeout_seconds)
        self._writers: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=patience)
        self._held: tuple[Any, ...] = ()
        self._plans: dict[str, dict[Key, int]] = {}

    def snapshot(
        self, model: PreTrainedModel, optimizer: AdamW, state: Mapping[str, Any], marks: Marks
    ) -> SharedSnapshot:
        """The present state, of which this process keeps what it writes; all processes at the same time."""
        all_of_it = snapshot_of(model, optimizer, state, marks)
        parts = {WEIGHTS: all_of_it.weights, OPTIMIZER: own_random_state(all_of_it.optimizer, self._rank)}
        held = {file: _boxes(tensors) for file, tensors in parts.items()}
        self._plan(held)
        mine = {
            file: {name: local_part(parts[file][name]) for (name, _), owner in plan.items() if owner == self._rank}
            for file, plan in self._plans.items()
        }
        shapes = {file: self._shapes[file] for file in parts}
        layout = {file: _described(plan, shapes[file], file, self._world_size) for file, plan in self._plans.items()}
        return SharedSnapshot(mine[WEIGHTS], mine[OPTIMIZER], all_of_it.state, marks, layout)

    def _plan(self, held: Mapping[str, Mapping[str, tuple[Box, tuple[int, ...], int]]]) -> None:
        """Decide who writes what; talked over only when what somebody holds has changed since the last time."""
        summary = tuple((file, name, found) for file, tensors in held.items() for name, found in tensors.items())
        changed = torch.tensor(int(summary != self._held))
        dist.all_reduce(changed, dist.ReduceOp.MAX, group=self._control)
        # The usual case: one small all-reduce for each save, instead of gathering the boxes of all tensors.
        if not changed:
            return
        everyone: list[Any] = [None] * self._world_size
        dist.all_gather_object(everyone, held, group=self._control)
        self._held = summary
        # One list for both files: who writes fewer weights writes more moments.
        loads = [0] * self._world_size
        self._plans = {file: owners([one[file] for one in everyone], loads) for file in held}
        self._shapes = {
            file: {name: shape for one in everyone for name, (_, shape, _) in one[file].items()} for file in held
        }

    def write(self, directory: Path, keeping: Keeping, metrics: Path, snapshot: Snapshot) -> None:
        """Write a snapshot into ``directory`` together with the others and remove what need not stay.

        Returns on all processes when all of it is durable, and raises on all of them when one could not write.
        """

        def finish() -> tuple[FileEntry, ...]:
            if self._rank == 0:
                prune(directory, keeping.newest, weights_only=keeping.weights_only)
            return ()

        self.write_into(directory, snapshot, metrics)
        self._on_all(finish)

    def write_into(self, directory: Path, snapshot: Snapshot, metrics: Path | None = None) -> CheckpointInfo:
        """Write a snapshot together with the others, and nothing else; ``metrics`` is on the disk before it is."""
        snapshot = cast(SharedSnapshot, snapshot)
        final, aside = places_of(directory, snapshot)
        written = self._on_all(lambda: self._write_mine(aside, snapshot))
        # All parts are on the disk from here on; before, a manifest would name what may never be written.
        entries = [entry for found in written for entry in found]

        def commit() -> tuple[FileEntry, ...]:
            if self._rank == 0:
                if metrics is not None and metrics.is_file():
                    sync_file(metrics)
                _commit(aside, final, snapshot, entries)
            return ()

        self._on_all(commit)
        return final

    def _write_mine(self, aside: Path, snapshot: SharedSnapshot) -> tuple[FileEntry, ...]:
        aside.mkdir(parents=True, exist_ok=True)
        files = ((WEIGHTS, snapshot.weights), (OPTIMIZER, snapshot.optimizer))
        return tuple(
            write_tensors(aside / file_of(file, self._rank, self._world_size), tensors)
            for file, tensors in files
            if tensors
        )

    def _on_all(self, work: Callable[[], tuple[FileEntry, ...]]) -> list[tuple[FileEntry, ...]]:
        """What ``work`` returns on each process; when it fails on one, an error on all."""
        error: Exception | None = None
        found: tuple[FileEntry, ...] = ()
        said = ""
        try:
            found = work()
        except Exception as problem:  # the others must hear of it before it ends this process
            error, said = problem, f"{process_name(self._rank)}: {problem}"
        everyone: list[Any] = [None] * self._world_size
        dist.all_gather_object(everyone, (found, said), group=self._writers)
        # The process at fault raises its own error, the others one that quotes it.
        if error is not None:
            raise error
        problems = [text for _, text in everyone if text]
        if problems:
            raise TrainingError(
                f"a checkpoint could not be written: {'; '.join(problems)}",
                hint="make room (or mend the disk) and run the same command again: it goes on from the last checkpoint",
            )
        return [files for files, _ in everyone]


def _boxes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Box, tuple[int, ...], int]]:
    """Box, whole shape and size in bytes of what this process holds of each tensor."""
    found = {}
    for name, tensor in tensors.items():
        box = local_box(tensor)
        found[name] = (box, tuple(tensor.shape), box.num_elements * tensor.element_size())
    return found


def owners(held: Sequence[Mapping[str, tuple[Box, tuple[int, ...], int]]], loads: list[int]) -> dict[Key, int]:
    """For each box of each tensor the process that writes it: of those that hold it the one with the fewest bytes so
    far, so that copies of a model share the work. ``loads``, bytes of each process, is added to."""
    holders: dict[Key, list[int]] = {}
    sizes: dict[Key, int] = {}
    for rank, tensors in enumerate(held):
        for name, (box, shape, num_bytes) in tensors.items():
            # Nobody writes the empty shard of a tensor; a tensor that is empty as a whole must be in some file, though.
            if box.num_elements or not torch.Size(shape).numel():
                holders.setdefault((name, box), []).append(rank)
                sizes[name, box] = num_bytes
    plan = {}
    for key, ranks in holders.items():
        # Ties go by rank: all processes compute the same plan from the same lists and need not talk about it.
        plan[key] = min(ranks, key=lambda rank: (loads[rank], rank))
        loads[plan[key]] += sizes[key]
    return plan


def file_of(file: str, rank: int, world_size: int) -> str:
    """Where a process writes its part: ``model-00001-of-00004.safetensors``."""
    stem, dot, suffix = file.partition(".")
    return f"{stem}-{rank + 1:05d}-of-{world_size:05d}{dot}{suffix}"


def _described(
    plan: Mapping[Key, int], shapes: Mapping[str, tuple[int, ...]], file: str, world_size: int
) -> dict[str, Described]:
    found: dict[str, Described] = {}
    for (name, box), owner in plan.items():
        before = found.get(name, Described(shapes[name], ()))
        piece = Piece(file_of(file, owner, world_size), box)
        found[name] = replace(before, pieces=(*before.pieces, piece))
    return found


def _commit(aside: Path, final: CheckpointInfo, snapshot: SharedSnapshot, entries: Sequence[FileEntry]) -> None:
    """All parts being there, add what one process writes for all, and give the directory its name."""
    assert snapshot.layout is not None, "a shared snapshot knows where its tensors go"
    described = {file: layout_of(tensors) for file, tensors in snapshot.layout.items()}
    layout = write_bytes(aside / LAYOUT, json.dumps({"files": described}, separators=(",", ":")).encode())
    commit_checkpoint(aside, final, snapshot, (*entries, layout))
