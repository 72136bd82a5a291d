"""What readers yield: records, and rejects for what cannot be one; and lines, the unit of most text formats.

A reader never raises for what is wrong with the data: it yields a ``Reject`` with the place and goes on with the next
record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_RECORD_BYTES = 512 << 20
"""Longer lines and text files are rejected: a line of this size is a file of another format."""
_DETAIL_CHARACTERS = 200


@dataclass(frozen=True)
class Record:
    """The fields of one record and where it was found (``relative/path:line``)."""

    location: str
    values: Mapping[str, Any]
    meta: Mapping[str, str] = field(default_factory=dict)
    """What the reader found worth keeping with the document."""
    whole_file: bool = False
    """The record is the text of a file, in the field ``text``; otherwise it is a row with fields of any names."""


@dataclass(frozen=True)
class Reject:
    """Something that is no document, where it is, and why. ``num_records`` are lost with it."""

    location: str
    reason: str
    detail: str = ""
    num_records: int = 1


def brief(error: Exception) -> str:
    """The first line of an error's message, shortened."""
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return (text.splitlines() or [type(error).__name__])[0][:_DETAIL_CHARACTERS]


def lines_of(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    r"""Number (from 1) and bytes of each line, without its ``\n`` or ``\r\n``; None for one that is too long.

    Only ``\n`` ends a line: texts hold U+2028, U+0085 and lone ``\r``. A byte order mark at the start is left out.
    """
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES):
        number += 1
        whole = line.endswith(b"\n")
        if not whole and len(line) >= MAX_RECORD_BYTES:
            # To the end of the line, in pieces that are let go.
            while (rest := stream.readline(MAX_RECORD_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
            continue
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def bad_byte(error: UnicodeDecodeError) -> str:
    """Which byte is not in the encoding."""
    return f"byte 0x{error.object[error.start]:02x} at position {error.start}"


def decode(data: bytes, location: str) -> str | Reject:
    """UTF-8 text, or the reject that says where it is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        encoding = "; it begins like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        return Reject(location, "not_utf8", bad_byte(error) + encoding)
