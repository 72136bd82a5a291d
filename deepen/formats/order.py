"""The training order: one little-endian uint64 per row, ``source index << 48 | row``, batch after batch.

Mixing, replay, epochs and caps are all this array; it can be looked at, plotted and compared. ``segments.json`` says
which range of batches lies where, so a later change of mixture appends a segment instead of rewriting the past, and
names holes: batches that are passed over. Any batch is found by one read, which makes resuming free.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from deepen.errors import DamageError
from deepen.formats.atomic import FileEntry, write_json, writing
from deepen.settings import Many, Settings

Array = npt.NDArray[Any]

SEGMENTS = "segments.json"
SOURCE_SHIFT = 48
"""Bits for the row number; the source index takes the 16 above."""
_ROW_MASK = (1 << SOURCE_SHIFT) - 1


class Segment(Settings):
    """A range of batches that lie one after another in one file."""

    file: str
    """Relative to the directory of ``segments.json``."""
    first_batch: int = Field(ge=0)
    num_batches: int = Field(ge=0)
    sequence_length: int = Field(gt=0)
    rows_per_batch: int = Field(gt=0)
    first_row: int = Field(default=0, ge=0)
    """Where the range begins in the file, in rows."""


class Hole(Settings):
    """Batches ``first_batch .. first_batch + num_batches`` are never trained."""

    first_batch: int = Field(ge=0)
    num_batches: int = Field(gt=0)
    reason: str = ""


class Segments(Settings):
    """Contents of ``segments.json``."""

    sources: Many[str]
    """Names by source index."""
    segments: Many[Segment]
    holes: Many[Hole] = ()


def read_segments(directory: Path) -> Segments:
    """Read ``segments.json`` of a mix directory; raises ``DamageError`` when it is missing or unreadable."""
    return _read(directory / SEGMENTS)


def _read(path: Path) -> Segments:
    try:
        segments = Segments.model_validate_json(path.read_bytes(), strict=False)
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        raise DamageError(f"`{path}` cannot be read: {error}", hint="run `deepen mix` again with --redo") from error
    if not segments.segments:
        raise DamageError(f"`{path}` lists no batches", hint="run `deepen mix` again with --redo")
    return segments


def write_segments(directory: Path, segments: Segments) -> FileEntry:
    """Write ``segments.json`` into ``directory``."""
    return write_json(directory / SEGMENTS, segments.model_dump(mode="json"))


def row_ids(source: int, rows: Array) -> Array:
    """Row numbers of one source as ids of the order."""
    return np.uint64(source << SOURCE_SHIFT) | rows.astype(np.uint64)


def source_of(ids: Array) -> Array:
    """Source indices of ids of the order, as int64."""
    return (ids >> np.uint64(SOURCE_SHIFT)).astype(np.int64)


def row_of(ids: Array) -> Array:
    """Row numbers (within their source) of ids of the order, as int64."""
    return (ids & np.uint64(_ROW_MASK)).astype(np.int64)


def write_order(path: Path, blocks: Iterable[Array], root: Path) -> FileEntry:
    """Write row ids as they come, block by block; the entry is named relative to ``root``."""
    with writing(path) as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<u8"))
    return file.entry(path.relative_to(root).as_posix())


@dataclass(frozen=True)
class _Range:
    segment: Segment
    ids: Array
    end_batch: int


@dataclass(frozen=True)
class Order:
    """The training order of a mix directory, with segments that were appended later laid over it."""

    sources: tuple[str, ...]
    """Names by source index."""
    num_batches: int
    holes: tuple[Hole, ...]
    _ranges: tuple[_Range, ...]

    @classmethod
    def open(cls, directory: Path, *extra: Path) -> Order:
        """Map the order in ``directory``; ``extra`` are further segment files, each valid from its first batch on.

        Raises ``DamageError`` when a file is missing, too short, or the segments leave a gap.
        """
        paths = [directory / SEGMENTS, *extra]
        tables = [_read(path) for path in paths]
        ranges: list[_Range] = []
        for path, table in zip(paths, tables, strict=True):
            for segment in table.segments:
                ranges = [*_cut(ranges, segment.first_batch), _open_range(path.parent, segment)]
        for before, after in zip(ranges, ranges[1:], strict=False):
            if before.end_batch != after.segment.first_batch:
                raise DamageError(
                    f"`{directory}`: no order for batches {before.end_batch} to {after.segment.first_batch}",
                    hint="remove the later segment file, or run `deepen mix` again with --redo",
                )
        holes = tuple(hole for table in tables for hole in table.holes)
        return cls(tables[-1].sources, ranges[-1].end_batch, holes, tuple(ranges))

    def segment_of(self, batch: int) -> Segment:
        """The segment that holds a batch."""
        return self._range_of(batch).segment

    def batch(self, batch: int) -> Array:
        """Row ids of a batch: uint64[rows_per_batch], ``source index << 48 | row``."""
        found = self._range_of(batch)
        begin = found.segment.first_row + (batch - found.segment.first_batch) * found.segment.rows_per_batch
        return found.ids[begin : begin + found.segment.rows_per_batch]

    def is_hole(self, batch: int) -> bool:
        """Whether a batch is passed over in training."""
        return any(0 <= batch - hole.first_batch < hole.num_batches for hole in self.holes)

    def next_batch(self, batch: int) -> int:
        """The first batch from ``batch`` on that is no hole; ``num_batches`` when none is left."""
        while batch < self.num_batches and self.is_hole(batch):
            batch += 1
        return min(batch, self.num_batches)

    def _range_of(self, batch: int) -> _Range:
        assert 0 <= batch < self.num_batches, f"batch {batch} of {self.num_batches}"
        return next(found for found in self._ranges if batch < found.end_batch)


def begins_with(longer: Path, shorter: Path) -> bool:
    """Whether the order in the mix directory ``longer`` begins with the whole order in ``shorter``."""
    new, old = Order.open(longer), Order.open(shorter)
    if new.sources != old.sources or new.num_batches < old.num_batches or new.holes != old.holes:
        return False
    return all(
        new.segment_of(batch).sequence_length == old.segment_of(batch).sequence_length
        and np.array_equal(new.batch(batch), old.batch(batch))
        for batch in range(old.num_batches)
    )


def _cut(ranges: Sequence[_Range], first_batch: int) -> list[_Range]:
    """What remains of ``ranges`` before ``first_batch``: a later segment replaces everything from there on."""
    kept = [found for found in ranges if found.segment.first_batch < first_batch]
    return [_Range(found.segment, found.ids, min(found.end_batch, first_batch)) for found in kept]


def _open_range(directory: Path, segment: Segment) -> _Range:
    path = directory / segment.file
    needed = 8 * (segment.first_row + segment.num_batches * segment.rows_per_batch)
    if not path.is_file() or path.stat().st_size < needed:
        raise DamageError(
            f"`{path}` is missing or too short: its segment needs {needed} bytes",
            hint="run `deepen mix` again with --redo",
        )
    ids = np.memmap(path, dtype="<u8", mode="r") if needed else np.empty(0, dtype="<u8")
    return _Range(segment, ids, segment.first_batch + segment.num_batches)
