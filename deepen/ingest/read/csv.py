"""CSV with a header line. Delimiter comma, semicolon, tab or bar, whichever cuts the first rows as it cuts the header.

Python's lenient mode hides two faults that swallow text: a quote that is never closed eats the rest of the file, and
a stray delimiter cuts a field. So the strict mode reads record by record; after a fault reading goes on with the line
after the one where the faulty record began, and a row with more or fewer fields than the header is rejected.
"""

from __future__ import annotations

import csv
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from deepen.ingest.encodings import UTF_8, as_utf_8
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Record, Reject, brief, decode, lines_of
from deepen.ingest.streams import FAULTS, Input, open_stream, stream_reject

_DELIMITERS = ",;\t|"
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 100, 1 << 20
"""What the delimiter is told from."""
_MAX_RECORD_CHARACTERS = 64 << 20
_MAX_OPEN_QUOTES = 100
"""Each open quote costs reading ahead to the limit above; a file with more of them is not quoted as CSV is."""


def read_csv(file: Input, reading: Reading) -> Iterator[Record | Reject]:
    """One record per row after the header; a damaged row costs that row only."""
    csv.field_size_limit(sys.maxsize)  # the default, 128 kB, is shorter than many a document
    lines: _Lines | None = None
    try:
        with open_stream(file) as packed:
            stream, encoding = as_utf_8(packed, reading.encoding)
            lines = _Lines(stream)
            for found in _rows(lines, file, reading):
                if isinstance(found, Record) and encoding != UTF_8:
                    yield replace(found, meta={"encoding": encoding})
                else:
                    yield found
    except FAULTS as error:
        yield stream_reject(f"{file.location}:{lines.number + 1 if lines else 1}", error)


class _Lines:
    """The lines of a file for ``csv.reader``, remembering those of the present record to be able to go back."""

    def __init__(self, stream: BinaryIO) -> None:
        self._source = lines_of(stream)
        self._ahead: deque[str] = deque()
        self._record: list[str] = []
        self._num_characters = 0
        self._fault: Exception | None = None
        self.number = 0
        """How many lines were handed out."""
        self.too_long = False
        """The present record holds a line that was too long to be read."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        # To the reader this looks like the end of the file, inside quotes.
        if self._num_characters > _MAX_RECORD_CHARACTERS:
            raise StopIteration
        line = self._ahead.popleft() if self._ahead else self._read()
        self.number += 1
        self._record.append(line)
        self._num_characters += len(line)
        return line

    def _read(self) -> str:
        if self._fault is not None:
            raise self._fault
        _, data = next(self._source)
        self.too_long = self.too_long or data is None
        # What is no UTF-8 is found when its field is decoded.
        return (data or b"").decode("utf-8", "surrogateescape") + "\n"

    def peek(self) -> str:
        """The next line without taking it; empty at the end."""
        self._look_ahead(1)
        if not self._ahead and self._fault is not None:
            raise self._fault
        return self._ahead[0] if self._ahead else ""

    def sample(self) -> list[str]:
        """The next lines without taking them."""
        self._look_ahead(_SAMPLE_LINES)
        return list(self._ahead)

    def _look_ahead(self, num_lines: int) -> None:
        num_characters = sum(map(len, self._ahead))
        while len(self._ahead) < num_lines and num_characters < _SAMPLE_CHARACTERS:
            try:
                line = self._read()
            except StopIteration:
                return
            except FAULTS as error:  # it belongs to the lines after these
                self._fault = error
                return
            self._ahead.append(line)
            num_characters += len(line)

    def begin_record(self) -> int:
        """Forget the record before; returns the number of the first line of the next one."""
        self._record, self._num_characters, self.too_long = [], 0, False
        return self.number + 1

    def go_back(self) -> None:
        """Make the lines after the present record's first one the next to be read."""
        self._ahead.extendleft(reversed(self._record[1:]))  # `extendleft` turns them round again
        self.number -= len(self._record) - 1


def _rows(lines: _Lines, file: Input, reading: Reading) -> Iterator[Record | Reject]:
    reader = csv.reader(lines, delimiter=reading.delimiter or _delimiter(file, lines.sample()), strict=True)
    header: list[str] | None = None
    open_quotes = 0
    while lines.peek():
        location = f"{file.location}:{lines.begin_record()}"
        try:
            row = next(reader)
        except csv.Error as error:
            yield Reject(location, "invalid_csv", brief(error))
            open_quotes += "unexpected end" in str(error)  # how the csv module calls a quote that is never closed
            if header is None or open_quotes > _MAX_OPEN_QUOTES:
                detail = "the rest of the file was not read: header or quotes are damaged"
                yield Reject(location, "invalid_csv", detail, loss="file")
                return
            lines.go_back()
            continue
        if lines.too_long:
            yield Reject(location, "record_too_long", "a line is too long to be read")
        elif row and header is None:
            header = row
        elif row and header is not None:
            yield _record(location, header, row, reading)


def _record(location: str, header: list[str], row: list[str], reading: Reading) -> Record | Reject:
    if len(row) != len(header):
        return Reject(location, "ragged_row", f"{len(row)} fields, the header has {len(header)}")
    values = dict(zip(reversed(header), reversed(row), strict=True))  # of equal names the first counts
    for name in values if reading.fields is None else reading.fields:
        data = values.get(name, "").encode("utf-8", "surrogateescape")
        text = decode(data, location)
        if isinstance(text, Reject):
            return text
    return Record(location, values)


def _delimiter(file: Input, sample: list[str]) -> str:
    """The delimiter outside of quotes that cuts most of the first rows into as many fields as the header."""
    names = file.location.lower().split("/")[-1].split(".")
    if "tsv" in names[1:]:
        return "\t"
    header = sample[0] if sample else ""
    # `max` takes the first of equals, so that of two that fit it is the one that the header has more of.
    candidates = sorted(_DELIMITERS, key=header.count, reverse=True)
    return max(candidates, key=lambda delimiter: _fit(sample, delimiter))


def _fit(sample: list[str], delimiter: str) -> tuple[bool, float]:
    """Whether the delimiter cuts the header at all, and the share of the rows that it cuts alike."""
    try:
        widths = [len(row) for row in csv.reader(sample, delimiter=delimiter) if row]
    except csv.Error:
        return False, 0.0
    if not widths:
        return False, 0.0
    rows = widths[1:-1] or widths[1:]  # the sample may end inside the last row
    return widths[0] > 1, sum(width == widths[0] for width in rows) / max(1, len(rows))
