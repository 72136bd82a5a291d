"""Is there room on the disk for the checkpoints of a run? Asked before the first step, from sizes in memory.

What is certain to fail soon is refused; what would fail by the end is said, since disks can be cleared in the meantime.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deepen.errors import TrainingError
from deepen.formats.training.checkpoints import CheckpointInfo, list_checkpoints
from deepen.progress import readable, say
from deepen.train.checkpoints.files import Marks, snapshot_of
from deepen.train.config import Save
from deepen.train.run import Run


@dataclass(frozen=True)
class DiskRoom:
    """What the checkpoints of a run take on the disk, in bytes."""

    checkpoint: int
    """One with the optimizer's state."""
    at_once: int
    """The newest that are kept, and the one being written."""
    milestones: int
    """All that stay for good, by the end of the run."""


def room_needed(run: Run, save: Save) -> DiskRoom:
    """An estimate from sizes in memory: moments are two numbers for each one that is trained."""
    snapshot = snapshot_of(run.trainee.model.model, run.trainee.optimizer, {"step": 0}, Marks())
    weights = sum(tensor.nbytes for tensor in snapshot.weights.values())
    groups = run.trainee.optimizer.param_groups
    # Not from the optimizer's state, which is empty until the first step.
    moments = 2 * sum(parameter.nbytes for group in groups for parameter in group["params"])
    one, calendar, total = weights + moments, run.calendar, run.shape.total_steps
    lasting, evaluates = _multiples(calendar.milestone_every, total), run.hooks.is_scored
    if evaluates and calendar.evaluated_stay:
        lasting |= _multiples(calendar.evaluate_every, total)
    # One each for the roles best_new, best_kept and last_good; where all scored ones stay, they are among those.
    best = 3 if evaluates and not calendar.evaluated_stay else 0
    milestones = len(lasting) * (weights if save.milestones_weights_only else one) + best * one
    return DiskRoom(one, (save.keep + 1 + _num_waiting(run)) * one, milestones)


def _num_waiting(run: Run) -> int:
    """Checkpoints that wait at once for the scores of another process, besides those that stay for good."""
    lag, every = run.hooks.lag, run.calendar.evaluate_every
    # So many models are handed out to be scored before the scores of the first of them are due.
    return 0 if lag is None or every is None or run.calendar.evaluated_stay else lag.steps // every + 1


def _multiples(every: int | None, end: int) -> set[int]:
    # Without the last step: its checkpoint is the newest, and counted there.
    return set(range(every, end, every)) if every else set()


def check_room(
    directory: Path, room: DiskRoom, free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
) -> None:
    """Raise ``TrainingError`` when the disk cannot even take the newest checkpoints; say so when only the milestones
    of the whole run will not fit. What the run has already written is not asked for again."""
    free = free_bytes(directory)
    have = sum(_size(info) for info in list_checkpoints(directory))
    # What a resumed run has written goes as newer ones come; the one being written always comes on top.
    at_once = max(room.checkpoint, room.at_once - have)
    if free < at_once:
        raise TrainingError(
            f"`{directory}` has room for {readable(free)} bytes, the newest checkpoints and the one being written take "
            f"{readable(at_once)} ({readable(room.checkpoint)} each)",
            hint="make room, lower `train.save.keep`, or train in another folder",
        )
    whole = room.at_once + room.milestones - have
    if free < whole:
        say(
            f"train: by its end the run will have written checkpoints of {readable(whole)} bytes, there is room for "
            f"{readable(free)}: make room in time, or see `train.save` (milestones, milestones_weights_only, evaluated)"
        )


def _size(info: CheckpointInfo) -> int:
    return sum(path.stat().st_size for path in info.path.iterdir())
