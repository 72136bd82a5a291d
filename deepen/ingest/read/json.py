"""JSON files: an array of objects, one object, or several values one after the other; streamed by value.

A file that is one object with a single list of objects in it (``{"data": [...]}``) is read whole, as that list. JSON
gives no place to go on after a fault, so a damaged value costs the rest of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

from deepen.ingest.encodings import UTF_8, as_utf_8
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import MAX_RECORD_BYTES, Record, Reject, brief
from deepen.ingest.streams import FAULTS, Input, open_stream, stream_reject

_CHUNK_BYTES = 1 << 20
_SPACE = " \t\n\r"
_SHELL_CHARACTERS = 200
"""An object with a longer text beside its list is a record of its own."""


def read_json(file: Input, reading: Reading) -> Iterator[Record | Reject]:
    """One record per object, numbered from 1."""
    number = 0
    try:
        with open_stream(file) as packed:
            stream, encoding = as_utf_8(packed, reading.encoding, guess=False)
            meta = {} if encoding == UTF_8 else {"encoding": encoding}
            for number, value in enumerate(_values(stream), start=1):
                location = f"{file.location}:{number}"
                if isinstance(value, dict):
                    yield Record(location, value, meta)
                else:
                    yield Reject(location, "not_an_object", f"a JSON {type(value).__name__}, not an object")
    except UnicodeDecodeError as error:
        detail = f"the rest of the file: byte 0x{error.object[error.start]:02x}"
        yield Reject(f"{file.location}:{number + 1}", "not_utf8", detail, loss="file")
    except (json.JSONDecodeError, RecursionError) as error:
        detail = f"the rest of the file: {brief(error)}"
        yield Reject(f"{file.location}:{number + 1}", "invalid_json", detail, loss="file")
    except FAULTS as error:
        yield stream_reject(f"{file.location}:{number + 1}", error)


def _values(stream: BinaryIO) -> Iterator[Any]:
    """The elements of the file's array; or its values, and of a lone object that is a shell its list."""
    text = _Window(stream)
    if text.start() != "[":
        values = _sequence(text, separator="")
        # Two values, or one, tell whether the file is a lone object; more are not held.
        begin = list(islice(values, 2))
        yield from begin if len(begin) != 1 else _inside(begin[0])
        yield from values
        return
    text.skip(1)
    yield from _sequence(text, separator=",", end="]")
    if text.start():
        raise json.JSONDecodeError("text after the end of the array", "", 0)


def _inside(value: Any) -> list[Any]:
    if not isinstance(value, dict):
        return [value]
    lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
    texts = [item for item in value.values() if isinstance(item, str)]
    longest = max(map(len, texts), default=0)
    return lists[0] if len(lists) == 1 and longest <= _SHELL_CHARACTERS else [value]


def _sequence(text: _Window, separator: str, end: str = "") -> Iterator[Any]:
    first = True
    while (mark := text.start()) != end:
        if separator and not first:
            if mark != separator:
                raise json.JSONDecodeError("expected a comma or the end of the array", "", 0)
            text.skip(1)
        yield text.value()
        first = False
    text.skip(len(end))


class _Window:
    """The part of a stream of JSON that is being looked at; grows when a value does not fit."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = json.JSONDecoder()
        self._bytes = b""
        self._text = ""
        self._place = 0
        self._ended = False

    def start(self) -> str:
        """The next character that is no white space, without taking it; empty at the end."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in _SPACE + "\ufeff":
                self._place += 1
            if self._place < len(self._text):
                return self._text[self._place]
            if self._ended:
                return ""
            self._grow()

    def skip(self, num_characters: int) -> None:
        """Take characters that were looked at."""
        self._place += num_characters

    def value(self) -> Any:
        """Take the value that begins here."""
        self.start()
        while True:
            try:
                value, after = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError:  # damaged, or only not all here yet: more is read before it is believed
                if self._ended:
                    raise
            else:
                if after < len(self._text) or self._ended:  # a number could go on in what is not read yet
                    self._place = after
                    return value
            self._grow()

    def _grow(self) -> None:
        """Read as much again as is held, so that a long value is not tried too often."""
        self._text, self._place = self._text[self._place :], 0  # what was taken is forgotten
        data = self._stream.read(max(_CHUNK_BYTES, len(self._text)))
        if len(self._text) > MAX_RECORD_BYTES:
            raise json.JSONDecodeError(f"a value of more than {MAX_RECORD_BYTES} bytes", "", 0)
        self._ended = not data
        self._bytes += data
        whole = self._bytes if self._ended else self._bytes[: _complete(self._bytes)]
        self._text += whole.decode(UTF_8)
        self._bytes = self._bytes[len(whole) :]


def _complete(data: bytes) -> int:
    """How many of the bytes are whole characters: the last may be cut."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return len(data)
        if byte >= 0xC0:  # a lead byte, which says how long its character is
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) if back >= length else len(data) - back
    return len(data)
