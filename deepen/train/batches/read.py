"""Batches from the written-down order: a pure function of the batch index, found in constant time.

No state, no shuffling, no worker processes: the order says which packed rows a batch holds, the packs say which pieces
of which documents a row holds, and the shards hold the tokens. Work is per piece of a document, never per token.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepen.formats.files.arrays import Array
from deepen.formats.tokens.order import Order, row_of, source_of
from deepen.formats.tokens.packs import SourceFiles

IGNORED = -100
"""Label of a position that carries no loss."""
PADDING_TOKEN = 0


@dataclass(frozen=True)
class Batch:
    """One optimizer step's rows. B rows of T positions; int64 unless noted."""

    tokens_BT: Array
    labels_BT: Array
    """The next token of the same document, also across a cut; ``IGNORED`` at a document's end, on padding, and where
    that token is no target. In rows that are not isolated the next token of the row."""
    positions_BT: Array
    """Count from 0 in every piece of a document, and in the padding; through the row when it is not isolated."""
    documents_BT: Array
    """Sequence number in the source's shard; -1 on padding."""
    source_B: Array
    """Source index of each row."""
    masked_B: Array
    """How many labels of each row are ``IGNORED`` because their token is no target (a question, a mark)."""


@dataclass(frozen=True)
class Batches:
    """All batches of a run."""

    order: Order
    sources: tuple[SourceFiles, ...]
    """By source index."""

    @classmethod
    def open(cls, tokenize_directory: Path, mix_directory: Path, *extra_segments: Path) -> Batches:
        """Map the shards of a tokenize directory, and the fixed rows, packs and order of a mix directory."""
        order = Order.open(mix_directory, *extra_segments)
        return cls(order, tuple(SourceFiles.open(name, tokenize_directory, mix_directory) for name in order.sources))

    @property
    def sequence_length(self) -> int:
        """Positions in the longest rows of the run."""
        return max(stretch.sequence_length for stretch in self.order.stretches())

    def __len__(self) -> int:
        return self.order.num_batches

    def __getitem__(self, batch_index: int) -> Batch:
        ids_B = np.asarray(self.order.batch(batch_index))
        source_B, row_B = source_of(ids_B), row_of(ids_B)
        segment = self.order.segment_of(batch_index)
        shape = (len(ids_B), segment.sequence_length)
        batch = Batch(
            tokens_BT=np.full(shape, PADDING_TOKEN, dtype=np.int64),
            labels_BT=np.full(shape, IGNORED, dtype=np.int64),
            positions_BT=np.zeros(shape, dtype=np.int64),
            documents_BT=np.full(shape, -1, dtype=np.int64),
            source_B=source_B,
            masked_B=np.zeros(shape[0], dtype=np.int64),
        )
        counting_T = np.arange(shape[1], dtype=np.int64)
        for index, (source, row) in enumerate(zip(source_B.tolist(), row_B.tolist(), strict=True)):
            _fill_row(batch, index, self.sources[source], row, counting_T)
            if not segment.isolated:
                _join_row(batch, index, self.sources[source], row, counting_T)
        return batch

    def document_names(self, batch_index: int, rows: Collection[int] | None = None) -> list[str]:
        """``SOURCE:DOCUMENT_ID`` of every document in a batch, or in some of its rows, for messages about it."""
        names: dict[str, None] = {}
        for index, row_id in enumerate(self.order.batch(batch_index)):
            if rows is not None and index not in rows:
                continue
            source = self.sources[int(source_of(row_id))]
            for sequence in source.packs.row(int(row_of(row_id)))[:, 0].tolist():
                names[f"{source.name}:{source.document_ids[sequence]}"] = None
        return list(names)


def _fill_row(batch: Batch, index: int, source: SourceFiles, row: int, counting_T: Array) -> None:
    """Copy the pieces of one packed row into row ``index`` of the batch."""
    at = 0
    for sequence, start, length in source.packs.row(row).tolist():
        length = min(length, len(counting_T) - at)  # a row of joined documents may end with a token for its last label
        end = at + length
        piece = source.shard.read(sequence, start, length + 1)  # one more, if the document has it: the last label
        # Where the row cuts a document, its next token is still in the shard: no label is lost by a cut.
        has_next = start + length < int(source.shard.lengths[sequence])
        num_labels = length if has_next else length - 1
        batch.tokens_BT[index, at:end] = piece[:length]
        batch.labels_BT[index, at : at + num_labels] = piece[1 : 1 + num_labels]
        _mask(batch, index, at, source.trained.read(sequence, start + 1, num_labels))
        # All that keeps documents apart: attention finds their bounds where positions restart, and is given no mask.
        batch.positions_BT[index, at:end] = counting_T[:length]
        batch.documents_BT[index, at:end] = sequence
        at = end
    # Padding counts as one more document, hidden from the last real one.
    batch.positions_BT[index, at:] = counting_T[: len(counting_T) - at]


def _mask(batch: Batch, index: int, at: int, flags: Array | None) -> None:
    """Take the labels from position ``at`` of a row out of the loss where their tokens are no targets."""
    if flags is None:
        return
    masked = flags == 0
    batch.labels_BT[index, at : at + len(flags)][masked] = IGNORED
    batch.masked_B[index] += int(masked.sum())


def _join_row(batch: Batch, index: int, source: SourceFiles, row: int, counting_T: Array) -> None:
    """Make one text of row ``index``: positions count through, and a document's last label begins the next one."""
    at = 0
    for sequence, start, length in source.packs.row(row).tolist():
        if 0 < at <= len(counting_T):
            batch.labels_BT[index, at - 1] = source.shard.read(sequence, start, 1)[0]
            _mask(batch, index, at - 1, source.trained.read(sequence, start, 1))
        at += length
    batch.positions_BT[index] = counting_T
