"""The shuffle is a permutation, is the documented one, and does not look sorted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deepen.mix.order.permutation import half_bits_for, item_at, make_round_keys, source_key

KEYS = st.integers(0, 2**64 - 1)
MASK = 2**64 - 1


def permuted(places: np.ndarray, num_items: int, key: np.uint64, epoch: int) -> np.ndarray:
    """The items at ``places`` of the shuffle of ``num_items`` items for a key and an epoch."""
    round_keys, size = make_round_keys(key, np.uint64(epoch)), np.uint64(num_items)
    half_bits = half_bits_for(size)
    return np.array([item_at(np.uint64(place), size, half_bits, round_keys) for place in places])


def feistel(place: int, num_items: int, key: int, epoch: int) -> int:
    """The permutation as the docs describe it, in plain Python."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 32)) * 0xA0761D6478BD642F) & MASK
        x = ((x ^ (x >> 32)) * 0xE7037ED1A0B428DB) & MASK
        return x ^ (x >> 32)

    step = 0xD6E8FEB86659FD93
    state = mix((key + step * (epoch + 1)) & MASK)
    keys = [mix((state + step * k) & MASK) for k in range(1, 9)]
    half = next(bits for bits in range(4, 33) if 4**bits >= num_items)
    while True:
        left, right = place >> half, place % 2**half
        for round_key in keys:
            left, right = right, left ^ mix(right ^ round_key) % 2**half
        place = left << half | right
        if place < num_items:
            return place


@given(st.integers(1, 700), KEYS, st.integers(0, 9))
def test_every_item_comes_once(num_items: int, key: int, epoch: int) -> None:
    items = permuted(np.arange(num_items), num_items, np.uint64(key), epoch)
    assert sorted(items.tolist()) == list(range(num_items))


@given(st.integers(1, 2**48), KEYS, st.integers(0, 9), st.data())
def test_it_is_the_documented_permutation(num_items: int, key: int, epoch: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, num_items - 1))
    assert permuted(np.array([place]), num_items, np.uint64(key), epoch)[0] == feistel(place, num_items, key, epoch)


def test_golden_values() -> None:
    key = source_key(17, "papers")
    assert key == 0xC71A8B6D37B86882
    assert permuted(np.arange(10), 10, key, 0).tolist() == [8, 2, 0, 6, 9, 7, 3, 5, 1, 4]
    assert permuted(np.arange(10), 10, key, 1).tolist() == [1, 9, 2, 5, 4, 3, 8, 7, 6, 0]
    assert permuted(np.array([0, 1, 999_999_999]), 10**9, key, 2).tolist() == [53068794, 508268365, 928922406]


def test_places_and_items_are_uncorrelated() -> None:
    items = permuted(np.arange(50_000), 50_000, source_key(1, "a"), 0).astype(float)
    assert abs(np.corrcoef(np.arange(50_000), items)[0, 1]) < 0.02
    assert abs(np.corrcoef(items[:-1], items[1:])[0, 1]) < 0.02


def test_small_shuffles_are_fair() -> None:
    """Over many keys every item comes first equally often (chi-squared, 9 degrees of freedom, p = 0.001)."""
    firsts = [int(permuted(np.array([0]), 10, source_key(seed, "a"), 0)[0]) for seed in range(5_000)]
    counts = np.bincount(firsts, minlength=10)
    assert ((counts - 500) ** 2 / 500).sum() < 27.88


def test_seeds_names_and_epochs_give_different_orders() -> None:
    keys = [source_key(1, "a"), source_key(2, "a"), source_key(1, "b")]
    orders = [permuted(np.arange(100), 100, key, epoch).tolist() for key in keys for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 6
