"""Extending a finished training with more tokens, so that the result equals one uninterrupted longer run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepen.formats.files.atomic import write_json
from deepen.formats.manifest import MANIFEST, UNFINISHED
from deepen.formats.tokens.order import begins_with
from deepen.train.config import TrainConfig

_EXTENDABLE = {"train.tokens", "input mix"}


def can_continue(identity: Mapping[str, Any], recorded: Mapping[str, Any], changes: Mapping[str, str]) -> bool:
    """Whether training differs from what was recorded by nothing but a larger ``train.tokens``."""
    before, after = recorded["config"].get("train", {}), identity.get("train", {})
    return set(changes) <= _EXTENDABLE and after.get("tokens", 0) > before.get("tokens", 0)


def continue_training(
    directory: Path, recorded: Mapping[str, Any], identity: Mapping[str, Any], fingerprint: str, config: TrainConfig
) -> None:
    """Turn finished training into unfinished training of the longer run; safe to repeat after a kill.

    Raises ``RunError`` when the schedule cannot be extended.
    """
    from deepen.train.starting.resolved import prepare_continuation

    old = TrainConfig.model_validate(_without_marks(recorded["config"]["train"]))
    prepare_continuation(directory, old, config)
    mark = {"config": dict(identity), "fingerprint": fingerprint}
    write_json(directory / UNFINISHED, {key: recorded[key] for key in ("stage", "format", "inputs", "started")} | mark)
    (directory / MANIFEST).unlink(missing_ok=True)


def _without_marks(value: Any) -> Any:
    """Settings as they were given, without the versions and sources that identify plugs."""
    if isinstance(value, dict):
        marks = {"version", "source"} if "use" in value else set()
        return {key: _without_marks(item) for key, item in value.items() if key not in marks}
    return [_without_marks(item) for item in value] if isinstance(value, list) else value


def is_extension(old: Path, new: Path) -> bool:
    """Whether the training order in ``new`` begins with the whole order in ``old``."""
    return begins_with(new, old)
