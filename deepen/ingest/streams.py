"""Files as plain byte streams: compression told from the first bytes, damage told from a complete end.

Suffixes lie, so they are not asked. A stream that ends early is told from one that is complete, which the zstandard
library's own file reader does not do. Archive members are streams of the same kind, under a limit of how far they may
expand, so that a bomb costs a reject and neither memory nor disk.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, cast

import zstandard

from deepen.ingest.files import InputFile
from deepen.ingest.read.records import MAX_RECORD_BYTES, Expansion, Reject, brief

_CHUNK_BYTES = 1 << 18
_PACKED_BYTES = 1 << 13
"""Small, because what a damaged piece unpacked to before the damage is lost."""
_ZSTD_BYTES = 1 << 11
"""Smaller still: zstandard gives all at once that these expand to, 128 kB for as few as four bytes."""
_MEMORY_BYTES = 64 << 20
"""Members of archives that must be read back and forth are held in memory up to here, then in a file without a name."""


class StreamError(Exception):
    """A stream is damaged or refused: ``reason`` is the reject's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Input(Protocol):
    """What a reader reads: a file, or a member of an archive."""

    @property
    def location(self) -> str:
        """Its path relative to the source's root, the way it enters documents' ids."""

    @property
    def format(self) -> str | None:
        """The name of its reader; None: no reader knows it."""

    def open(self) -> BinaryIO:
        """Its bytes from the start."""


@dataclass(frozen=True)
class Member:
    """One file inside an archive; it can be opened once, while the archive stands at it."""

    location: str
    format: str | None
    open: Callable[[], BinaryIO]
    expansion: Expansion = Expansion()


@dataclass
class Watch:
    """How far a file has been read."""

    num_bytes_read: int = 0
    """Without the piece that was read last, which may not have been made use of."""


@dataclass(frozen=True)
class WatchedFile(InputFile):
    """A file that knows how far it was read."""

    expansion: Expansion = Expansion()
    watch: Watch = field(default_factory=Watch, compare=False)

    def open(self) -> BinaryIO:
        """Its bytes as they are on the disk."""
        return cast(BinaryIO, io.BufferedReader(_Watched(self.path, self.watch), _CHUNK_BYTES))


class _Watched(io.FileIO):
    def __init__(self, path: str, watch: Watch) -> None:
        super().__init__(path)
        self._watch = watch

    def readinto(self, buffer: Any) -> int | None:
        begin = self.tell()
        num_bytes = super().readinto(buffer)
        if num_bytes:
            self._watch.num_bytes_read = begin
        return num_bytes

    def readall(self) -> bytes:
        self._watch.num_bytes_read = self.tell()
        return super().readall()


FAULTS = (OSError, StreamError, UnicodeError)
"""What reading a stream may raise, for ``stream_reject``."""


def stream_reject(location: str, error: Exception) -> Reject:
    """The reject for a stream that could not be read on from ``location``: the loss of a file."""
    if isinstance(error, StreamError):
        reason = error.reason
    else:
        reason = "not_utf8" if isinstance(error, UnicodeError) else "unreadable_file"
    return Reject(location, reason, brief(error), loss="file")


def open_stream(file: Input, *, times: int = 1) -> BinaryIO:
    """The uncompressed bytes of a file (gzip, zstandard, bzip2 and xz are recognised by their first bytes).

    It may expand as far as the file's limit says, or so many ``times`` as far.
    """
    packed = file.open()
    try:
        start = packed.read(6)  # the longest magic number, that of xz
        packed = _rewound(packed, start)
    except BaseException:  # also Ctrl-C: nobody else knows the file yet
        packed.close()
        raise
    for magic, name, unpack in _COMPRESSIONS:
        if start.startswith(magic):
            counted = _Counted(packed)
            limit = getattr(file, "expansion", Expansion()).times(times)
            owned = _Owned(unpack(cast(BinaryIO, counted)), counted, name, limit)
            return cast(BinaryIO, io.BufferedReader(owned, _CHUNK_BYTES))
    return packed


def open_seekable(file: Input) -> BinaryIO:
    """The uncompressed bytes of a file as something that can be read back and forth."""
    stream = open_stream(file)
    # Going back in compressed data would mean unpacking it again.
    if stream.seekable() and not isinstance(getattr(stream, "raw", None), _Owned):
        return stream
    with stream:
        copy = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115 - the caller closes it
        while chunk := stream.read(_CHUNK_BYTES):
            copy.write(chunk)
        copy.seek(0)
        return cast(BinaryIO, copy)


def _rewound(stream: BinaryIO, start: bytes) -> BinaryIO:
    """The stream at its beginning, of which ``start`` has been read."""
    if stream.seekable():
        stream.seek(0)
        return stream
    return cast(BinaryIO, io.BufferedReader(_Ahead(start, stream), _CHUNK_BYTES))


class Sequential(io.RawIOBase):
    """A stream that is read from its beginning to its end: a subclass says what comes next."""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with the next bytes."""
        data = self.pull(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    @abstractmethod
    def pull(self, size: int) -> bytes | memoryview:
        """At most ``size`` next bytes; none at the end."""


class _Ahead(Sequential):
    """A stream that cannot go back, with what was read of it put in front again."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._start, self._stream = start, stream

    def pull(self, size: int) -> bytes:
        data = self._start[:size] or self._stream.read(size)
        self._start = self._start[size:]
        return data

    def close(self) -> None:
        self._stream.close()
        super().close()


class Guarded(Sequential):
    """A member of an archive that may not expand beyond reason: once ``limit`` says so, it raises ``StreamError``."""

    def __init__(self, stream: Any, limit: Callable[[int], bool]) -> None:
        self._stream, self._too_many = stream, limit

    def pull(self, size: int) -> bytes:
        """The next bytes of the member."""
        try:
            data: bytes = self._stream.read(size)
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
            raise StreamError("corrupt_archive", brief(error)) from error
        if self._too_many(len(data)):  # asked after each read: an honest size in the header proves nothing
            raise StreamError("archive_bomb", "expands to more than any honest file of its size")
        return data

    def close(self) -> None:
        """Close the member, not its archive."""
        if not self.closed:
            self._stream.close()
        super().close()


class _Readable(Protocol):
    def read1(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class _Counted:
    """The packed bytes below a decompressor, counted."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.num_bytes += len(data)
        return data

    def close(self) -> None:
        self._file.close()


class _Owned(Sequential):
    """A decompressing stream that names its damage and closes the file below it as well."""

    def __init__(self, stream: _Readable, file: _Counted, name: str, limit: Expansion) -> None:
        self._stream, self._below, self._name, self._limit = stream, file, name, limit
        self._num_bytes = 0

    def pull(self, size: int) -> bytes:
        data = self._unpacked(size)
        self._num_bytes += len(data)
        if self._limit.forbids(self._num_bytes, self._below.num_bytes):
            raise StreamError(
                "archive_bomb",
                f"{self._below.num_bytes} bytes expand to {self._num_bytes} and more (`ingest.extraction.expansion`)",
            )
        return data

    def _unpacked(self, size: int) -> bytes:
        try:
            return self._stream.read1(size)  # read() would lose what was unpacked before an error
        except EOFError as error:
            detail = "the file ends before its compressed data does"
            raise StreamError(f"truncated_{self._name}", detail) from error
        except (zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile) as error:
            raise StreamError(f"corrupt_{self._name}", brief(error)) from error
        except OSError as error:
            if error.errno is not None:  # the disk, not the data
                raise
            raise StreamError(f"corrupt_{self._name}", brief(error)) from error

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._below.close()
        super().close()


class _Zstd:
    """Frames of zstandard, one after the other; an unfinished last frame raises ``EOFError``."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        # Long windows (zstd --long=31) are common in published corpora.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: Any = None
        self._plain = memoryview(b"")
        self._packed = b""

    def read1(self, size: int, /) -> bytes:
        while not self._plain and self._fill():
            pass
        data, self._plain = self._plain[:size], self._plain[size:]
        return bytes(data)

    def close(self) -> None:
        self._plain = memoryview(b"")

    def _fill(self) -> bool:
        """Decompress some more; False at the end of the file."""
        self._packed = self._packed or self._file.read(_ZSTD_BYTES)
        if not self._packed:
            if self._frame is not None:  # a frame was begun and the file is over: it was cut off
                raise EOFError
            return False
        self._frame = self._frame or self._decompressor.decompressobj()
        self._plain = memoryview(self._frame.decompress(self._packed))
        # The beginning of the next frame, if one follows.
        self._packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return True


class _Streams:
    """Streams of bzip2 or xz, one after the other; Python's own readers take a damaged later one for padding."""

    def __init__(self, file: BinaryIO, new: Callable[[], Any]) -> None:
        self._file, self._new = file, new
        self._stream: Any = None
        self._packed = b""

    def read1(self, size: int, /) -> bytes:
        while True:
            # In turn, until there is something to give: what the stream still holds, the stream after it, more bytes.
            if self._stream is not None and (data := self._decompress(size)):
                return data
            if self._stream is not None and self._stream.eof:
                self._packed, self._stream = self._stream.unused_data, None
            if self._stream is None or self._stream.needs_input:
                self._packed = self._packed or self._file.read(_PACKED_BYTES)
                if self._stream is None:
                    # Zeros between streams are padding (xz asks for them in fours); anything else must begin a stream.
                    self._packed = self._packed.lstrip(b"\0") or self._file.read(_PACKED_BYTES).lstrip(b"\0")
                    self._stream = self._new() if self._packed else None
                if not self._packed:
                    if self._stream is not None:
                        raise EOFError
                    return b""

    def close(self) -> None:
        self._stream = None

    def _decompress(self, size: int) -> bytes:
        # A decompressor that holds back output is given nothing new: it would keep that, and memory would grow.
        packed, self._packed = (self._packed, b"") if self._stream.needs_input else (b"", self._packed)
        return b"" if self._stream.eof else bytes(self._stream.decompress(packed, size))


_COMPRESSIONS: tuple[tuple[bytes, str, Callable[[BinaryIO], _Readable]], ...] = (
    (b"\x1f\x8b", "gzip", lambda file: gzip.GzipFile(fileobj=file)),
    (b"\x28\xb5\x2f\xfd", "zstd", _Zstd),
    (b"BZh", "bzip2", lambda file: _Streams(file, bz2.BZ2Decompressor)),
    (b"\xfd7zXZ\x00", "xz", lambda file: _Streams(file, lzma.LZMADecompressor)),
)


def whole(file: Input) -> bytes | Reject:
    """All bytes of a file, or the reject for one that is damaged or too large to be one record."""
    try:
        with open_stream(file) as stream:
            data = stream.read(MAX_RECORD_BYTES + 1)
    except FAULTS as error:
        return stream_reject(file.location, error)
    if len(data) > MAX_RECORD_BYTES:
        return Reject(file.location, "record_too_long", f"more than {MAX_RECORD_BYTES} bytes")
    return data
