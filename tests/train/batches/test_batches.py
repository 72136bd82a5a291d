from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from deepen.formats.manifest import Artifact
from deepen.formats.tokens.order import row_of, source_of
from deepen.train.batches.counts import SourceCounts, count_batch
from deepen.train.batches.read import IGNORED, Batches


@pytest.fixture
def batches(inputs: dict[str, Artifact]) -> Batches:
    return Batches.open(inputs["tokenize"].path, inputs["mix"].path)


def test_rows_hold_the_pieces_that_their_pack_names(batches: Batches) -> None:
    batch, ids = batches[5], batches.order.batch(5)
    for index, row_id in enumerate(ids):
        source = batches.sources[source_of(row_id)]
        assert batch.source_B[index] == source_of(row_id)
        pieces = source.packs.row(int(row_of(row_id))).tolist()
        expected = np.concatenate(
            [source.shard[sequence][start : start + length] for sequence, start, length in pieces]
        )
        assert batch.tokens_BT[index, : len(expected)].tolist() == expected.tolist()
        assert (batch.documents_BT[index, len(expected) :] == -1).all()


def test_labels_are_the_next_tokens_of_the_document_also_across_cuts(batches: Batches) -> None:
    cuts = 0
    for number in range(len(batches)):
        batch = batches[number]
        for row, source in enumerate(batch.source_B):
            at = 0
            for sequence, start, length in batches.sources[source].packs.row(
                int(row_of(batches.order.batch(number)[row]))
            ):
                document = batches.sources[source].shard[int(sequence)].tolist()
                expected = [*document[1:], IGNORED][start : start + length]
                assert batch.labels_BT[row, at : at + length].tolist() == expected
                at += length
                cuts += start + length < len(document)
            assert (batch.labels_BT[row, at:] == IGNORED).all()
    assert cuts > 10


def test_positions_restart_at_each_piece_and_in_the_padding(batches: Batches) -> None:
    batch = batches[3]
    for documents, positions in zip(batch.documents_BT, batch.positions_BT, strict=True):
        starts = np.flatnonzero(np.diff(documents, prepend=-2))
        expected = np.arange(len(documents)) - np.repeat(starts, np.diff([*starts, len(documents)]))
        assert positions.tolist() == expected.tolist()


def test_a_batch_depends_on_its_index_alone(batches: Batches) -> None:
    first = batches[7]
    _ = batches[2]
    again = batches[7]
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in vars(first))


def test_documents_of_a_batch_are_named(batches: Batches) -> None:
    names = batches.document_names(0)
    assert len(names) == len(set(names)) and all(name.split(":")[0] in ("papers", "web") for name in names)
    assert set(batches.document_names(0, {1})) < set(names)


def test_counts_add_up_per_source(batches: Batches) -> None:
    counts = [SourceCounts(), SourceCounts()]
    for number in range(6):
        count_batch(counts, batches[number], applied=number != 2)
    tokens = sum(int((batches[number].documents_BT >= 0).sum()) for number in range(6))
    assert sum(total.tokens + total.skipped_tokens for total in counts) == tokens
    assert all(total.tokens == total.loss_tokens + total.masked + total.without_label for total in counts)
    rows = Counter(int(source) for number in (0, 1, 3, 4, 5) for source in batches[number].source_B)
    assert [total.rows for total in counts] == [rows[0], rows[1]]
