"""Extending a finished training with more tokens, so that the result equals one uninterrupted longer run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepen.formats.atomic import write_json
from deepen.formats.manifest import MANIFEST, UNFINISHED, now
from deepen.train.config import TrainConfig

_EXTENDABLE = {"train.tokens", "input mix"}


def can_continue(identity: Mapping[str, Any], recorded: Mapping[str, Any], changes: Mapping[str, str]) -> bool:
    """Whether training differs from what was recorded by nothing but a larger ``train.tokens``."""
    before, after = recorded["config"].get("train", {}), identity.get("train", {})
    grows = after.get("tokens", 0) > before.get("tokens", 0)
    return set(changes) <= _EXTENDABLE and grows


def continue_training(directory: Path, recorded: Mapping[str, Any], fingerprint: str, config: TrainConfig) -> None:
    """Turn finished training into unfinished training of the longer run; safe to repeat after a kill."""
    from deepen.train.continuing import prepare_continuation

    prepare_continuation(directory, config)
    inputs = dict(recorded["inputs"])
    mark = {
        "stage": "train", "format": recorded["format"], "fingerprint": fingerprint, "config": recorded["config"],
        "inputs": inputs, "started": recorded.get("started", now()),
    }  # fmt: skip
    write_json(directory / UNFINISHED, mark)
    (directory / MANIFEST).unlink(missing_ok=True)


def is_extension(old: Path, new: Path) -> bool:
    """Whether the training order in ``new`` begins with the whole order in ``old``."""
    from deepen.formats.order import begins_with

    return begins_with(new, old)
