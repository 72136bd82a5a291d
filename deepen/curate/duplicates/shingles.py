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

from deepen.curate.batch.texts import Texts
from deepen.curate.kernels.text import HASH_SEED, absorb, code_point, is_ignored, is_separator, is_unspaced, lower, mix
from deepen.engine.compiled import njit

NUM_BANDS, ROWS_PER_BAND = 16, 8
_NUM_SLOTS = NUM_BANDS * ROWS_PER_BAND
_NUM_WORDS = 5
_S8, _S32, _BYTE = np.uint64(8), np.uint64(32), np.uint32(255)
_BASE = np.uint64(0xD6E8FEB86659FD93)  # any odd number with well mixed bits does
_BASE_4 = np.uint64(pow(0xD6E8FEB86659FD93, 4, 2**64))  # what the oldest of five words is multiplied with by then
_NOT_ASCII = np.uint64(1 << 63)  # keeps code points apart from packed ASCII characters
_SEPARATOR, _ELSE = 0, 255
_KINDS = np.array(
    [ord(chr(byte).lower()) if byte < 128 and chr(byte).isalnum() else _SEPARATOR for byte in range(128)]
    + [_ELSE] * 128,
    dtype=np.uint8,
)
"""What a byte is: a separator, the small letter or digit that it is in a word, or part of what is not ASCII."""


def _permutations() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Factors (odd) and terms of the 128 maps x -> a x + b mod 2^32, from splitmix64 rather than any library."""
    state, numbers = 0, []
    for _ in range(2 * _NUM_SLOTS):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        value = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        numbers.append((value ^ (value >> 31)) >> 32)
    table = np.array(numbers, dtype=np.uint32)
    # An odd factor makes the map a permutation of all 32-bit numbers: two shingles never have one image.
    return table[:_NUM_SLOTS] | np.uint32(1), table[_NUM_SLOTS:]


_FACTORS, _TERMS = _permutations()


@dataclass(frozen=True)
class Signatures:
    """Of n documents: ``bands`` uint64 [16, n], ``sizes`` int64 [n] and, end to end, sorted ``shingles`` uint32;
    ``num_bytes`` int64 [n] of the texts in UTF-8."""

    num_bytes: npt.NDArray[np.int64]
    bands: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]
    shingles: npt.NDArray[np.uint32]


def sign(texts: Texts) -> Signatures:
    """Signatures of some documents; every document has at least one shingle."""
    bands = np.empty((NUM_BANDS, len(texts)), dtype=np.uint64)
    sizes = np.empty(len(texts), dtype=np.int64)
    # Room for all: a word has a byte and a separator, or is a character of three bytes; a text has a shingle.
    shingles = np.empty(int(texts.sizes.sum()) // 2 + 2 * len(texts), dtype=np.uint32)
    used = _sign_batch(texts.buffer, texts.starts, texts.ends, _FACTORS, _TERMS, bands, sizes, shingles)
    return Signatures(texts.sizes, bands, sizes, shingles[:used])


@njit(cache=True)
def _sign_batch(buffer, starts, ends, factors, terms, bands, sizes, shingles):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    used = 0
    slots = np.empty(_NUM_SLOTS, dtype=np.uint32)
    scratch = np.empty(0, dtype=np.uint32)
    for document in range(len(starts)):
        end = used + _shingle(buffer[starts[document] : ends[document]], _KINDS, shingles[used:])
        if end - used > len(scratch):
            scratch = np.empty(2 * (end - used), dtype=np.uint32)
        end = used + _sort_unique(shingles[used:end], scratch)
        _minhash(shingles[used:end], factors, terms, slots)
        for band in range(NUM_BANDS):
            # Eight slots become one key: two documents share it if all eight agree, with probability s^8.
            key = HASH_SEED
            for row in range(ROWS_PER_BAND):
                key = absorb(key, np.uint64(slots[band * ROWS_PER_BAND + row]))
            bands[band, document] = mix(key)
        sizes[document] = end - used
        used = end
    return used


# State: `word` has absorbed the open word but for up to seven ASCII characters in `packed`; `state` is the polynomial
# of the last five words, whose hashes are in `window`, a ring.
@njit(cache=True)
def _shingle(text, kinds, out):  # type: ignore[no-untyped-def]  # noqa: C901 - one pass over the bytes
    """Hashes of all 5-word shingles in order; a shorter text is one shingle of all its words.

    A word's hash absorbs its characters eight at a time while they are ASCII, others one by one; a shingle's is a
    polynomial in the hashes of its words, rolled on from word to word.
    """
    window = np.zeros(_NUM_WORDS, dtype=np.uint64)
    state, word, packed, num_packed = np.uint64(0), HASH_SEED, np.uint64(0), 0
    num_words, count, position, in_word = 0, 0, 0, False
    while position <= len(text):  # one step beyond the end, where a separator closes the last word
        kind = kinds[text[position]] if position < len(text) else _SEPARATOR
        point, width, alone = np.int64(0), 1, False
        # No letter or digit is 0, so the packed number also says how many there are.
        if kind != _SEPARATOR and kind != _ELSE:
            packed, num_packed, in_word = (packed << _S8) | np.uint64(kind), num_packed + 1, True
            if num_packed == 8:
                word, packed, num_packed = absorb(word, packed), np.uint64(0), 0
            position += 1
            continue
        if kind == _ELSE:
            point, width = code_point(text, position)
            alone = is_unspaced(point)
        position += width
        if kind == _ELSE and is_ignored(point):  # a soft hyphen does not part a word, nor change its hash
            continue
        if kind == _ELSE and not alone and not is_separator(point):
            # Packed ASCII goes in first, so that the hash depends on the order of the characters only.
            if num_packed:
                word, packed, num_packed = absorb(word, packed), np.uint64(0), 0
            word, in_word = absorb(word, np.uint64(lower(point)) | _NOT_ASCII), True
            continue
        if in_word:
            hashed = mix(absorb(word, packed) if num_packed else word)
            word, packed, num_packed, in_word = HASH_SEED, np.uint64(0), 0, False
            state, num_words = _roll(window, num_words, state, hashed), num_words + 1
            count = _emit(state, num_words, out, count)
        if alone:
            hashed = mix(absorb(HASH_SEED, np.uint64(point) | _NOT_ASCII))
            state, num_words = _roll(window, num_words, state, hashed), num_words + 1
            count = _emit(state, num_words, out, count)
    if count == 0:
        out[0] = _short_text(text, state, num_words)
        count = 1
    return count


@njit(cache=True, inline="always")
def _roll(window, num_words, state, hashed):  # type: ignore[no-untyped-def]
    """The polynomial of the last five words, one word on."""
    # The window begins with zeros, which subtract nothing: the first five words need no case of their own.
    place = num_words % _NUM_WORDS
    state = (state - window[place] * _BASE_4) * _BASE + hashed
    window[place] = hashed
    return state


@njit(cache=True, inline="always")
def _emit(state, num_words, out, count):  # type: ignore[no-untyped-def]
    if num_words < _NUM_WORDS:
        return count
    # Mixed, since the low bits of a polynomial depend on the low bits of its words alone.
    out[count] = np.uint32(mix(state) >> _S32)
    return count + 1


@njit(cache=True)
def _short_text(text, state, num_words):  # type: ignore[no-untyped-def]
    """The one shingle of a text under five words, given their polynomial; of its bytes if it has no word at all."""
    state = absorb(HASH_SEED + np.uint64(num_words), state)
    if num_words == 0:
        for position in range(len(text)):
            state = absorb(state, np.uint64(text[position]))
    return np.uint32(mix(state) >> _S32)


@njit(cache=True)
def _sort_unique(values, scratch):  # type: ignore[no-untyped-def]
    """Sort a set in place and drop repeats; returns how many are left."""
    # A short set is sorted before the 1,024 counters of the other way are summed up.
    if len(values) < 48:
        values.sort()
    else:
        _radix_sort(values, scratch)
    kept = 1  # a set is never empty, see `_short_text`
    for number in range(1, len(values)):
        if values[number] != values[number - 1]:
            values[kept] = values[number]
            kept += 1
    return kept


@njit(cache=True)
def _radix_sort(values, scratch):  # type: ignore[no-untyped-def]
    """Sort 32-bit numbers byte by byte: for random ones several times as fast as comparing."""
    starts = np.zeros((4, 256), dtype=np.int64)
    for value in values:
        starts[0, value & _BYTE] += 1
        starts[1, (value >> np.uint32(8)) & _BYTE] += 1
        starts[2, (value >> np.uint32(16)) & _BYTE] += 1
        starts[3, value >> np.uint32(24)] += 1
    for place in range(4):
        total = 0
        for digit in range(256):
            starts[place, digit], total = total, total + starts[place, digit]  # from counts to where each digit begins
    source, target = values, scratch[: len(values)]
    for place in range(4):
        shift, own = np.uint32(8 * place), starts[place]
        for value in source:
            digit = (value >> shift) & _BYTE
            target[own[digit]] = value
            own[digit] += 1
        # Four passes, an even number: the sorted numbers end up in `values` again.
        source, target = target, source


@njit(cache=True)
def _minhash(shingles, factors, terms, slots):  # type: ignore[no-untyped-def]
    """Smallest image of the set under each map; the inner loop becomes vector code that stays in registers."""
    for slot in range(_NUM_SLOTS):
        factor, term = factors[slot], terms[slot]
        smallest = np.uint32(0xFFFFFFFF)
        for number in range(len(shingles)):
            # 32 bits at every step, or numba widens them to 64 and the loop does half as many numbers at once.
            value = np.uint32(np.uint32(factor * shingles[number]) + term)
            smallest = min(smallest, value)
        slots[slot] = smallest


@njit(cache=True)
def similar(first, second, threshold):  # type: ignore[no-untyped-def]
    """The Jaccard similarity of two sorted sets (size of the intersection over that of the union) if it reaches
    ``threshold``, else 0; gives up once too many are unshared."""
    total = len(first) + len(second)
    # From |A & B| / |A | B| >= t: so many must be common (a hair less, against rounding), and the rest of either set
    # may be unshared (Xiao et al. 2008).
    needed = threshold / (1 + threshold) * total - 1e-6
    spare_first, spare_second = len(first) - needed, len(second) - needed
    if spare_first < 0 or spare_second < 0:
        return 0.0
    common, i, j = 0, 0, 0
    while i < len(first) and j < len(second):
        if first[i] == second[j]:
            common += 1
            i += 1
            j += 1
        elif first[i] < second[j]:
            i += 1
            if i - common > spare_first:
                return 0.0
        else:
            j += 1
            if j - common > spare_second:
                return 0.0
    similarity = common / (total - common)
    return similarity if similarity >= threshold else 0.0
