"""JSON that deepen wrote, read back: what is missing or damaged is said with the file's name and what to do.

Files are written atomically, so only a disk or a person can damage them; that is rare, and never a traceback.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from deepen.errors import DamageError
from deepen.settings import Settings

S = TypeVar("S", bound=Settings)

ANEW = "make the stage that wrote it anew, with --redo"
"""The remedy for most files of a run."""


def read_object(path: Path, *, keys: Collection[str] = (), hint: str = ANEW) -> dict[str, Any]:
    """The JSON object in ``path``; raises ``DamageError`` when it is missing, is no JSON object or lacks a key."""
    _check_ordinary(path, hint)
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:  # no JSON and no UTF-8 are both kinds of ValueError
        raise DamageError(f"`{path}` cannot be read: {error}", hint=hint) from error
    except RecursionError:
        raise DamageError(f"`{path}` is damaged: it is nested too deep to be read", hint=hint) from None
    if not isinstance(found, dict):
        raise DamageError(f"`{path}` holds no JSON object", hint=hint)
    missing = [key for key in keys if key not in found]
    if missing:
        raise DamageError(f"`{path}` is damaged: it has no `{missing[0]}`", hint=hint)
    return found


def read_model(path: Path, kind: type[S], *, hint: str = ANEW) -> S:
    """The contents of ``path`` as settings of a ``kind``; raises ``DamageError`` when it holds none."""
    _check_ordinary(path, hint)
    try:
        return kind.model_validate_json(path.read_bytes(), strict=False)
    except OSError as error:
        raise DamageError(f"`{path}` cannot be read: {error}", hint=hint) from error
    except ValidationError as error:
        raise DamageError(f"`{path}` cannot be read: {first_fault(error)}", hint=hint) from error


def _check_ordinary(path: Path, hint: str) -> None:
    """A pipe in the place of a file would be waited for without end, and a device never ends."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise DamageError(f"`{path}` cannot be read: it is {kind}, not a file", hint=hint)


def first_fault(error: ValidationError) -> str:
    """The first thing that validation found wrong, on one line: where, and what."""
    detail = error.errors(include_url=False)[0]
    place = ".".join(map(str, detail["loc"]))
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    return f"`{place}`: {message}" if place else message
