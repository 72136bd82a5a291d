"""A shuffle without memory: place p of a permutation of 0..n-1 is computed from p alone.

A Feistel network permutes 0..4^h - 1 for any round function; places that land at n or above walk on along their cycle
until they fall below n, which is again a permutation of 0..n-1 (at most 4 steps on average). Nothing is stored, nothing
depends on a library's generator, and every place can be looked up at once. The numbers of this module are part of the
order's format: they never change.
"""

from __future__ import annotations

import numpy as np
import xxhash

from deepen.engine.compiled import njit
from deepen.formats.files.arrays import Array

_ROUNDS = 8  # four are enough with ideal round functions (Luby & Rackoff 1988); ours is fast, and halves are narrow
_STEP = np.uint64(0xD6E8FEB86659FD93)  # odd, so that its multiples modulo 2**64 do not repeat
_MULTIPLY_FIRST = np.uint64(0xA0761D6478BD642F)  # odd, like the next: multiplying loses no bit
_MULTIPLY_SECOND = np.uint64(0xE7037ED1A0B428DB)
_SHIFT = np.uint64(32)
# Narrower halves would leave few different shuffles; that a handful of rows then walk longer costs nothing.
_LEAST_HALF_BITS = 4


def source_key(seed: int, name: str) -> np.uint64:
    """The key that shuffles one source: it depends on the seed and the source's name only."""
    return np.uint64(xxhash.xxh3_64_intdigest(f"deepen order\0{seed}\0{name}".encode()))


@njit(cache=True)  # type: ignore[untyped-decorator]
def mixed_all(values: Array) -> Array:
    """``mixed`` of every one of ``values`` (uint64)."""
    found = np.empty_like(values)
    for at in range(len(values)):
        found[at] = mixed(values[at])
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def mixed(value: np.uint64) -> np.uint64:
    """A 64-bit mix: every input bit changes about half of the output bits."""
    value = (value ^ (value >> _SHIFT)) * _MULTIPLY_FIRST
    value = (value ^ (value >> _SHIFT)) * _MULTIPLY_SECOND
    return value ^ (value >> _SHIFT)


@njit(cache=True)  # type: ignore[untyped-decorator]
def make_round_keys(key: np.uint64, epoch: np.uint64) -> Array:
    """The keys of the network's rounds for one epoch."""
    round_keys = np.empty(_ROUNDS, np.uint64)
    # Mixed, or an epoch's round keys would be those of the one before, moved up.
    state = mixed(key + _STEP * (epoch + np.uint64(1)))
    for number in range(_ROUNDS):
        state = state + _STEP
        round_keys[number] = mixed(state)
    return round_keys


@njit(cache=True)  # type: ignore[untyped-decorator]
def half_bits_for(num_items: np.uint64) -> np.uint64:
    """Bits of half a number, so that two halves can hold every item."""
    half_bits = np.uint64(_LEAST_HALF_BITS)
    while (np.uint64(1) << (half_bits + half_bits)) < num_items:
        half_bits += np.uint64(1)
    return half_bits


@njit(cache=True)  # type: ignore[untyped-decorator]
def item_at(place: np.uint64, num_items: np.uint64, half_bits: np.uint64, round_keys: Array) -> np.uint64:
    """The item at one place."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    # Cycle walking (Black & Rogaway 2002): places below n lie on cycles of the larger permutation, and going on along
    # one leads to one below n at last, each from another one.
    item = place
    while True:
        left, right = item >> half_bits, item & mask
        for number in range(_ROUNDS):
            # A round can be undone whatever `mixed` gives, since `right` is still there: so it is a permutation.
            left, right = right, left ^ (mixed(right ^ round_keys[number]) & mask)
        item = (left << half_bits) | right
        if item < num_items:
            return item
