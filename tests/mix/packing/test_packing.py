"""Packing keeps every token once, cuts what it must and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen.formats.tokens.packs import tokens_per_row
from deepen.mix.packing.exact_fit import fill_exactly
from deepen.mix.packing.pack import pack

LENGTHS = st.lists(st.integers(0, 40), max_size=60)
METHODS = st.sampled_from(["best_fit", "concatenate"])


def test_published_example_cuts_only_the_long_document() -> None:
    rows, segments = pack(np.array([14, 7, 5, 2, 3]), 8, "best_fit")
    pieces = [segments[a:b].tolist() for a, b in zip(rows, rows[1:], strict=False)]
    assert pieces == [[[0, 0, 8]], [[0, 8, 6], [3, 0, 2]], [[1, 0, 7]], [[2, 0, 5], [4, 0, 3]]]


def test_published_example_spliced_cuts_three_documents() -> None:
    rows, segments = pack(np.array([14, 7, 5, 2, 3]), 8, "concatenate")
    assert rows.tolist() == [0, 1, 3, 5, 8]
    assert segments.tolist() == [
        [0, 0, 8], [0, 8, 6], [1, 0, 2], [1, 2, 5], [2, 0, 3], [2, 3, 2], [3, 0, 2], [4, 0, 3],
    ]  # fmt: skip


@given(LENGTHS, st.integers(2, 17), METHODS)
@settings(deadline=None)
def test_every_token_is_in_exactly_one_row(lengths: list[int], length: int, method: str) -> None:
    rows, segments = pack(np.array(lengths, dtype=np.int32), length, method)
    tokens = sorted((s, t) for s, start, n in segments.tolist() for t in range(start, start + n))
    assert tokens == [(s, t) for s, n in enumerate(lengths) for t in range(n)]
    assert rows[0] == 0
    assert rows[-1] == len(segments)


@given(LENGTHS, st.integers(2, 17), METHODS)
@settings(deadline=None)
def test_no_row_is_empty_or_too_long(lengths: list[int], length: int, method: str) -> None:
    filled = tokens_per_row(*pack(np.array(lengths, dtype=np.int32), length, method))
    assert ((filled > 0) & (filled <= length)).all()


@given(LENGTHS, st.integers(2, 17))
@settings(deadline=None)
def test_best_fit_cuts_only_documents_longer_than_a_row(lengths: list[int], length: int) -> None:
    _, segments = pack(np.array(lengths, dtype=np.int32), length, "best_fit")
    pieces = np.bincount(segments[:, 0], minlength=len(lengths))
    assert pieces.tolist() == [-(-n // length) for n in lengths]


@given(LENGTHS, st.integers(2, 17))
@settings(deadline=None)
def test_best_fit_leaves_no_two_rows_that_would_fit_in_one(lengths: list[int], length: int) -> None:
    filled = np.sort(tokens_per_row(*pack(np.array(lengths, dtype=np.int32), length, "best_fit")))
    assert len(filled) < 2 or filled[0] + filled[1] > length


def test_gaps_of_best_fit_are_filled_where_lengths_pair_up() -> None:
    """Longest first makes rows of 4 + 4 and of 3 + 3 + 3, 59 in all; 4 + 3 + 3 fills 50 to the last position."""
    rows, segments = pack(np.array([4, 3, 3] * 50), 10, "best_fit")
    assert tokens_per_row(rows, segments).tolist() == [10] * 50


@given(LENGTHS, st.integers(2, 17))
@settings(deadline=None)
def test_an_exact_filling_keeps_every_piece_and_no_row_too_long(lengths: list[int], length: int) -> None:
    sizes = np.array([min(size, length) for size in lengths if size], dtype=np.int64)
    placed, num_rows = fill_exactly(sizes, length) or pytest.fail("so few pieces are never too many")
    filled = np.bincount(placed, sizes, num_rows)
    assert (filled <= length).all() and (filled > 0).all()
    ordered = np.sort(filled)
    assert len(ordered) < 2 or ordered[0] + ordered[1] > length


def test_the_search_gives_up_where_it_would_take_long() -> None:
    sizes = np.concatenate([np.arange(60_001, 60_500), np.full(500, 30_001)])
    assert fill_exactly(sizes, 100_000) is None
    rows, _ = pack(sizes, 100_000, "best_fit")
    assert len(rows) - 1 == 500


@given(LENGTHS, st.integers(2, 17))
@settings(deadline=None)
def test_splicing_fills_every_row_but_the_last(lengths: list[int], length: int) -> None:
    filled = tokens_per_row(*pack(np.array(lengths, dtype=np.int32), length, "concatenate"))
    assert (filled[:-1] == length).all()


@given(LENGTHS, st.integers(2, 17), METHODS)
@settings(deadline=None)
def test_rows_and_pieces_follow_the_corpus_not_their_length(lengths: list[int], length: int, method: str) -> None:
    rows, segments = pack(np.array(lengths, dtype=np.int32), length, method)
    position = segments[:, 0].astype(np.int64) * 100 + segments[:, 1]
    assert (np.diff(position[rows[:-1]]) > 0).all()
    inside = np.ones(len(segments), dtype=bool)
    inside[rows[:-1]] = False
    assert (np.diff(position)[inside[1:]] > 0).all()


@pytest.mark.parametrize("method", ["best_fit", "concatenate"])
def test_a_realistic_corpus_wastes_almost_nothing(method: str) -> None:
    lengths = np.random.RandomState(1).lognormal(6, 1, 20_000).astype(np.int32) + 1
    rows, segments = pack(lengths, 2048, method)
    assert lengths.sum() / ((len(rows) - 1) * 2048) > 0.998
    assert segments.dtype == np.int32
