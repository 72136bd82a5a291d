"""The training order: one little-endian uint64 per row, ``source index << 48 | row``, batch after batch.

Mixing, replay, epochs and caps are all this array; it can be looked at, plotted and compared. ``segments.json`` says
which range of batches lies where and how long its rows are, so a later change of mixture appends a segment instead of
rewriting the past, and names holes: batches that are passed over. Any batch is found by one read: resuming is free.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from pydantic import Field, ValidationError

from deepen.errors import DamageError
from deepen.formats.files.arrays import Array
from deepen.formats.files.atomic import FileEntry, write_json, writing
from deepen.settings import Many, Settings

SEGMENTS = "segments.json"
SOURCE_SHIFT = 48
"""Bits for the row number; the source index takes the 16 above."""
_ROW_MASK = (1 << SOURCE_SHIFT) - 1
_BLOCK_ROWS = 1 << 20
_FEW_ROWS = 16


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
    isolated: bool = True
    """Whether the documents of a row are kept apart; if not, a row is one text and labels cross its documents."""


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
    parent: str | None = None
    """In a file that was appended: ``Order.digest`` of the batches before its first, which it was made to follow."""
    parent_step: int = Field(default=0, ge=0)
    """In a file that was appended: the newest checkpoint when it was made; void when training goes back beyond it."""
    reason: str = ""
    domain_share: float | None = None
    """In a file that was appended: the share of tokens from domain sources in it."""
    notes: Many[str] = ()
    """Where what was asked could not be had, and why."""


def read_segment_file(path: Path) -> Segments:
    """Read one segment file; raises ``DamageError`` when it is missing or unreadable."""
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


def rows_in_batch(batch_tokens: int, sequence_length: int) -> int:
    """Rows of ``sequence_length`` tokens in a batch of ``batch_tokens``: the nearest whole number, at least 1."""
    return max(1, round(batch_tokens / sequence_length))


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
        tables = [read_segment_file(path) for path in paths]
        ranges: list[_Range] = []
        for path, table in zip(paths, tables, strict=True):
            for segment in table.segments:
                # The later file wins from its first batch on.
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

    def batch_of_step(self, step: int) -> int:
        """The batch of optimizer step ``step`` (from 1), holes passed over."""
        batch = step - 1
        # By first batch: passing over one hole may lead into the next.
        for hole in sorted(self.holes, key=lambda hole: hole.first_batch):
            if hole.first_batch <= batch:
                batch += hole.num_batches
        return batch

    def step_of_batch(self, batch: int) -> int:
        """The optimizer step (from 1) that trains a batch which is no hole."""
        skipped = sum(min(hole.num_batches, max(0, batch - hole.first_batch)) for hole in self.holes)
        return batch + 1 - skipped

    def stretches(self) -> list[Segment]:
        """The ranges of batches as they are in force, in order; their files and first rows are left as written."""
        return [
            found.segment.model_copy(update={"num_batches": found.end_batch - found.segment.first_batch})
            for found in self._ranges
        ]

    def blocks(self, first_batch: int = 0, end_batch: int | None = None) -> Iterator[tuple[Segment, int, Array]]:
        """Row ids of a range of batches, about a million at a time: (segment, first batch of the block, ids)."""
        end_batch = self.num_batches if end_batch is None else end_batch
        for found in self._ranges:
            segment, rows = found.segment, found.segment.rows_per_batch
            step = max(1, _BLOCK_ROWS // rows)  # whole batches
            begin, end = max(first_batch, segment.first_batch), min(end_batch, found.end_batch)
            for batch in range(begin, end, step):
                at = segment.first_row + (batch - segment.first_batch) * rows
                yield segment, batch, found.ids[at : at + min(step, end - batch) * rows]

    def find(self, ids: Collection[int]) -> list[tuple[int, int, int]]:
        """Where rows come: (batch, place in the batch, id) for each time one of ``ids`` is in the order, in order."""
        wanted = np.array(sorted(ids), dtype=np.uint64)
        found = []
        for segment, batch, block in self.blocks():
            if len(wanted) <= _FEW_ROWS:  # a few comparisons are faster than the sort inside `isin`
                hits = np.zeros(len(block), dtype=np.bool_)
                for row_id in wanted:
                    hits |= block == row_id
            else:
                hits = np.isin(block, wanted)
            for at in np.flatnonzero(hits).tolist():
                found.append((batch + at // segment.rows_per_batch, at % segment.rows_per_batch, int(block[at])))
        return found

    def rows_by_source(self, num_batches: int | None = None) -> Array:
        """int64[sources]: rows of each source in the first ``num_batches`` (None: all) batches, holes left out."""
        found = np.zeros(len(self.sources), dtype=np.int64)
        for ids in self.trained_blocks(num_batches):
            found += np.bincount(source_of(ids), minlength=len(self.sources))
        return found

    def trained_blocks(self, num_batches: int | None = None) -> Iterator[Array]:
        """Row ids of the first ``num_batches`` (None: all) batches, holes left out, about a million at a time."""
        for segment, batch, ids in self.blocks(0, num_batches):
            kept = np.ones(len(ids) // segment.rows_per_batch, dtype=np.bool_)
            for hole in self.holes:
                # A negative index would count from the end.
                kept[max(0, hole.first_batch - batch) : max(0, hole.first_batch + hole.num_batches - batch)] = False
            yield ids[np.repeat(kept, segment.rows_per_batch)]

    def digest(self, num_batches: int) -> str:
        """Identity of the first ``num_batches`` batches: xxh3-128 over their shapes and row ids."""
        state = xxhash.xxh3_128("\0".join(self.sources).encode())
        shape = None
        for segment, batch, block in self.blocks(0, num_batches):
            now = (segment.sequence_length, segment.rows_per_batch, segment.isolated)
            if now != shape:  # where files are cut or joined says nothing: only a change of shape is hashed
                state.update(f"{batch}:{now}".encode())
                shape = now
            state.update(np.ascontiguousarray(block).data)
        return state.hexdigest()

    def _range_of(self, batch: int) -> _Range:
        assert 0 <= batch < self.num_batches, f"batch {batch} of {self.num_batches}"
        return next(found for found in self._ranges if batch < found.end_batch)


def begins_with(longer: Path, shorter: Path) -> bool:
    """Whether the order in the mix directory ``longer`` begins with the whole order in ``shorter``."""
    new, old = Order.open(longer), Order.open(shorter)
    if new.sources != old.sources or new.num_batches < old.num_batches or new.holes != old.holes:
        return False
    return new.digest(old.num_batches) == old.digest(old.num_batches)


def appended_files(directory: Path) -> list[Path]:
    """The segment files that were appended under ``directory`` (``train/order``), in the order in which they were."""
    return sorted(directory.glob("[0-9][0-9][0-9].json"))


def check_parents(directory: Path, files: Sequence[Path]) -> None:
    """Raise ``DamageError`` when an appended file was made to follow another order than the one before it."""
    for number, path in enumerate(files):
        table, order = read_segment_file(path), Order.open(directory, *files[:number])
        first = table.segments[0].first_batch
        if first > order.num_batches or order.digest(first) != table.parent:
            raise DamageError(
                f"`{path}` was made to follow other batches than those before its first ({first})",
                hint="remove it and what was appended after it, and run `deepen remix` again",
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
