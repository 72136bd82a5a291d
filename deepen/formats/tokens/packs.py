"""Packed rows: which pieces of which documents share one training row.

A row's segments fill its positions from the left, and the rest is padding. Where documents of a row are not isolated
its segments may hold one token more than it has positions: the label of the last position.

CSR layout in two memory-mapped arrays per source, so that a row is found by two reads at any size:
``packs/SOURCE.rows.npy`` int64[num_rows + 1] and ``packs/SOURCE.segments.npy`` int32 or int64 [num_segments, 3] holding
(sequence in the shard, first token in it, number of tokens). Rows hold no tokens: changing the packing copies no data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepen.errors import DamageError
from deepen.formats.documents.document_ids import DocumentIds, read_document_ids
from deepen.formats.files.arrays import Array, open_array, write_array
from deepen.formats.files.atomic import FileEntry
from deepen.formats.tokens.megatron import IndexedDataset, idx_path
from deepen.formats.tokens.trained import TrainedMask

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Packs:
    """The packed rows of one source."""

    rows: Array
    """int64[num_rows + 1]: row r is the segments from ``rows[r]`` up to ``rows[r + 1]``."""
    segments: Array
    """[num_segments, 3]: sequence, start, length."""

    @classmethod
    def open(cls, directory: Path, source: str) -> Packs:
        """Map the rows of ``source`` in a mix directory; raises ``DamageError`` when its arrays disagree."""
        rows = open_array(directory / "packs" / f"{source}.rows.npy")
        segments = open_array(directory / "packs" / f"{source}.segments.npy")
        if rows.ndim != 1 or len(rows) < 1 or segments.shape[1:] != (3,) or rows[-1] != len(segments):
            raise DamageError(
                f"`{directory / 'packs'}`: rows and segments of `{source}` do not belong together",
                hint="run `deepen mix` again with --redo",
            )
        return cls(rows, segments)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.rows) - 1

    def row(self, row: int) -> Array:
        """The segments of a row: (k, 3) array of sequence, start and length, in the order of their positions."""
        return self.segments[int(self.rows[row]) : int(self.rows[row + 1])]

    def rows_with(self, sequence: int) -> dict[int, list[tuple[int, int]]]:
        """Where a document lies: row to [(start, length), ...] of its pieces there; reads all segments once."""
        found: dict[int, list[tuple[int, int]]] = {}
        for begin in range(0, len(self.segments), _BLOCK):
            for at in (begin + np.flatnonzero(self.segments[begin : begin + _BLOCK, 0] == sequence)).tolist():
                row = int(np.searchsorted(self.rows, at, side="right")) - 1
                found.setdefault(row, []).append((int(self.segments[at, 1]), int(self.segments[at, 2])))
        return found

    @property
    def tokens_per_row(self) -> Array:
        """int32[num_rows]: real tokens in each row (the rest is padding); read in blocks, 4 bytes per row."""
        return tokens_per_row(self.rows, self.segments)


def tokens_per_row(rows: Array, segments: Array) -> Array:
    """Sum of segment lengths of each row, as int32."""
    num_rows = len(rows) - 1
    totals = np.empty(num_rows, dtype=np.int32)
    for begin in range(0, num_rows, _BLOCK):
        starts = np.asarray(rows[begin : min(begin + _BLOCK, num_rows)])
        end = int(rows[min(begin + _BLOCK, num_rows)])
        # Every row has a segment: `reduceat` would give an empty one the length of the next.
        totals[begin : begin + len(starts)] = np.add.reduceat(segments[int(starts[0]) : end, 2], starts - starts[0])
    return totals


def write_packs(directory: Path, source: str, rows: Array, segments: Array) -> list[FileEntry]:
    """Write the packed rows of one source under ``directory``; entries are named relative to it."""
    packs = directory / "packs"
    return [
        write_array(packs / f"{source}.rows.npy", [rows], shape=rows.shape, dtype=np.int64, root=directory),
        write_array(
            packs / f"{source}.segments.npy", [segments], shape=segments.shape, dtype=segments.dtype, root=directory
        ),
    ]


def stage_with_shard(source: str, tokenize: Path, mix: Path) -> Path:
    """The stage directory with ``shards/SOURCE`` and ``documents/SOURCE.npy``; fixed rows are in ``mix``."""
    return mix if idx_path(mix / "shards" / source).is_file() else tokenize


@dataclass(frozen=True)
class SourceFiles:
    """What one source gives to the rows of a run."""

    name: str
    shard: IndexedDataset
    trained: TrainedMask
    packs: Packs
    document_ids: DocumentIds

    @classmethod
    def open(cls, name: str, tokenize: Path, mix: Path) -> SourceFiles:
        """Map the files of a source in the directories of both stages; the shards of fixed rows are in ``mix``."""
        stage = stage_with_shard(name, tokenize, mix)
        prefix = stage / "shards" / name
        shard, ids = IndexedDataset.open(prefix), read_document_ids(stage / "documents" / f"{name}.npy")
        return cls(name, shard, TrainedMask.open(prefix, shard), Packs.open(mix, name), ids)
