"""JSON lines: metrics, scores, rejects. Appending is durable; a half-written last line is ignored when reading."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from deepen.formats.atomic import FileEntry, writing

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
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if sync:
            file.flush()
            os.fsync(file.fileno())


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the records of a file; nothing when it does not exist."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


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
