"""Files that are either complete or absent, hashed while they are written.

Everything deepen writes goes to ``NAME.tmp`` in the same directory, is flushed to disk and renamed, so that a kill at
any moment leaves either the old file or the new one. Data and checkpoints carry xxh3-128, exports sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import xxhash

from deepen.settings import Settings

_CHUNK_BYTES = 1 << 20


class FileEntry(Settings):
    """One file of an artifact: path relative to its directory, size and hash (``xxh3:...`` or ``sha256:...``)."""

    path: str
    bytes: int
    hash: str


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def new_hash(kind: str) -> _Hash:
    """A fresh hash object: ``xxh3`` (128 bit, for data) or ``sha256`` (for exports)."""
    return cast(_Hash, xxhash.xxh3_128() if kind == "xxh3" else hashlib.new(kind))


class HashingWriter:
    """A sequential binary file that hashes what passes through it."""

    def __init__(self, file: BinaryIO, kind: str) -> None:
        self._file, self._kind = file, kind
        self._hash = new_hash(kind)
        self.num_bytes = 0
        self.closed = False
        self.also: Callable[[memoryview], None] | None = None
        """Is told all that is written, such as the hashes of blocks."""

    def write(self, data: Any) -> int:
        """Write bytes or any contiguous buffer; returns the number of bytes."""
        view = memoryview(data).cast("B")  # arrays and Arrow buffers, too, without a copy
        self._file.write(view)
        self._hash.update(view)  # type: ignore[arg-type]
        if self.also is not None:
            self.also(view)
        self.num_bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Position, always the end: the file is sequential."""
        return self.num_bytes

    def close(self) -> None:
        """Does nothing: the file is closed, synced and renamed by the ``writing`` block that made it."""

    def entry(self, path: str) -> FileEntry:
        """The manifest entry of what was written, under the name ``path``."""
        return FileEntry(path=path, bytes=self.num_bytes, hash=f"{self._kind}:{self._hash.hexdigest()}")


@contextmanager
def writing(path: Path, kind: str = "xxh3") -> Iterator[HashingWriter]:
    """Write ``path`` atomically: the block writes to a temporary file that is synced and renamed when it succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")  # in the same folder: a rename is atomic only within a file system
    with temporary.open("wb") as file:
        # An error here skips all below: the old file stays, and the next try overwrites NAME.tmp.
        yield HashingWriter(file, kind)
        file.flush()
        # Before the rename: else the new name may reach the disk before the contents, and a power cut empty it.
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)  # a rename is a change of the folder, which has to reach the disk itself


def write_bytes(path: Path, data: bytes, kind: str = "xxh3") -> FileEntry:
    """Write a small file atomically and return its entry, named by its file name."""
    with writing(path, kind) as file:
        file.write(data)
    return file.entry(path.name)


def write_json(path: Path, value: Any) -> FileEntry:
    """Write JSON atomically, readable by people."""
    return write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def sync_directory(path: Path) -> None:
    """Make renames inside ``path`` durable, where the file system supports it."""
    sync_file(path)


def sync_file(path: Path) -> None:
    """Make what was written to ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name where the file system can do that, else a copy; ``target`` appears whole, and is
    on the disk when this returns."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)  # of an earlier try; `os.link` does not overwrite
    try:
        os.link(source, temporary)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, temporary)
    sync_file(temporary)  # a link, too: what it names may not have been written by us
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # renaming a link onto another one of the same file does nothing
    sync_directory(target.parent)


def hash_file(path: Path, kind: str = "xxh3") -> str:
    """Hash of a file's bytes, in the notation of ``FileEntry.hash``."""
    digest = new_hash(kind)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"


def entry_of(path: Path, root: Path, kind: str = "xxh3") -> FileEntry:
    """The entry of a file that is already on disk, named relative to ``root``."""
    return FileEntry(path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, hash=hash_file(path, kind))


def wrong_size(entry: FileEntry, root: Path) -> str | None:
    """What is wrong with a file on disk as far as its size tells, or None."""
    path = root / entry.path
    if not path.is_file():
        return f"`{path}` is missing"
    if path.stat().st_size != entry.bytes:
        return f"`{path}` has {path.stat().st_size} bytes, its manifest says {entry.bytes}"
    return None


def damage(entry: FileEntry, root: Path) -> str | None:
    """What is wrong with a file on disk against its entry, or None when size and hash agree."""
    path = root / entry.path
    if (wrong := wrong_size(entry, root)) is not None:  # asked first: it spares hashing what cannot be right
        return wrong
    if hash_file(path, entry.hash.partition(":")[0]) != entry.hash:
        return f"`{path}` has other contents than its manifest says (hash differs)"
    return None
