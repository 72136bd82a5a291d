"""Content hashes of files that are no work of ours, remembered by size and time so that none is read twice."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from deepen.errors import DamageError
from deepen.formats.files.atomic import hash_file, write_json
from deepen.formats.files.json_text import read_object

_SETTLED_SECONDS = 2.0
"""A file changed less than this before it was hashed could change again without a new time stamp: not remembered."""


class HashCache:
    """The hashes that the JSON file ``path`` remembers; several runs and inputs share one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[object]] = {}
        self._learnt: dict[str, list[object]] = {}
        with suppress(DamageError):  # nothing is lost: what is not known is hashed
            self._known = read_object(path)

    def hash(self, path: Path) -> str:
        """The file's hash, read again only when its size or time changed; raises ``OSError`` for unreadable files."""
        key = os.fsencode(os.path.realpath(path)).decode("utf-8", "backslashreplace")
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        known = self._known.get(key)
        if known is not None and known[:2] == stamp:
            return str(known[2])
        entry = [*stamp, hash_file(path)]
        if time.time() - stat.st_mtime > _SETTLED_SECONDS:
            self._known[key] = self._learnt[key] = entry
        return str(entry[2])

    def save(self) -> None:
        """Remember what was learnt."""
        if self._learnt:
            write_json(self._path, self._known)
