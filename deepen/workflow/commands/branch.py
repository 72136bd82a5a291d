"""`deepen branch`: a new run that leaves another at one of its checkpoints and anneals from there.

The stable part of a long training is worth keeping as it is; what can be handed over is an annealed branch of it. The
branch has the data, the weights, the optimizer and the place in the order of the run that it leaves, so it equals one
run whose decay had been planned to begin at that step.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from deepen.errors import RunError
from deepen.formats.files.atomic import link_or_copy, sync_file
from deepen.formats.manifest import Artifact, open_artifact
from deepen.formats.replaced import remove_directory
from deepen.formats.tokens.order import Order, appended_files
from deepen.formats.training.checkpoints import CheckpointInfo, is_resumable, list_checkpoints, read_state, verify
from deepen.recipe.models import Recipe
from deepen.recipe.reading import load
from deepen.runs.directory import stage_directory
from deepen.runs.lock import locked
from deepen.settings import Amount
from deepen.train.schedule.schedules import Constant, Schedule, WarmupStableDecay
from deepen.train.starting.resolved import SCHEDULE, Resolved, read_resolved, write_resolved
from deepen.workflow.run import RunOptions, run_pipeline


@dataclass(frozen=True)
class Branch:
    """What a user asks for."""

    step: int
    """Finished optimizer steps of the run that is left; there must be a checkpoint of it."""
    decay: Amount
    """Length of the decay; a share is one of the steps so far."""
    name: str | None = None
    """Name of the new run; None: ``NAME-at-STEP``."""


def branch_run(run: Path, asked: Branch) -> tuple[Path, dict[str, Artifact]]:
    """Make the branch of ``run`` beside it, up to its export; returns its directory and artifacts.

    May be repeated: what is there goes on. Raises ``RunError`` when there is no intact checkpoint of that step, the
    learning rate is not steady there, or the branch would not see the same batches before it.
    """
    loaded = load(run)
    train = stage_directory(run, "train")
    resolved = read_resolved(train)
    if resolved is None:
        raise RunError(f"`{run}` was never trained", hint="run it first")
    checkpoint = _checkpoint(train, asked.step)
    recipe, decay_steps = _branched(loaded.recipe, resolved, asked)
    directory = run.resolve().parent / recipe.name
    done = run_pipeline(recipe, loaded.machine, directory, RunOptions(last="baseline"))
    if not stage_directory(directory, "train").is_dir():
        with locked(directory):
            _check_order(run, done["mix"].path, checkpoint)
            shape = resolved.model_copy(update={"total_steps": asked.step + decay_steps, "decay_steps": decay_steps})
            _leave(train, stage_directory(directory, "train"), checkpoint, shape)
    return directory, run_pipeline(recipe, loaded.machine, directory, RunOptions())


def _checkpoint(train: Path, step: int) -> CheckpointInfo:
    found = list_checkpoints(train / "checkpoints")
    info = next((one for one in found if one.step == step), None)
    if info is None:
        raise RunError(
            f"`{train}` has no checkpoint of step {step}",
            hint=f"it has these: {', '.join(str(one.step) for one in found) or 'none'}",
        )
    wrong = verify(info)
    if wrong:
        raise RunError(f"the checkpoint of step {step} is damaged: {wrong[0]}", hint="branch off another one")
    if not is_resumable(info):
        others = ", ".join(str(one.step) for one in found if is_resumable(one)) or "none"
        raise RunError(
            f"the checkpoint of step {step} holds weights only, and a branch needs the optimizer's state",
            hint=f"these have it: {others}; `train.save.milestones_weights_only: false` keeps it",
        )
    return info


def _branched(recipe: Recipe, resolved: Resolved, asked: Branch) -> tuple[Recipe, int]:
    """The recipe of the branch, and the steps of its decay."""
    schedule, step = recipe.train.schedule, asked.step
    steady = resolved.warmup_steps + resolved.cooldown_steps
    if not schedule.extendable or not steady <= step <= resolved.shape.decay_start:
        why = (
            "has no steady learning rate"
            if not schedule.extendable
            else f"is steady from {steady} to {resolved.shape.decay_start}"
        )
        raise RunError(
            f"a branch needs a steady learning rate at step {step}; the schedule `{schedule.use}` {why}",
            hint="branch off a run with schedule `wsd`, `infinite` or `constant`, before its decay",
        )
    if asked.decay.unit == "seconds":
        raise RunError("a decay is an amount of steps, tokens or a share, not of time", hint="write --decay 10%")
    decay = max(1, asked.decay.in_steps(total_steps=step, tokens_per_step=recipe.train.batch_tokens))
    train = recipe.train.model_copy(
        update={
            "tokens": (step + decay) * recipe.train.batch_tokens,
            "schedule": _annealed(schedule, resolved, decay),
        }
    )
    name = asked.name or f"{recipe.name}-at-{step}"
    return Recipe.model_validate(recipe.model_copy(update={"name": name, "train": train}).model_dump()), decay


def _annealed(schedule: Schedule, resolved: Resolved, decay_steps: int) -> Schedule:
    """The schedule with all its parts in steps, and the decay as asked."""
    warmup, decay = Amount(resolved.warmup_steps, "steps"), Amount(decay_steps, "steps")
    if isinstance(schedule, Constant):
        return WarmupStableDecay(warmup=warmup, decay=decay)
    parts = {"warmup": warmup, "decay": decay}
    if resolved.cooldown_steps:
        parts["cooldown"] = Amount(resolved.cooldown_steps, "steps")
    return schedule.model_copy(update=parts)


def _check_order(run: Path, mix: Path, checkpoint: CheckpointInfo) -> None:
    """The batches before the checkpoint must be those of the run that is left."""
    batch = int(read_state(checkpoint)["batch_index"])
    left = open_artifact(stage_directory(run, "mix"))
    assert left is not None, "a run with checkpoints has a training order"
    files = appended_files(stage_directory(run, "train") / "order")
    if Order.open(left.path, *files).digest(batch) != Order.open(mix).digest(batch):
        raise RunError(
            f"the order of the branch would not begin with the {batch} batches that were trained",
            hint="a mixture that changes over the run (in %, or by `deepen remix`) moves with its length: "
            "give its amounts in steps or tokens",
        )


def _leave(left: Path, train: Path, checkpoint: CheckpointInfo, resolved: Resolved) -> None:
    """Lay the beginning of the branch's training down: the checkpoint (linked where possible), records, schedule."""
    aside = train.with_name(train.name + ".branch")
    remove_directory(aside)
    target = aside / checkpoint.path.relative_to(left)
    for file in sorted(checkpoint.path.iterdir()):
        link_or_copy(file, target / file.name)
    for name in ("metrics.jsonl", "scores.jsonl", "decisions.jsonl", "importance.json", "importance.safetensors"):
        if (left / name).is_file():
            shutil.copyfile(left / name, aside / name)  # no link: the branch appends to its own
            sync_file(aside / name)
    assert (left / SCHEDULE).is_file(), "a trained run has its schedule"
    write_resolved(aside, resolved)
    aside.rename(train)
