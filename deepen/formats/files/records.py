"""JSON lines: metrics, scores, rejects. Appending is durable; a half-written last line is ignored when reading."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from deepen.errors import DamageError
from deepen.formats.files.atomic import FileEntry, sync_directory, writing
from deepen.formats.files.json_text import first_fault
from deepen.settings import Settings

S = TypeVar("S", bound=Settings)

_REMEDY = "a stage that is made anew with --redo writes the file again; or take the line out by hand"

_CHUNK_BYTES = 1 << 16

_read_only = False


def only_read(yes: bool) -> None:
    """Change no record from now on, or again: of many processes that do the same work one keeps the records."""
    global _read_only
    _read_only = yes


def keeps_records() -> bool:
    """Whether this process is the one that changes what a run has on the disk."""
    return not _read_only


def append_record(path: Path, record: dict[str, Any], *, sync: bool = False) -> None:
    """Append one record; ``sync`` forces it to the disk before returning."""
    if _read_only:
        return
    cut_torn_line(path)
    is_new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        # One write for the line with its end: what has no end was cut by a kill.
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if sync:
            file.flush()
            os.fsync(file.fileno())
    if sync and is_new:
        sync_directory(path.parent)


def cut_torn_line(path: Path) -> None:
    """Take a last line without an end out of a file: it was cut by a kill, and what is appended would join it."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        length = 1  # nearly always the last byte ends a line, and no more is read
        while end > 0:
            begin = max(0, end - length)
            file.seek(begin)
            at = file.read(end - begin).rfind(b"\n")
            if at >= 0:
                end = begin + at + 1
                break
            end, length = begin, _CHUNK_BYTES
        if end < size:
            file.truncate(end)


def read_records(path: Path, *, keys: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Stream the records of a file; nothing when it does not exist.

    Raises ``DamageError`` naming the line that is no JSON object or lacks one of ``keys``.
    """
    for number, record in _numbered(path):
        missing = [key for key in keys if key not in record]
        if missing:
            raise DamageError(f"line {number} of `{path}` is damaged: it has no `{missing[0]}`", hint=_REMEDY)
        yield record


def read_models(path: Path, kind: type[S]) -> Iterator[S]:
    """Stream the records of a file as settings of a ``kind``; nothing when it does not exist.

    Raises ``DamageError`` naming the line that is none, and why.
    """
    for number, record in _numbered(path):
        try:
            yield kind.model_validate(record, strict=False)
        except ValidationError as error:
            raise DamageError(f"line {number} of `{path}` is damaged: {first_fault(error)}", hint=_REMEDY) from error


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a file with the numbers of their lines, from 1."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, _record(line, number, path)


def _record(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(line.decode())
    except ValueError as error:  # no JSON and no UTF-8 are both kinds of ValueError
        raise DamageError(f"line {number} of `{path}` is damaged: {error}", hint=_REMEDY) from error
    if not isinstance(found, dict):
        raise DamageError(f"line {number} of `{path}` is damaged: no JSON object", hint=_REMEDY)
    return found


def write_records(path: Path, records: Iterable[dict[str, Any]], root: Path) -> FileEntry:
    """Write a whole file of records atomically; its entry is named relative to ``root``."""
    with writing(path) as file:
        for record in records:
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    return file.entry(path.relative_to(root).as_posix())


def keep_records(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a file atomically with only the records for which ``keep`` is true (a resume drops later steps)."""
    if path.is_file() and not _read_only:
        write_records(path, [record for record in read_records(path) if keep(record)], path.parent)
