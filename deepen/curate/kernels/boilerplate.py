"""Lines as keys that can be counted over a corpus, and which of them are boilerplate where they stand."""

from __future__ import annotations

import numpy as np

from deepen.curate.kernels.text import HASH_SEED, absorb, code_point, is_separator, is_space, mix
from deepen.engine.compiled import njit


@njit(cache=True)
def _is_letter(point):  # type: ignore[no-untyped-def]
    return not is_separator(point) and not 0x30 <= point <= 0x39  # no separator and no digit


@njit(cache=True)
def line_keys(text, ends, keys, words):  # type: ignore[no-untyped-def]
    """Of every line: the byte after it (its line feed aside), the hash of what is visible of it, and its words (0 for a
    blank line, negative for one without a letter: numbers in a table are no boilerplate). Returns the number of
    lines."""
    size, position, count = len(text), 0, 0
    while position < size:
        state, pending, num_words, in_word = HASH_SEED, 0, 0, False
        lettered = False
        while position < size and text[position] != 0x0A:
            byte = text[position]
            if byte < 0x80:
                point, width = np.int64(byte), 1
            else:
                point, width = code_point(text, position)
            position += width
            if is_space(point):
                pending, in_word = pending + (num_words > 0), False  # white space at the beginning is none of the line
                continue
            if pending:  # white space inside the line counts as one space
                state, pending = absorb(state, np.uint64(0x20)), 0
            num_words, in_word = num_words + (not in_word), True
            state = absorb(state, np.uint64(point))
            lettered = lettered or _is_letter(point)
        ends[count], keys[count], words[count] = position, mix(state), num_words if lettered else -num_words
        count += 1
        position += 1
    return count


@njit(cache=True)
def all_line_keys(buffer, starts, ends, line_ends, keys, words, offsets):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """``line_keys`` of many texts end to end; those of the i-th are ``[offsets[i] : offsets[i + 1]]``."""
    used = 0
    for number in range(len(starts)):
        text = buffer[starts[number] : ends[number]]
        used += line_keys(text, line_ends[used:], keys[used:], words[used:])
        offsets[number + 1] = used


@njit(cache=True)
def distinct_keys(keys, words, offsets):  # type: ignore[no-untyped-def]
    """The keys of the lines with a word, once for each text that has them, ascending within a text."""
    found, used = np.empty(len(keys), dtype=np.uint64), 0
    for number in range(len(offsets) - 1):
        begin = used
        for line in range(offsets[number], offsets[number + 1]):
            if words[line] > 0:
                found[used] = keys[line]
                used += 1
        # Sorted aside and written back over itself: without its repeats a text never needs more room than it took.
        own = np.sort(found[begin:used])
        used = begin
        for place in range(len(own)):
            if place == 0 or own[place] != own[place - 1]:
                found[used] = own[place]
                used += 1
    return found[:used]


@njit(cache=True)
def count_removed(keys, words, offsets, recurring, min_words):  # type: ignore[no-untyped-def]
    """How many lines of each text are boilerplate, int64 [n]."""
    removed = np.empty(len(offsets) - 1, dtype=np.int64)
    for number in range(len(removed)):
        own = slice(offsets[number], offsets[number + 1])
        removed[number] = find_boilerplate(keys[own], words[own], recurring, min_words).sum()
    return removed


@njit(cache=True)
def find_boilerplate(keys, words, recurring, min_words):  # type: ignore[no-untyped-def]
    """Mark the lines to remove: those in ``recurring`` (ascending) that stand at an edge of the text, beside another
    one (blank lines aside), or have at least ``min_words`` words. A lone short one inside the text is a heading."""
    size = len(keys)
    known = np.zeros(size, dtype=np.bool_)
    for line in range(size):
        if words[line] > 0:
            place = np.searchsorted(recurring, keys[line])
            known[line] = place < len(recurring) and recurring[place] == keys[line]
    removed = np.zeros(size, dtype=np.bool_)
    previous, edge = -1, True
    for line in range(size):
        if words[line] == 0:
            continue
        edge = edge and known[line]  # still within the known lines that open the text
        if known[line]:
            beside = previous >= 0 and known[previous]
            removed[line] = edge or beside or words[line] >= min_words
            if beside:
                removed[previous] = True  # it was judged before this neighbour of it was seen
        previous = line
    # The known lines that close the text: going forwards one cannot tell that nothing else follows.
    for line in range(size - 1, -1, -1):
        if words[line]:
            if not known[line]:
                break
            removed[line] = True
    return removed
