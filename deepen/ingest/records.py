"""What readers yield: records, and rejects for what cannot be one. Opening files as plain byte streams.

A reader never raises for what is wrong with the data: it yields a ``Reject`` with the place and goes on with the next
record. Compression is told from the first bytes, since suffixes lie; a stream that ends early is told from one that
is complete, which the zstandard library's own file reader does not do.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import zstandard

MAX_RECORD_BYTES = 512 << 20
"""Longer lines and text files are rejected: a line of this size is a file of another format."""
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_CHUNK_BYTES = 1 << 18
_PACKED_BYTES = 1 << 13
"""Small, because what a damaged piece unpacked to before the damage is lost."""
_DETAIL_CHARACTERS = 200


@dataclass(frozen=True)
class Record:
    """The fields of one record and where it was found (``relative/path:line``)."""

    location: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Reject:
    """Something that is no document, where it is, and why. ``num_records`` are lost with it."""

    location: str
    reason: str
    detail: str = ""
    num_records: int = 1


class StreamError(Exception):
    """A compressed stream is damaged: ``reason`` is the reject's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


FAULTS = (OSError, EOFError, zlib.error, StreamError)
"""What reading a stream may raise, for ``stream_reject``."""


def stream_reject(location: str, error: Exception) -> Reject:
    """The reject for a stream that could not be read on from ``location``."""
    if isinstance(error, StreamError):
        return Reject(location, error.reason, brief(error))
    if isinstance(error, EOFError):
        return Reject(location, "truncated_gzip", "the file ends before its compressed data does")
    if isinstance(error, gzip.BadGzipFile | zlib.error):
        return Reject(location, "corrupt_gzip", brief(error))
    return Reject(location, "unreadable_file", brief(error))


def brief(error: Exception) -> str:
    """The first line of an error's message, shortened."""
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return (text.splitlines() or [type(error).__name__])[0][:_DETAIL_CHARACTERS]


def open_stream(path: str) -> BinaryIO:
    """Open a file as its uncompressed bytes (gzip and zstandard are recognised by their first bytes)."""
    file = Path(path).open("rb")  # noqa: SIM115 - the caller closes what is returned, which closes this
    try:
        magic = file.read(4)
        file.seek(0)
    except OSError:
        file.close()
        raise
    if magic.startswith(_GZIP_MAGIC):
        return cast(BinaryIO, io.BufferedReader(_Owned(gzip.GzipFile(fileobj=file), file), _CHUNK_BYTES))
    if magic == _ZSTD_MAGIC:
        return cast(BinaryIO, io.BufferedReader(_Owned(_Zstd(file), file), _CHUNK_BYTES))
    return file


class _Readable(Protocol):
    def read1(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class _Owned(io.RawIOBase):
    """A decompressing stream that closes the file below it as well."""

    def __init__(self, stream: _Readable, file: BinaryIO) -> None:
        self._stream, self._below = stream, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(len(buffer))  # read() would lose what was unpacked before an error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._below.close()
        super().close()


class _Zstd(io.RawIOBase):
    """Frames of zstandard, one after the other; an unfinished last frame raises ``StreamError``."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        # Long windows (zstd --long=31) are common in published corpora.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: Any = None
        self._plain = memoryview(b"")
        self._packed = b""

    def read1(self, size: int) -> bytes:
        while not self._plain and self._fill():
            pass
        data, self._plain = self._plain[:size], self._plain[size:]
        return bytes(data)

    def _fill(self) -> bool:
        """Decompress some more; False at the end of the file."""
        self._packed = self._packed or self._file.read(_PACKED_BYTES)
        if not self._packed:
            if self._frame is not None:
                raise StreamError("truncated_zstd", "the file ends before its compressed data does")
            return False
        self._frame = self._frame or self._decompressor.decompressobj()
        try:
            self._plain = memoryview(self._frame.decompress(self._packed))
        except zstandard.ZstdError as error:
            raise StreamError("corrupt_zstd", str(error)) from error
        self._packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return True


def lines_of(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    r"""Number (from 1) and bytes of each line, without its ``\n`` or ``\r\n``; None for one that is too long.

    Only ``\n`` ends a line: texts hold U+2028, U+0085 and lone ``\r``. A byte order mark at the start is left out.
    """
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES):
        number += 1
        whole = line.endswith(b"\n")
        if not whole and len(line) >= MAX_RECORD_BYTES:
            while (rest := stream.readline(MAX_RECORD_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
            continue
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def decode(data: bytes, location: str) -> str | Reject:
    """UTF-8 text, or the reject that says where it is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        encoding = "; it begins like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        detail = f"byte 0x{data[error.start]:02x} at position {error.start}{encoding}"
        return Reject(location, "not_utf8", detail)
