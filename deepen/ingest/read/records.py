"""What readers yield: records, and rejects for what cannot be one; and lines, the unit of most text formats.

A reader never raises for what is wrong with the data: it yields a ``Reject`` with the place and goes on with the next
record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, BinaryIO, Literal

MAX_RECORD_BYTES = 512 << 20
"""Longer lines and text files are rejected: a line of this size is a file of another format."""
_DETAIL_CHARACTERS = 200


@dataclass(frozen=True)
class Expansion:
    """How far something packed may expand: so many times its packed size, and to so many bytes in any case."""

    ratio: float = 100.0
    num_bytes: int = 100 * 10**6

    def forbids(self, plain_bytes: int, packed_bytes: int) -> bool:
        """Whether no honest file of so many packed bytes expands so far."""
        return plain_bytes > max(self.num_bytes, packed_bytes * self.ratio)

    def times(self, factor: int) -> Expansion:
        """The same with a larger ratio."""
        return replace(self, ratio=self.ratio * factor)


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
    loss: Literal["records", "file", "left_out"] = "records"
    """``file``: the rest of a file is lost, and how many records that is cannot be known. ``left_out``: a table without
    a text."""
    lost_bytes: int | None = None
    """With the loss of a file: how many of its bytes, as they lie on the disk, were not read; None: not told yet."""


@dataclass
class Tally:
    """How many files were opened (archives count by their members) and what became of those that gave no records."""

    files: int = 0
    bytes: int = 0
    empty: int = 0
    """Files with nothing in them, and marks that other programs leave (``_SUCCESS``): nothing is lost with them."""
    lost_files: int = 0
    lost_bytes: int = 0
    left_out_files: int = 0
    left_out_bytes: int = 0

    def note(self, reject: Reject) -> None:
        """Count a reject that stands for a file."""
        if reject.loss == "file":
            self.lost_files += 1
            self.lost_bytes += reject.lost_bytes or 0
        elif reject.loss == "left_out":
            self.left_out_files += 1
            self.left_out_bytes += reject.lost_bytes or 0

    def add(self, other: Mapping[str, int]) -> None:
        """Add the numbers of another one, given by name."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + other.get(one.name, 0))


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
