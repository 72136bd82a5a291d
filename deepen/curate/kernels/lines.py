"""What rules ask about lines, in one compiled walk: hash, length, and how a line begins and ends.

A line ends at a line feed only, which is the one line end left after ``normalize``. Empty lines are counted but have no
row.
"""

from __future__ import annotations

import numpy as np

from deepen.curate.kernels.text import HASH_SEED, absorb, code_point, finished, is_space, mix
from deepen.engine.compiled import njit

VISIBLE, TERMINAL, ELLIPSIS, BULLET = 1, 2, 4, 8
"""Flags of a line: has a visible character; its last character ends a sentence; it ends in an ellipsis, begins with a
bullet (white space at the ends aside)."""

_NOTHING, _S8 = np.uint64(0), np.uint64(8)
_IS_SPECIAL = np.isin(np.arange(256), (0x23, 0x2E, 0xA6))
"""Bytes that are counted: the number sign, the full stop and the last byte of the ellipsis."""
_TERMINALS = np.array(
    sorted(
        ord(character)
        for character in (
            ".?!\u0589\u061d\u061e\u061f\u06d4\u0700\u0701\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b"
            "\u1362\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u17d6\u17d9\u17da\u1803\u1809\u1944\u1945\u1aa8\u1aa9"
            "\u1aaa\u1aab\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d\u1b7e\u1c3b\u1c3c\u1c7e\u1c7f\u203c\u203d\u2047\u2048\u2049"
            "\u2e2e\u2e3c\u2e53\u2e54\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9"
            "\uaa5d\uaa5e\uaa5f\uaaf0\uaaf1\uabeb\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"
        )
    ),
    dtype=np.int64,
)
"""Sentence-final punctuation of the Unicode standard (property STerm) in the basic plane, with the full stop."""


@njit(cache=True)
def is_terminal(point):  # type: ignore[no-untyped-def]
    """Whether a character ends sentences."""
    if point < 0x80:
        return point == 0x2E or point == 0x3F or point == 0x21
    place = np.searchsorted(_TERMINALS, point)
    return place < len(_TERMINALS) and _TERMINALS[place] == point


@njit(cache=True)
def describe_lines(text, hashes, lengths, flags, breaks):  # type: ignore[no-untyped-def]
    """Of all lines that are not empty: ``hashes`` (uint64), ``lengths`` in characters, ``flags``, and in ``breaks`` the
    line feeds before each since the last one.

    Returns their number, all lines (empty ones too), characters, ``#`` and ellipses (``...`` or the one character).
    """
    size, position, count = len(text), 0, 0
    newlines, characters, num_hashes, num_ellipses, pending = 0, 0, 0, 0, 0
    while position < size:
        if text[position] == 0x0A:
            newlines += 1
            pending += 1
            position += 1
            continue
        # The hash is that of `hash_bytes`, built up on the way: a line is read once for all that is asked about it.
        start, state, packed, length, dots = position, HASH_SEED, _NOTHING, 0, 0
        while position < size:
            byte = text[position]
            if byte == 0x0A:
                break
            position += 1
            packed = (packed << _S8) | np.uint64(byte)
            if (position - start) & 7 == 0:
                state, packed = absorb(state, packed), _NOTHING
            length += (byte & 0xC0) != 0x80  # continuation bytes begin no character
            # One look into a table for nearly every byte, instead of a comparison with each of the three.
            if not _IS_SPECIAL[byte]:
                dots = 0
                continue
            if byte == 0x2E:
                dots += 1
                if dots == 3:  # six dots are two ellipses, as `str.count("...")` has it
                    num_ellipses += 1
                    dots = 0
                continue
            dots = 0
            num_hashes += byte == 0x23
            # The ellipsis is E2 80 A6. A lead byte occurs nowhere else in UTF-8, so looking back cannot be deceived.
            if byte == 0xA6 and position - start > 2 and text[position - 2] == 0x80 and text[position - 3] == 0xE2:
                num_ellipses += 1
        hashes[count], lengths[count], breaks[count] = finished(state, packed, position - start), length, pending
        flags[count] = _flags(text, start, position)
        characters += length
        count, pending = count + 1, 0
    num_lines = newlines + (size > 0 and text[size - 1] != 0x0A)  # the last line may have no line feed
    return count, num_lines, newlines, characters + newlines, num_hashes, num_ellipses


@njit(cache=True)
def _last(text, start, end):  # type: ignore[no-untyped-def]
    """Where the last character of ``text[start:end]`` begins."""
    position = end - 1
    while position > start and (text[position] & 0xC0) == 0x80:
        position -= 1
    return position


@njit(cache=True)
def _flags(text, start, end):  # type: ignore[no-untyped-def]
    last = _last(text, start, end)
    point, _ = code_point(text, last)
    # Asked before white space is taken off: datatrove's FineWeb filter asks `line.endswith` of the line as it is.
    flags = TERMINAL if is_terminal(point) else 0
    while is_space(point):
        end = last
        if end <= start:
            return flags
        last = _last(text, start, end)
        point, _ = code_point(text, last)
    flags |= VISIBLE
    dotted = end - start >= 3 and text[end - 1] == 0x2E and text[end - 2] == 0x2E and text[end - 3] == 0x2E
    if point == 0x2026 or dotted:
        flags |= ELLIPSIS
    point, width = code_point(text, start)
    while is_space(point):  # ends, because the loop above has met a visible character
        start += width
        point, width = code_point(text, start)
    if point == 0x2D or point == 0x2022:
        flags |= BULLET
    return flags


@njit(cache=True)
def join_paragraphs(hashes, lengths, flags, breaks, needed, out_hashes, out_lengths):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Hashes and lengths of the paragraphs (which end at an empty line) with a line that has the flags ``needed``; how
    many there are."""
    count, state, length, wanted = 0, HASH_SEED, 0, False
    for number in range(len(hashes)):
        if breaks[number] >= 2 and number > 0:  # two line feeds: an empty line; the first line ends nothing
            if wanted:
                out_hashes[count], out_lengths[count] = mix(state), length
                count += 1
            state, length, wanted = HASH_SEED, 0, False
        elif length:
            length += 1  # the line feed between two lines of a paragraph
        state = absorb(state, hashes[number])  # hashes of lines make the paragraph's: the text is not read again
        length += lengths[number]
        wanted = wanted or flags[number] & needed == needed
    if wanted:
        out_hashes[count], out_lengths[count] = mix(state), length
        count += 1
    return count


@njit(cache=True)
def count_lines(lengths, flags, short):  # type: ignore[no-untyped-def]
    """How many lines are visible, and of those terminal and at most ``short`` long; how many have ellipsis, bullet."""
    visible, terminal, brief, ellipsis, bullet = 0, 0, 0, 0, 0
    for number in range(len(lengths)):
        flag = flags[number]
        ellipsis += (flag & ELLIPSIS) != 0
        bullet += (flag & BULLET) != 0
        if flag & VISIBLE:
            visible += 1
            terminal += (flag & TERMINAL) != 0
            brief += lengths[number] <= short
    return visible, terminal, brief, ellipsis, bullet
