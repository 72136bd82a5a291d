"""``extension.json``: what a grown vocabulary has that the base's had not.

Written by `tokenize` beside the grown tokenizer. Old ids keep their meaning; new ids follow the largest old one. The
rows that a model needs for them lie in ``new_rows.safetensors`` in the same directory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deepen.errors import DamageError
from deepen.formats.files.atomic import FileEntry, write_json
from deepen.settings import Many, Settings

EXTENSION = "extension.json"
NEW_ROWS = "new_rows.safetensors"
ROW_MULTIPLE = 128
"""Tables of tokens that grow get a multiple of so many rows, as matrix products and tensor parallelism want it."""


class NewToken(Settings):
    """One token that the base does not have."""

    id: int
    token: str
    """As it stands in the vocabulary of ``tokenizer.json``."""
    text: str | None
    """What it reads as; None when it is part of a character only."""
    old_ids: Many[int]
    """The base's tokens for the same bytes, as inside a text (no begin token, no prefix that the tokenizer adds)."""


class Extension(Settings):
    """Contents of ``extension.json``."""

    base_vocabulary_size: int
    """One more than the largest id of the base's tokenizer."""
    vocabulary_size: int
    """One more than the largest new id."""
    tokens: Many[NewToken]
    """By rising id."""
    init: dict[str, Any] = {}
    """How their rows are made: the settings of ``tokenize.vocabulary`` that say so."""


def write_extension(directory: Path, extension: Extension) -> FileEntry:
    """Write ``extension.json`` into a tokenize directory."""
    return write_json(directory / EXTENSION, extension.model_dump(mode="json"))


def read_extension(directory: Path) -> Extension | None:
    """Read ``extension.json``; None when the vocabulary was not grown; raises ``DamageError`` when it is unreadable."""
    path = directory / EXTENSION
    if not path.is_file():
        return None
    try:
        return Extension.model_validate(json.loads(path.read_bytes()), strict=False)
    except (OSError, ValueError, ValidationError) as error:
        raise DamageError(
            f"`{path}` cannot be read: {error}", hint="run `deepen tokenize` again with --redo"
        ) from error


def new_rows_file(directory: Path) -> Path | None:
    """The rows of new tokens in a tokenize directory; None when its vocabulary is the base's own."""
    path = directory / NEW_ROWS
    return path if path.is_file() else None


def rows_for(base_rows: int, vocabulary_size: int) -> int:
    """Rows of tables that have ``base_rows`` and must hold ``vocabulary_size`` ids: unchanged when there is room."""
    if vocabulary_size <= base_rows:
        return base_rows
    return ROW_MULTIPLE * -(-vocabulary_size // ROW_MULTIPLE)
