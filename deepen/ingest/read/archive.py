"""Zip and tar: every member is read by the reader of its own format, as a stream; nothing is unpacked to the disk.

Refused, each by name: members whose path leaves the archive, links and devices, archives inside archives, members that
need an unknown password, and bombs, that is members that expand to more than 100 times their packed size and more than
100 MB (or whole archives to more than 1,000 times their size; the settings say how far). Hidden members are left out
like hidden files.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from deepen.ingest.files import CONTAINERS, TABLES, reading_format
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Record, Reject, brief
from deepen.ingest.streams import FAULTS, Guarded, Input, Member, StreamError, open_seekable, open_stream, stream_reject

Opener = Callable[[Input, Reading], Iterator[Record | Reject]]
"""Reads a member by its format."""

_ARCHIVE_TIMES = 10
"""How many times as far as a member an archive may expand as a whole."""
_MACOS = "__MACOSX"
CORRUPT = (zipfile.BadZipFile, NotImplementedError, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError)
"""What the libraries raise for damaged archives."""


def read_zip(file: Input, reading: Reading, read_member: Opener) -> Iterator[Record | Reject]:
    """Records of all members, in the order of their paths."""
    try:
        with open_seekable(file) as stream, zipfile.ZipFile(stream) as archive:
            visit = _Visit(file.location, reading, read_member, stream.seek(0, io.SEEK_END))
            # Not as packed: the same files give the same documents whatever tool made the zip.
            for member in sorted(archive.infolist(), key=lambda member: member.filename):
                if not member.filename.endswith("/"):
                    yield from visit.read(member.filename, member.compress_size, _zip_opener(archive, member, visit))
    except (*FAULTS, *CORRUPT) as error:
        # What is in a zip is told at its end: without that nothing of it is read.
        yield replace(_fault(file.location, error), lost_bytes=_num_bytes(file))


def _zip_opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo, visit: _Visit) -> Callable[[], BinaryIO]:
    is_locked = bool(member.flag_bits & 1)
    passwords = [password.encode() for password in visit.reading.passwords] if is_locked else [None]
    limit = visit.limit(member.compress_size)
    return lambda: cast(BinaryIO, io.BufferedReader(Guarded(_unlocked(archive, member, passwords), limit)))


def _unlocked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, passwords: Sequence[bytes | None]) -> Any:
    for password in passwords:
        try:
            return archive.open(member, pwd=password)
        except NotImplementedError as error:
            raise StreamError("unsupported_member", brief(error)) from error
        except RuntimeError:
            continue  # a wrong password
        except zipfile.BadZipFile as error:
            raise StreamError("corrupt_archive", brief(error)) from error
    raise StreamError("encrypted", "none of the source's passwords opens it")


def read_tar(file: Input, reading: Reading, read_member: Opener) -> Iterator[Record | Reject]:
    """Records of all members, in the order of the archive; after damage the rest of it is one reject."""
    last = "its beginning"
    try:
        # As a stream: a tar is never sought in.
        with open_stream(file, times=_ARCHIVE_TIMES) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            visit = _Visit(file.location, reading, read_member, _num_bytes(file))
            for member in archive:
                last = f"`{member.name}`"
                if member.isfile():
                    yield from visit.read(
                        member.name, min(member.size, visit.num_bytes), _tar_opener(archive, member, visit)
                    )
                elif not member.isdir() and not _is_hidden(member.name):
                    yield Reject(visit.place(member.name), "unsupported_member", "a link or device, not a file")
    except (*FAULTS, *CORRUPT) as error:
        fault = _fault(file.location, error)
        yield replace(fault, detail=f"the rest after {last}: {fault.detail}")


def _tar_opener(archive: tarfile.TarFile, member: tarfile.TarInfo, visit: _Visit) -> Callable[[], BinaryIO]:
    limit = visit.limit(visit.num_bytes)  # members of a tar have no packed size: that of the whole file stands for it
    return lambda: cast(BinaryIO, io.BufferedReader(Guarded(archive.extractfile(member), limit)))


def _num_bytes(file: Input) -> int:
    return int(getattr(file, "num_bytes", 0))


class _Visit:
    """One reading of an archive: which members were met and how far they have expanded."""

    def __init__(self, location: str, reading: Reading, read_member: Opener, num_bytes: int) -> None:
        self.reading, self.num_bytes = reading, num_bytes
        self._location, self._read_member = location, read_member
        self._expanded = 0
        self._seen: set[str] = set()

    def place(self, name: str) -> str:
        """Location of a member."""
        return f"{self._location}/{name}".encode("utf-8", "backslashreplace").decode()

    def read(self, name: str, num_bytes: int, open_member: Callable[[], BinaryIO]) -> Iterator[Record | Reject]:
        """Records of one member of ``num_bytes`` in the archive, or the reason why it is not read."""
        known = reading_format(name, self.reading.format)
        if _is_hidden(name) or (self.reading.tables_only and known not in TABLES):
            return
        tally = self.reading.tally
        tally.files += 1
        refusal = self._refusal(name, known)
        if refusal is not None:
            hides_files = refusal[0] == "nested_archive"
            yield Reject(self.place(name), *refusal, loss="file" if hides_files else "records", lost_bytes=num_bytes)
            return
        self._seen.add(name)
        is_empty = True
        for found in self._guarded(Member(self.place(name), known, open_member, self.reading.expansion)):
            is_empty = False
            is_loss = isinstance(found, Reject) and found.lost_bytes is None
            yield replace(found, lost_bytes=num_bytes) if is_loss and isinstance(found, Reject) else found
        tally.empty += is_empty

    def _guarded(self, member: Member) -> Iterator[Record | Reject]:
        try:
            yield from self._read_member(member, self.reading)
        except (*FAULTS, *CORRUPT) as error:
            yield _fault(member.location, error)

    def _refusal(self, name: str, known: str | None) -> tuple[str, str] | None:
        path = PurePosixPath(name.replace("\\", "/"))  # Windows tools write backslashes, and C: for a drive
        if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]:
            return "unsafe_member", "its path leaves the archive"
        if known in CONTAINERS:
            return "nested_archive", "an archive inside an archive is not opened"
        if known is None:
            return "unsupported_file", "no reader for this suffix; set `format`"
        if name in self._seen:
            return "duplicate_member", "an earlier member of the archive has the same path"
        return None

    def limit(self, packed_bytes: int) -> Callable[[int], bool]:
        """A check for one member: told the number of bytes read each time, whether they are too many."""
        read, limit = 0, self.reading.expansion

        def too_many(more: int) -> bool:
            nonlocal read
            read += more
            self._expanded += more
            whole = limit.times(_ARCHIVE_TIMES)
            return limit.forbids(read, packed_bytes) or whole.forbids(self._expanded, self.num_bytes)

        return too_many


def _is_hidden(name: str) -> bool:
    return any(part == _MACOS or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


def _fault(location: str, error: Exception) -> Reject:
    corrupt = isinstance(error, CORRUPT) and not isinstance(error, UnicodeError)
    if corrupt:
        return Reject(location, "corrupt_archive", brief(error), loss="file")
    return stream_reject(location, error)
