"""Work that was made from something else: go on with it, make it anew beside the old, or stop and say what changed.

A new result is made in ``STAGE.redo`` and takes the old one's place when it is whole: a kill at any moment leaves one
of the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.errors import DamageError, RunError
from deepen.formats.files.atomic import write_json
from deepen.formats.manifest import MANIFEST, UNFINISHED, record_of
from deepen.formats.replaced import put_in_place, remove_directory
from deepen.formats.tokens.order import begins_with
from deepen.progress import say
from deepen.runs.references import make_unreferenced
from deepen.train.config import TrainConfig
from deepen.workflow.setup import core_of
from deepen.workflow.stage_plan import StagePlan

_EXTENDABLE = {"train.tokens", "input mix"}


@dataclass(frozen=True)
class Consent:
    """What the user allows to be done about finished work that no longer fits the recipe."""

    redo: bool = False
    """Make anew what was made from other settings or inputs."""
    extend: bool = False
    """Continue a finished training with more tokens (``--continue``)."""


def make_way(plan: StagePlan, recorded: Mapping[str, Any], consent: Consent, remade: set[str]) -> tuple[Path, bool]:
    """Where the stage is to be made though other work, ``recorded``, lies in its place: there (training that goes on)
    or aside; and whether its result must begin with the old one. Notes in ``remade`` what is made anew.

    Raises ``RunError`` that says what changed where ``consent`` does not cover it.
    """
    name, changes = plan.stage.name, differences(plan, recorded)
    only_more = consent.extend and name == "mix" and set(changes) <= {"num_batches"}
    if consent.extend and name == "train" and _can_continue(plan, recorded, changes):
        _continue_training(plan, recorded)
        remade.add(name)
        return plan.directory, False
    if core_of(recorded) == plan.core:
        say(f"{name}: only what comes after training changed ({', '.join(changes)}); brought up to date")
    elif consent.redo or only_more or (consent.extend and remade & set(plan.stage.needs) and name != "train"):
        say(f"{name}: made from other settings or inputs ({', '.join(changes)}); making it anew")
        remade.add(name)
    else:
        lines = "\n".join(f"  {key}: {change}" for key, change in changes.items())
        only_tokens = name in ("mix", "train") and set(changes) <= {"num_batches", "train.tokens", "input mix"}
        hint = "`--continue` trains on from where the run is; " if only_tokens else ""
        raise RunError(
            f"`{plan.directory}` was made from something else:\n{lines}",
            hint=f"{hint}`--redo` makes it and everything after it anew; another `name` keeps both",
        )
    make_unreferenced(plan.directory, give_copies=core_of(recorded) == plan.core)
    return aside_of(plan), only_more


def aside_of(plan: StagePlan) -> Path:
    """The folder in which a stage is made anew beside its old result; what lies there is of the same work."""
    aside = plan.directory.with_name(plan.directory.name + ".redo")
    try:
        begun = record_of(aside)
    except DamageError:
        begun = {"fingerprint": "unreadable"}
    if begun is not None and begun["fingerprint"] != plan.fingerprint:
        # Renamed first: what a kill left of it could be taken for work of this fingerprint, checkpoints above all.
        remove_directory(aside)
    return aside


def differences(plan: StagePlan, recorded: Mapping[str, Any]) -> dict[str, str]:
    """What changed since ``recorded``, by setting or input: ``{"train.tokens": "1000000 -> 2000000"}``."""
    before, after = _flat(recorded["config"]), _flat(json.loads(json.dumps(plan.identity)))
    changes = {
        key: f"{before.get(key, 'default')} -> {after.get(key, 'default')}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    }
    old_inputs = {name: entry["fingerprint"] for name, entry in recorded["inputs"].items()}
    new_inputs = {**plan.marks}
    new_inputs |= {name: entry.fingerprint for name, entry in plan.raw_inputs.items()}
    for name in sorted({*old_inputs, *new_inputs}):
        if name not in old_inputs:
            changes[f"input {name}"] = "was not there"
        elif name not in new_inputs:
            changes[f"input {name}"] = "is no longer there"
        elif old_inputs[name] != new_inputs[name]:
            changes[f"input {name}"] = "has other contents"
    if not changes:
        changes["format"] = (
            f"{recorded['format']} -> {plan.stage.format_number()} (this version of deepen works differently)"
        )
    return changes


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}" if path else key).items()}
    if isinstance(value, list):
        return {k: v for index, item in enumerate(value) for k, v in _flat(item, f"{path}[{index}]").items()}
    return {path: value}


def _can_continue(plan: StagePlan, recorded: Mapping[str, Any], changes: Mapping[str, str]) -> bool:
    """Whether training differs from what was recorded by nothing but a larger ``train.tokens``."""
    before, after = recorded["config"].get("train", {}), plan.identity.get("train", {})
    return set(changes) <= _EXTENDABLE and bool(after.get("tokens", 0) > before.get("tokens", 0))


def _continue_training(plan: StagePlan, recorded: Mapping[str, Any]) -> None:
    """Turn finished training into unfinished training of the longer run; safe to repeat after a kill.

    Raises ``RunError`` when the schedule cannot be extended.
    """
    from deepen.train.starting.resolved import prepare_continuation

    old = TrainConfig.model_validate(_without_marks(recorded["config"]["train"]))
    prepare_continuation(plan.directory, old, plan.setup.recipe.train)
    mark = {"config": dict(plan.identity), "fingerprint": plan.fingerprint}
    unfinished = {key: recorded[key] for key in ("stage", "format", "inputs", "started")} | mark
    write_json(plan.directory / UNFINISHED, unfinished)
    (plan.directory / MANIFEST).unlink(missing_ok=True)


def _without_marks(value: Any) -> Any:
    """Settings as they were given, without the versions and sources that identify plugs."""
    if isinstance(value, dict):
        marks = {"version", "source"} if "use" in value else set()
        return {key: _without_marks(item) for key, item in value.items() if key not in marks}
    return [_without_marks(item) for item in value] if isinstance(value, list) else value


def swap_in(directory: Path, aside: Path, *, must_extend: bool) -> None:
    """Put the finished result in ``aside`` in the place of the old one; raises ``RunError`` when it ``must_extend`` the
    old training order and does not."""
    if must_extend and not begins_with(aside, directory):
        raise RunError(
            "with more tokens the training order would not begin with the order already trained on",
            hint="`--redo` starts over; a new run with `base: {run: ...}` goes on from the finished model",
        )
    put_in_place(directory, aside)
