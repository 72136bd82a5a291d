"""Which of some documents were trained: those of which a piece lies in a row of a batch that training came to.

Ids are compared as numbers and rows by arrays, all in blocks; memory grows with rows and documents by a byte each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deepen.formats.files.arrays import Array
from deepen.formats.tokens.order import row_of, source_of
from deepen.formats.tokens.packs import Packs
from deepen.runs.order.rows import OpenedOrder, open_order

_BLOCK = 1 << 20


def trained_among(ids: Array, *, run: Path, num_steps: int) -> Array:
    """Which documents (ids as uint64[n, 2]) were in the first ``num_steps`` steps of ``run``, bool[n].

    A document that was cut counts with any piece, and so do batches whose update was skipped.
    """
    opened, wanted = open_order(run), np.unique(ids[:, 0])
    trained: set[tuple[int, int]] = set()
    for index, source in enumerate(opened.sources):
        files = opened.files(source)
        halves = files.document_ids.halves
        sequences = _with_halves(halves, wanted)
        if len(sequences):
            chosen = sequences[_trained_sequences(opened, index, files.packs, num_steps, len(halves))[sequences]]
            trained.update((int(high), int(low)) for high, low in halves[chosen])
    return np.fromiter(((int(high), int(low)) in trained for high, low in ids), np.bool_, len(ids))


def _with_halves(halves: Array, wanted: Array) -> Array:
    """Sequences of a shard the upper half of whose id is ``wanted``."""
    found = [
        begin + np.flatnonzero(np.isin(halves[begin : begin + _BLOCK, 0], wanted))
        for begin in range(0, len(halves), _BLOCK)
    ]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _trained_sequences(opened: OpenedOrder, index: int, packs: Packs, num_steps: int, num_sequences: int) -> Array:
    """Which sequences of a source's shard lie in rows of the first steps, bool[num_sequences]."""
    rows, sequences = np.zeros(packs.num_rows, np.bool_), np.zeros(num_sequences, np.bool_)
    for ids in opened.order.trained_blocks(opened.order.batch_of_step(num_steps) + 1):
        rows[row_of(ids[source_of(ids) == index])] = True
    for begin in range(0, packs.num_rows, _BLOCK):
        chosen = rows[begin : begin + _BLOCK]
        offsets = np.asarray(packs.rows[begin : begin + len(chosen) + 1])
        segments = packs.segments[int(offsets[0]) : int(offsets[-1])]
        inside = np.repeat(chosen, np.diff(offsets)) & (segments[:, 2] > 0)
        sequences[segments[inside, 0]] = True
    return sequences
