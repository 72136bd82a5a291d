"""Finding runs of words that are also in test items: words as hashes, n-grams by a rolling hash, one bit per miss.

Words are runs of letters and digits without regard to case, marks and apostrophes; in scripts without spaces, single
characters. Nearly no n-gram of a document is in any item, so a bitmap that fits the cache answers first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepen.curate.kernels.text import HASH_SEED, absorb, code_point, is_ignored, is_separator, is_unspaced, mix
from deepen.engine.compiled import njit

_BASE = np.uint64(0x9E3779B97F4A7C15)
_ZERO, _ONE, _S6, _63 = np.uint64(0), np.uint64(1), np.uint64(6), np.uint64(63)


def word_hashes(text: str) -> npt.NDArray[np.uint64]:
    """Hashes of the words of a text."""
    if not text.isascii():
        text = text.lower()  # all of Unicode's capitals; the loop folds those of ASCII
    return np.asarray(_hash_words(np.frombuffer(text.encode(), dtype=np.uint8)))


@njit(cache=True)
def _hash_words(text):  # type: ignore[no-untyped-def]  # noqa: C901 - one loop
    hashes = np.empty(len(text), dtype=np.uint64)  # no word without a byte
    count, position, state, open_word = 0, 0, HASH_SEED, False
    size = len(text)
    while position < size:
        byte = np.int64(text[position])
        alone, ends, point, width = False, False, byte, 1
        if byte < 0x80:
            if 0x41 <= byte <= 0x5A:
                point = byte + 0x20
            elif not (0x61 <= byte <= 0x7A or 0x30 <= byte <= 0x39):
                if byte == 0x27 and open_word:  # don't is one word, dont is the same one
                    position += 1
                    continue
                ends = True
        else:
            point, width = code_point(text, position)
            if is_ignored(point) or (point == 0x2019 and open_word):
                position += width
                continue
            alone = is_unspaced(point)
            ends = alone or is_separator(point)
        position += width
        if ends:
            if open_word:
                hashes[count] = mix(state)
                count += 1
                state, open_word = HASH_SEED, False
            if alone:
                hashes[count] = mix(absorb(HASH_SEED, np.uint64(point)))
                count += 1
        else:
            state, open_word = absorb(state, np.uint64(point)), True
    if open_word:
        hashes[count] = mix(state)
        count += 1
    return hashes[:count]


@njit(cache=True)
def n_grams(words, n):  # type: ignore[no-untyped-def]
    """Hashes (uint64, never 0) of all n-grams in order."""
    grams = np.empty(max(0, len(words) - n + 1), dtype=np.uint64)
    # A polynomial in the hashes of n words, modulo 2**64: one word further takes two products, however long the run.
    oldest = _ONE
    for _ in range(n - 1):
        oldest *= _BASE
    state = _ZERO
    for number in range(len(words)):
        if number >= n:
            state -= words[number - n] * oldest
        state = state * _BASE + words[number]
        if number >= n - 1:
            grams[number - n + 1] = mix(state) | _ONE
    return grams


def bitmap_of(grams: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bitmap with a bit for each n-gram, at least eight times as many bits as n-grams."""
    # At most one bit in eight is set, so hardly more than one foreign n-gram in eight is searched for.
    num_bits = 1 << max(9, (8 * len(grams)).bit_length())
    bitmap = np.zeros(num_bits // 64, dtype=np.uint64)
    _set_bits(grams, bitmap)
    return bitmap


@njit(cache=True)
def _set_bits(grams, bitmap):  # type: ignore[no-untyped-def]
    mask = np.uint64(64 * len(bitmap) - 1)
    for gram in grams:
        bit = (gram >> _ONE) & mask  # the lowest bit is 1 in all of them and tells nothing
        bitmap[bit >> _S6] |= _ONE << (bit & _63)


@njit(cache=True)
def find_n_grams(words, n, bitmap, known):  # type: ignore[no-untyped-def]
    """Places of the words' n-grams in ``known`` (ascending, with ``bitmap``), one for every occurrence."""
    found = np.empty(16, dtype=np.int64)
    count = 0
    mask = np.uint64(64 * len(bitmap) - 1)
    for gram in n_grams(words, n):
        bit = (gram >> _ONE) & mask  # as in `_set_bits`
        if (bitmap[bit >> _S6] >> (bit & _63)) & _ONE:
            place = np.searchsorted(known, gram)
            if place < len(known) and known[place] == gram:
                if count == len(found):
                    found = np.append(found, np.empty(count, dtype=np.int64))
                found[count] = place
                count += 1
    return found[:count]
