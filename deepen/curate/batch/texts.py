"""Many texts as one buffer of UTF-8, so that a compiled loop takes a whole batch of documents in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from deepen.formats.files.arrays import Array


@dataclass(frozen=True)
class Texts:
    """n texts: the i-th is ``buffer[starts[i] : ends[i]]`` (uint8; positions int64)."""

    buffer: Array
    starts: Array
    ends: Array

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def sizes(self) -> Array:
        """Bytes of each text, int64 [n]."""
        return np.asarray(self.ends - self.starts)

    def data(self, number: int) -> Array:
        """The bytes of one text, uint8; nothing is copied."""
        return np.asarray(self.buffer[self.starts[number] : self.ends[number]])

    def text(self, number: int) -> str:
        """One text as a string."""
        return self.data(number).tobytes().decode()

    def only(self, chosen: Array) -> Texts:
        """The same with all texts empty that are not marked in ``chosen`` (bool [n])."""
        # An empty text keeps its row, and costs the loops nothing.
        return Texts(self.buffer, self.starts, np.where(chosen, self.ends, self.starts))

    def where(self, chosen: Array, other: Texts) -> Texts:
        """These texts where ``chosen`` (bool [n]) says so, else those of ``other``; nothing is copied if all are."""
        if chosen.all():
            return self
        buffer, size = np.concatenate([self.buffer, other.buffer]), len(self.buffer)
        starts = np.where(chosen, self.starts, other.starts + size)
        return Texts(buffer, starts, np.where(chosen, self.ends, other.ends + size))

    def heads(self, num_bytes: int) -> Texts:
        """A copy of the first bytes of each text."""
        return texts_of_bytes([self.data(number)[:num_bytes] for number in range(len(self))])

    def head(self, number: int, characters: int) -> str:
        """The first characters of one text."""
        # A character has at most four bytes; the one that is cut in the middle is the one to ignore.
        return self.data(number)[: 4 * characters].tobytes().decode(errors="ignore")[:characters]


def texts_of(strings: Sequence[str]) -> Texts:
    """Texts out of strings."""
    return texts_of_bytes([text.encode() for text in strings])


def texts_of_bytes(pieces: Sequence[Any]) -> Texts:
    """Texts out of pieces of UTF-8 (bytes or arrays of them)."""
    offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
    np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
    buffer = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    return Texts(buffer, offsets[:-1], offsets[1:])


def from_arrow(column: pa.ChunkedArray) -> Texts:
    """The texts of a column of ``large_string`` without nulls; one of a single chunk is not copied."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # what `combine_chunks` makes of a column without rows
        array = pa.array([], pa.large_string())
    _, offset_data, data = array.buffers()
    if not len(array):
        return texts_of([])
    # A slice shares the buffers of the whole.
    offsets = np.frombuffer(offset_data, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    buffer = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    return Texts(buffer, offsets[:-1], offsets[1:])


def to_arrow(texts: Texts) -> pa.Array:
    """A column of ``large_string``; texts that lie end to end are not copied."""
    # Arrow keeps one array of offsets, so each text must end where the next begins; the first need not begin at 0.
    if len(texts) and not np.array_equal(texts.starts[1:], texts.ends[:-1]):
        texts = texts_of_bytes([texts.data(number) for number in range(len(texts))])
    offsets = np.append(texts.starts, texts.ends[-1:] if len(texts) else np.zeros(1, dtype=np.int64))
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(texts.buffer)]
    return pa.Array.from_buffers(pa.large_string(), len(texts), buffers)
