"""Megatron's order, index for index: arrays that were printed by megatron-core, and what becomes of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen.errors import SourceError
from deepen.formats.tokens.order import Order, row_of, source_of
from deepen.formats.tokens.packs import Packs
from deepen.mix.config import MixConfig
from deepen.mix.order.megatron import blend, blend_all, gpt_indices
from deepen.mix.stage import mix

LENGTHS = np.array([4, 3, 6, 2, 5], dtype=np.int32)
PRINTED = {
    3: ([4, 0, 1, 2, 3], [1, 2, 0]),
    5: ([2, 2, 4, 1, 0, 3, 4, 0, 1, 3], [6, 4, 0, 5, 3, 2, 1]),
    8: ([2, 2, 4, 1, 0, 3, 4, 0, 1, 3, 0, 4, 3, 2, 1], [1, 0, 3, 2, 5, 4, 6, 8, 9, 10, 7]),
    9: ([3, 1, 0, 2, 4, 2, 0, 2, 1, 4, 3, 4, 0, 1, 3], [3, 9, 2, 1, 7, 5, 4, 0, 8, 6, 10]),
}


@pytest.mark.parametrize("num_samples", [3, 5, 8, 9, 10])
def test_indices_are_those_that_megatron_prints(num_samples: int) -> None:
    found = gpt_indices(LENGTHS, 5, num_samples, 1234)
    document, shuffle = PRINTED[min(num_samples, 9)]
    assert (found.document.tolist(), found.shuffle.tolist()) == (document, shuffle)
    assert (found.document.dtype, found.shuffle.dtype) == (np.int32, np.uint32)


def test_the_sample_index_is_that_which_megatron_prints() -> None:
    assert gpt_indices(LENGTHS, 5, 3, 1234).sample.tolist() == [[0, 0], [1, 0], [2, 1], [3, 3]]


def test_blends_are_those_that_megatron_prints() -> None:
    sources, numbers = blend(np.array([0.5, 0.3, 0.2]), 10, np.full(3, 10))
    assert sources.tolist() == [0, 1, 2, 0, 1, 0, 2, 0, 1, 0]
    assert numbers.tolist() == [0, 0, 0, 1, 1, 2, 1, 3, 2, 4]


def test_the_blend_of_everything_is_that_which_megatron_prints() -> None:
    sources, numbers = blend_all(np.array([3, 2, 1]))
    assert (sources.tolist(), numbers.tolist()) == ([0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 1, 2])


def test_one_pass_takes_every_sample_once_and_no_more(make_job) -> None:
    job = make_job("out", papers=("domain", [60, 41, 33]), web=("replay", [90, 17]))
    config = MixConfig(sequence_length=8, order="megatron_one_pass")
    mix(config, job, batch_tokens=8, num_batches=29)
    ids = np.concatenate([Order.open(job.out).batch(batch) for batch in range(29)])
    assert len(set(ids.tolist())) == 29 and np.bincount(source_of(ids)).tolist() == [16, 13]
    with pytest.raises(SourceError, match="29 rows, the run asks for 30"):
        mix(
            config,
            make_job("more", papers=("domain", [60, 41, 33]), web=("replay", [90, 17])),
            batch_tokens=8,
            num_batches=30,
        )


def test_the_order_trains_these_samples_one_by_one(make_job) -> None:
    job = make_job("out", seed=1234, papers=("domain", LENGTHS.tolist()))
    mix(MixConfig(sequence_length=5, order="megatron", max_epochs=4), job, batch_tokens=5, num_batches=8)
    order, packs = Order.open(job.out), Packs.open(job.out, "papers")
    text = np.concatenate([np.arange(end - length, end) for length, end in _documents(PRINTED[8][0])])
    for batch in range(8):
        row = int(row_of(order.batch(batch))[0])
        assert row == PRINTED[8][1][batch]
        starts = np.cumsum(LENGTHS) - LENGTHS
        tokens = np.concatenate([np.arange(starts[s] + a, starts[s] + a + n) for s, a, n in packs.row(row).tolist()])
        assert tokens.tolist() == text[5 * row : 5 * row + 6].tolist()
    assert not order.segment_of(0).isolated


def _documents(order: list[int]) -> list[tuple[int, int]]:
    ends = np.cumsum(LENGTHS)
    return [(int(LENGTHS[sequence]), int(ends[sequence])) for sequence in order]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(2, 9), st.integers(1, 40), st.integers(0, 99))
@settings(deadline=None)
def test_every_sample_is_cut_from_the_spliced_documents(
    lengths: list[int], sequence_length: int, num_samples: int, seed: int
) -> None:
    found = gpt_indices(np.array(lengths, dtype=np.int32), sequence_length, num_samples, seed)
    ends = np.cumsum(np.array(lengths)[found.document])
    places = ends[found.sample[:, 0]] - np.array(lengths)[found.document[found.sample[:, 0]]] + found.sample[:, 1]
    assert places.tolist() == [sequence_length * number for number in range(len(found.sample))]
    assert len(found.shuffle) >= num_samples
    assert sorted(found.shuffle.tolist()) == list(range(len(found.sample) - 1))


def test_sources_are_blended_by_their_shares_and_the_account_balances(make_job) -> None:
    job = make_job("out", papers=("domain", [60, 41, 33] * 4), web=("replay", [90, 17] * 6))
    counts = mix(
        MixConfig(sequence_length=8, order="megatron", domain_share=0.75), job, batch_tokens=32, num_batches=20
    ).counts
    ids = np.concatenate([Order.open(job.out).batch(batch) for batch in range(20)])
    assert np.bincount(source_of(ids)).tolist() == [60, 20]
    for source in counts["sources"].values():
        assert source["passes"] * source["shard_tokens"] == source["packed_tokens"] + source["left_over"]
        assert source["padding"] == 0
        assert source["left_over"] <= 8


def test_too_many_passes_are_refused(make_job) -> None:
    job = make_job("out", papers=("domain", [60, 41]))
    with pytest.raises(SourceError, match=r"`papers` for 160 tokens of the 101 it has: more than mix.max_epochs \(1\)"):
        mix(MixConfig(sequence_length=8, order="megatron", max_epochs=1), job, batch_tokens=16, num_batches=10)
