"""``schedule.json``: what a run settled when it first started, so that nothing later can move it.

The schedule in steps, the peak learning rate and the precision that ``auto`` meant. A resume reads it; a continuation
to more tokens rewrites it with the same warm-up.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from deepen.errors import DamageError, RunError
from deepen.formats.files.atomic import write_json
from deepen.formats.training.checkpoints import is_resumable, list_checkpoints, remove_checkpoint
from deepen.formats.training.decisions import DECISIONS, drop_decisions_after
from deepen.settings import Many, Settings
from deepen.train.config import TrainConfig, num_steps, schedule_roundings
from deepen.train.schedule.schedules import Shape

SCHEDULE = "schedule.json"


class Resolved(Settings):
    """Contents of ``schedule.json``."""

    total_steps: int
    warmup_steps: int
    decay_steps: int
    cooldown_steps: int = 0
    peak_learning_rate: float
    precision: str
    new_rows_steps: int = 0
    """Steps at the beginning in which only new rows move."""
    rounded: Many[str] = ()
    """Parts of the schedule that whole steps made notably longer or shorter than the recipe asks."""

    @property
    def shape(self) -> Shape:
        """The schedule in steps."""
        return Shape(self.total_steps, self.warmup_steps, self.decay_steps, self.cooldown_steps)


def write_resolved(directory: Path, resolved: Resolved) -> None:
    """Write ``schedule.json`` into a train directory."""
    write_json(directory / SCHEDULE, resolved.model_dump(mode="json"))


def read_resolved(directory: Path) -> Resolved | None:
    """Read ``schedule.json``; None when the run never started. Raises ``DamageError`` when it cannot be read."""
    path = directory / SCHEDULE
    if not path.is_file():
        return None
    try:
        return Resolved.model_validate_json(path.read_bytes(), strict=False)
    except (OSError, ValidationError) as error:
        raise DamageError(f"`{path}` cannot be read: {error}", hint="train again with --redo") from error


def prepare_continuation(directory: Path, old: TrainConfig, new: TrainConfig) -> int:
    """Make a train directory of ``old`` ready to go on as ``new``, which differs in more tokens; returns the next step.

    Warm-up, cooldown and the time in which only new rows move stay as many steps as they were. Checkpoints from inside
    the old decay are removed, since the longer run has not decayed there; training then resumes where the decay had
    begun, and every later tensor is what one long run with these would have had. May be repeated after a kill. Raises
    ``RunError`` when the schedule cannot be extended, nothing was trained, or no checkpoint from before the decay is
    left.
    """
    if not new.schedule.extendable or type(new.schedule) is not type(old.schedule):
        raise RunError(
            f"a run with schedule `{new.schedule.use}` cannot be continued: its learning rate has already decayed",
            hint="runs that may grow need schedule `wsd`, `infinite` or `constant`; or start a new one on this "
            "(`base: {run: PATH}`)",
        )
    same = ("tokens", "schedule", "save", "log")
    changed = [name for name in type(new).model_fields if name not in same and getattr(new, name) != getattr(old, name)]
    if changed or num_steps(new) <= num_steps(old):
        what = f"`train.{changed[0]}` differs" if changed else "it must train on more tokens"
        raise RunError(f"this is not a continuation: {what}", hint="only `train.tokens` may change, to more")
    resolved = read_resolved(directory)
    if resolved is None:
        raise RunError(f"`{directory}` holds no run that could be continued", hint="run without --continue")
    old_shape, new_shape = (
        config.schedule.shape(total_steps=num_steps(config), tokens_per_step=config.batch_tokens)
        for config in (old, new)
    )
    checkpoints = list_checkpoints(directory / "checkpoints")
    usable = [info for info in checkpoints if info.step <= old_shape.decay_start and is_resumable(info)]
    if not usable:
        raise RunError(
            f"no checkpoint from before the decay (step {old_shape.decay_start}) is left in `{directory}`",
            hint="start a new run with `base: {run: PATH}`",
        )
    decay = "train.schedule.decay"
    rounded = [note for note in resolved.rounded if not note.startswith(decay)]
    rounded += [f"{key}: {note}" for key, note in schedule_roundings(new).items() if key == decay]
    values = {"total_steps": new_shape.total_steps, "decay_steps": new_shape.decay_steps, "rounded": tuple(rounded)}
    # Checkpoints are removed last: until then a repetition after a kill finds all that it needs.
    write_resolved(directory, resolved.model_copy(update=values))
    drop_decisions_after(directory / DECISIONS, old_shape.decay_start)
    for info in checkpoints:
        if info.step > old_shape.decay_start:
            remove_checkpoint(info)
    return usable[-1].step
