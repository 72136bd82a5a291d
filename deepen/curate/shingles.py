"""Near-duplicates: word shingles, MinHash signatures in bands, exact similarity.

A document is the set of its 5-word shingles, each hashed to 32 bits and kept sorted, so that the Jaccard similarity of
two documents is one merge. Candidates come from MinHash: 128 slots in 16 bands of 8 rows, which finds a pair of
similarity s with probability 1 - (1 - s^8)^16 (0.95 at 0.8); every candidate is then verified exactly, because 35 % of
unverified ones are no near-duplicates at all. In scripts without spaces each character counts as a word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from deepen.curate.text_kernels import (
    HASH_SEED,
    absorb,
    code_point,
    is_ignored,
    is_separator,
    is_unspaced,
    lower,
    mix,
)

NUM_BANDS, ROWS_PER_BAND = 16, 8
_NUM_SLOTS = NUM_BANDS * ROWS_PER_BAND
_NUM_WORDS = 5
_S32 = np.uint64(32)


def _permutations() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Factors (odd) and terms of the 128 maps x -> a x + b mod 2^32, from splitmix64 rather than any library."""
    state, numbers = 0, []
    for _ in range(2 * _NUM_SLOTS):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        value = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        numbers.append((value ^ (value >> 31)) >> 32)
    table = np.array(numbers, dtype=np.uint32)
    return table[:_NUM_SLOTS] | np.uint32(1), table[_NUM_SLOTS:]


_FACTORS, _TERMS = _permutations()


@dataclass(frozen=True)
class Signatures:
    """Of n documents: ``bands`` uint64 [16, n], ``sizes`` int64 [n] and, end to end, sorted ``shingles`` uint32."""

    bands: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]
    shingles: npt.NDArray[np.uint32]


def sign(texts: list[str]) -> Signatures:
    """Signatures of some documents; every document has at least one shingle."""
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(data) for data in encoded], out=offsets[1:])
    buffer = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    bands = np.empty((NUM_BANDS, len(texts)), dtype=np.uint64)
    sizes = np.empty(len(texts), dtype=np.int64)
    shingles = np.empty(int(offsets[-1]) // 2 + 2 * len(texts), dtype=np.uint32)
    used = _sign_batch(buffer, offsets, _FACTORS, _TERMS, bands, sizes, shingles)
    return Signatures(bands, sizes, shingles[:used])


@njit(cache=True)
def _sign_batch(buffer, offsets, factors, terms, bands, sizes, shingles):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    used = 0
    slots = np.empty(_NUM_SLOTS, dtype=np.uint32)
    for document in range(len(offsets) - 1):
        end = used + _shingle(buffer[offsets[document] : offsets[document + 1]], shingles[used:])
        end = used + _sort_unique(shingles[used:end])
        _minhash(shingles[used:end], factors, terms, slots)
        for band in range(NUM_BANDS):
            key = HASH_SEED
            for row in range(ROWS_PER_BAND):
                key = absorb(key, np.uint64(slots[band * ROWS_PER_BAND + row]))
            bands[band, document] = mix(key)
        sizes[document] = end - used
        used = end
    return used


@njit(cache=True)
def _shingle(text, out):  # type: ignore[no-untyped-def]
    """Hashes of all 5-word shingles in order; a shorter text is one shingle of all its words."""
    words = np.zeros(_NUM_WORDS, dtype=np.uint64)
    num_words, count, position = 0, 0, 0
    word, in_word = HASH_SEED, False
    size = len(text)
    while position <= size:
        ends, alone = True, False
        point = np.int64(0x20)
        if position < size:
            point, width = code_point(text, position)
            position += width
            if is_ignored(point):
                continue
            alone = is_unspaced(point)
            ends = alone or is_separator(point)
        else:
            position += 1
        if ends and in_word:
            words[num_words % _NUM_WORDS] = mix(word)
            num_words += 1
            in_word, word = False, HASH_SEED
            count = _emit(words, num_words, out, count)
        if alone:
            words[num_words % _NUM_WORDS] = mix(absorb(HASH_SEED, np.uint64(point)))
            num_words += 1
            count = _emit(words, num_words, out, count)
        elif not ends:
            word = absorb(word, np.uint64(lower(point)))
            in_word = True
    if count == 0:
        out[0] = _short_text(text, words, num_words)
        count = 1
    return count


@njit(cache=True, inline="always")
def _emit(words, num_words, out, count):  # type: ignore[no-untyped-def]
    if num_words < _NUM_WORDS:
        return count
    state = HASH_SEED
    for number in range(_NUM_WORDS):
        state = absorb(state, words[(num_words + number) % _NUM_WORDS])
    out[count] = np.uint32(mix(state) >> _S32)
    return count + 1


@njit(cache=True)
def _short_text(text, words, num_words):  # type: ignore[no-untyped-def]
    """The one shingle of a text under five words; of its bytes if it has no word at all."""
    state = HASH_SEED + np.uint64(num_words)
    if num_words == 0:
        for position in range(len(text)):
            state = absorb(state, np.uint64(text[position]))
    for number in range(num_words):
        state = absorb(state, words[number])
    return np.uint32(mix(state) >> _S32)


@njit(cache=True)
def _sort_unique(values):  # type: ignore[no-untyped-def]
    """Sort a set in place and drop repeats; returns how many are left."""
    if len(values) < 48:
        values.sort()
    else:
        _radix_sort(values)
    kept = 1
    for number in range(1, len(values)):
        if values[number] != values[number - 1]:
            values[kept] = values[number]
            kept += 1
    return kept


@njit(cache=True)
def _radix_sort(values):  # type: ignore[no-untyped-def]
    """Sort 32-bit numbers byte by byte: for random ones three times as fast as comparing."""
    other = np.empty_like(values)
    starts = np.empty(256, dtype=np.int64)
    for shift in (np.uint32(0), np.uint32(8), np.uint32(16), np.uint32(24)):
        starts[:] = 0
        for value in values:
            starts[(value >> shift) & np.uint32(255)] += 1
        total = 0
        for digit in range(256):
            starts[digit], total = total, total + starts[digit]
        for value in values:
            digit = (value >> shift) & np.uint32(255)
            other[starts[digit]] = value
            starts[digit] += 1
        values[:] = other


@njit(cache=True)
def _minhash(shingles, factors, terms, slots):  # type: ignore[no-untyped-def]
    """Smallest image of the set under each map; the inner loop is what the compiler makes vector code of."""
    slots[:] = np.uint32(0xFFFFFFFF)
    for shingle in shingles:
        for slot in range(_NUM_SLOTS):
            value = np.uint32(np.uint32(factors[slot] * shingle) + terms[slot])
            if value < slots[slot]:
                slots[slot] = value


@njit(cache=True)
def jaccard(first, second):  # type: ignore[no-untyped-def]
    """Size of the intersection over size of the union of two sorted sets."""
    common, i, j = 0, 0, 0
    while i < len(first) and j < len(second):
        if first[i] == second[j]:
            common += 1
            i += 1
            j += 1
        elif first[i] < second[j]:
            i += 1
        else:
            j += 1
    return common / (len(first) + len(second) - common)


@njit(cache=True)
def similar(first, second, threshold):  # type: ignore[no-untyped-def]
    """The Jaccard similarity if it reaches ``threshold``, else 0; sets of very different size are not compared."""
    smaller, larger = min(len(first), len(second)), max(len(first), len(second))
    if smaller < threshold * larger:
        return 0.0
    similarity = jaccard(first, second)
    return similarity if similarity >= threshold else 0.0
