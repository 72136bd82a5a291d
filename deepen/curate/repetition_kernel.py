"""How much of a text repeats itself: the thirteen quantities of the Gopher repetition rules in a few compiled passes.

Lines, paragraphs and n-grams are compared by 64-bit hashes in open-addressing tables; texts are never sliced. Counting
follows the reference implementation (datatrove), with these definitions pinned by tests: a word is a run without white
space, or one character in scripts without spaces; lines without any visible character are not counted; lengths are in
characters; the most frequent n-gram counts only if it occurs twice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from deepen.curate.text_kernels import HASH_SEED, absorb, code_point, is_space, is_unspaced, mix

TOP_N_GRAMS = (2, 3, 4)
DUPLICATE_N_GRAMS = (5, 6, 7, 8, 9, 10)
QUANTITIES = (
    "duplicate_lines",
    "duplicate_line_characters",
    "duplicate_paragraphs",
    "duplicate_paragraph_characters",
    *(f"top_{n}_gram_characters" for n in TOP_N_GRAMS),
    *(f"duplicate_{n}_gram_characters" for n in DUPLICATE_N_GRAMS),
)
"""Names of the quantities in the order in which ``measure`` gives them; each is a share of the text."""

_ZERO, _ONE = np.uint64(0), np.uint64(1)


def measure(text: str) -> npt.NDArray[np.float64]:
    """The thirteen shares (float64 [13], between 0 and 1) of a text."""
    return np.asarray(_measure(np.frombuffer(text.encode(), dtype=np.uint8)))


@njit(cache=True)
def _measure(text):  # type: ignore[no-untyped-def]
    shares = np.zeros(13, dtype=np.float64)
    size = len(text)
    if size == 0:
        return shares
    hashes, lengths = np.empty(size // 2 + 1, dtype=np.uint64), np.empty(size // 2 + 1, dtype=np.int64)
    gaps = np.zeros(size // 2 + 1, dtype=np.int64)
    num_lines, num_characters = _pieces(text, 1, hashes, lengths)
    repeated, characters = _duplicates(hashes[:num_lines], lengths)
    shares[0], shares[1] = repeated / max(1, num_lines), characters / num_characters
    num_paragraphs, _ = _pieces(text, 2, hashes, lengths)
    repeated, characters = _duplicates(hashes[:num_paragraphs], lengths)
    shares[2], shares[3] = repeated / max(1, num_paragraphs), characters / num_characters
    num_words = _words(text, hashes, lengths, gaps)
    _n_grams(hashes[:num_words], lengths, gaps, num_characters, shares)
    return shares


@njit(cache=True)
def _pieces(text, num_newlines, hashes, lengths):  # type: ignore[no-untyped-def]
    """Hashes and lengths of what at least ``num_newlines`` newlines separate; their number, and all characters."""
    count, characters, position = 0, 0, 0
    state, length, newlines, visible = HASH_SEED, 0, 0, False
    size = len(text)
    while position < size:
        point, width = code_point(text, position)
        position += width
        characters += 1
        if point == 0x0A:
            newlines += 1
            continue
        if newlines >= num_newlines:
            if visible:
                hashes[count], lengths[count] = mix(state), length
                count += 1
            state, length, visible = HASH_SEED, 0, False
        elif newlines and length:
            for _ in range(newlines):
                state = absorb(state, np.uint64(0x0A))
            length += newlines
        newlines = 0
        visible = visible or not is_space(point)
        state = absorb(state, np.uint64(point))
        length += 1
    if visible:
        hashes[count], lengths[count] = mix(state), length
        count += 1
    return count, characters


@njit(cache=True)
def _words(text, hashes, lengths, gaps):  # type: ignore[no-untyped-def]
    """Hashes and lengths of the words; ``gaps`` is 1 where white space follows the word. Returns their number."""
    count, position = 0, 0
    state, length = HASH_SEED, 0
    size = len(text)
    while position < size:
        point, width = code_point(text, position)
        position += width
        space = is_space(point)
        alone = is_unspaced(point)
        if (space or alone) and length:
            hashes[count], lengths[count], gaps[count] = mix(state), length, 0
            count += 1
            state, length = HASH_SEED, 0
        if space and count:
            gaps[count - 1] = 1
        elif alone:
            hashes[count], lengths[count], gaps[count] = mix(absorb(HASH_SEED, np.uint64(point))), 1, 0
            count += 1
        elif not space:
            state = absorb(state, np.uint64(point))
            length += 1
    if length:
        hashes[count], lengths[count], gaps[count] = mix(state), length, 0
        count += 1
    return count


@njit(cache=True, inline="always")
def _slot(table, key):  # type: ignore[no-untyped-def]
    """Where ``key`` is, or belongs, in a table whose size is a power of two."""
    mask = np.uint64(len(table) - 1)
    slot = key & mask
    while table[slot] != _ZERO and table[slot] != key:
        slot = (slot + _ONE) & mask
    return slot


@njit(cache=True)
def _table_size(count):  # type: ignore[no-untyped-def]
    size = 8
    while size < 2 * count:
        size *= 2
    return size


@njit(cache=True)
def _duplicates(hashes, lengths):  # type: ignore[no-untyped-def]
    """How many pieces occurred before, and their characters."""
    table = np.zeros(_table_size(len(hashes)), dtype=np.uint64)
    repeated, characters = 0, 0
    for number in range(len(hashes)):
        key = hashes[number] | _ONE
        slot = _slot(table, key)
        if table[slot] == key:
            repeated += 1
            characters += lengths[number]
        table[slot] = key
    return repeated, characters


@njit(cache=True)
def _n_grams(words, lengths, gaps, num_characters, shares):  # type: ignore[no-untyped-def]
    """Shares of the most frequent 2- to 4-gram and of repeated 5- to 10-grams, into ``shares[4:]``."""
    num_words = len(words)
    table = np.empty(_table_size(num_words), dtype=np.uint64)
    counts = np.empty(len(table), dtype=np.int32)
    grams = words.copy()  # grams[i] grows from the 1-gram at word i to the n-gram
    letters, spans = np.zeros(num_words + 1, dtype=np.int64), np.zeros(num_words + 1, dtype=np.int64)
    for number in range(num_words):
        letters[number + 1] = letters[number] + lengths[number]
        spans[number + 1] = spans[number] + lengths[number] + gaps[number]
    for n in range(2, 11):
        if num_words < n:
            break
        last = num_words - n + 1
        for number in range(last):
            grams[number] = absorb(grams[number], words[number + n - 1])
        table[:] = _ZERO
        if n <= 4:
            first, count = _top(grams[:last], table, counts)
            span = spans[first + n] - spans[first] - gaps[first + n - 1]
            shares[2 + n] = min(1.0, count * span / num_characters) if count > 1 else 0.0
        else:
            shares[2 + n] = _repeated(grams[:last], n, letters, table) / num_characters


@njit(cache=True)
def _top(grams, table, counts):  # type: ignore[no-untyped-def]
    """Position of the first n-gram among the most frequent ones, and how often it occurs (overlaps count)."""
    counts[:] = 0
    most = 0
    for gram in grams:
        key = mix(gram) | _ONE
        slot = _slot(table, key)
        table[slot] = key
        counts[slot] += 1
        most = max(most, counts[slot])
    for number in range(len(grams)):
        if counts[_slot(table, mix(grams[number]) | _ONE)] == most:
            return number, most
    return 0, 0


@njit(cache=True)
def _repeated(grams, n, letters, table):  # type: ignore[no-untyped-def]
    """Letters in n-grams that occurred before: after a repeat counting goes on n words later, so none counts twice."""
    characters, number = 0, 0
    while number < len(grams):
        key = mix(grams[number]) | _ONE
        slot = _slot(table, key)
        if table[slot] == key:
            characters += letters[number + n] - letters[number]
            number += n
        else:
            table[slot] = key
            number += 1
    return characters
