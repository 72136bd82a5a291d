"""Words as the rules of the literature count them, found in one compiled walk over UTF-8.

The published thresholds were set with tokenisers that part punctuation from words, so splitting at white space alone
would shift them. The rules here follow spaCy's English ones: what stands between white space loses its marks at both
ends, each a word of its own, and is cut inside only at hyphens before letters and the like; clitics (``'s``, ``n't``)
and units (``30 mph``) are parted; abbreviations, numbers, addresses and emoticons stay whole. In scripts without spaces
every character is a word. What comes out are byte positions, so that the rules can also be given the words of another
splitter.
"""

from __future__ import annotations

import numpy as np

from deepen.curate.kernels.text import HASH_SEED, absorb, code_point, finished, hash_bytes
from deepen.curate.kernels.word_marks import (
    ALONE_LETTER,
    CLASSES,
    DIGIT,
    INERT,
    LETTER,
    MARK,
    QUOTE,
    SPACE,
    STICKY,
    WIDE,
    after_face,
    after_marks,
    before_unit,
    class_at,
    is_abbreviated,
    is_clitic,
    is_mark,
    joins_digits,
    kind_before,
    new_stretch,
    wide_class,
)
from deepen.engine.compiled import njit

_NOTHING, _S8 = np.uint64(0), np.uint64(8)
ALPHABETIC, SYMBOL, ALONE = 1, 2, 4
"""Flags of a word: has a letter; is made of punctuation only; is one character of a script without spaces."""

_SYMBOLS = np.array(
    sorted(
        [0xAB, 0xB4, 0xBB, 0x2013, 0x2014, 0x2018, 0x2019, 0x201C, 0x201D, 0x201E, 0x2026, 0x2236, 0x2501, 0x25BA]
        + [*range(0x3001, 0x3003), *range(0x3008, 0x300E), 0x3010, 0x3011, 0xFF01, 0xFF05, 0xFF08, 0xFF09, 0xFF0C]
        + [0xFF0E, 0xFF1A, 0xFF1B, 0xFF1F, 0xFF5E, 0xFF61, 0x0589, 0x061D, 0x061E, 0x061F, 0x06D4, 0x0964, 0x0965]
        + [0x203C, 0x203D, 0x2047, 0x2048, 0x2049, 0x060C, 0x061B]
    ),
    dtype=np.int64,
)


# A word's hash must be that of `hash_bytes`, whichever branch found it: else 30 and the 30 of `30mph` would differ.
@njit(cache=True)
def split_words(text, starts, ends, hashes, lengths, flags):  # type: ignore[no-untyped-def]  # noqa: C901 - one loop
    """The words of a text: byte positions ``starts`` and ``ends`` (nobody wants them if they are empty), ``hashes``
    (uint64), ``lengths`` in characters and ``flags``, with room for one word per byte; returns how many there are."""
    size, count, position, located, stretch = len(text), 0, 0, len(starts) > 0, new_stretch()
    while position < size:
        byte = text[position]
        kind, width = np.int64(CLASSES[byte]), 1
        if kind == SPACE:
            position += 1
            continue
        start = position
        if kind <= DIGIT:  # nearly every word begins with a run of ASCII letters and digits and ends there
            state, packed, least = HASH_SEED, _NOTHING, kind
            while kind <= DIGIT:
                packed = (packed << _S8) | np.uint64(byte)
                least &= kind  # LETTER is 0 and DIGIT is 1: 0 once there is a letter
                position += 1
                if (position - start) & 7 == 0:
                    state, packed = absorb(state, packed), _NOTHING
                if position == size:
                    break
                byte = text[position]
                kind = np.int64(CLASSES[byte])
            run_end = position
            position = _after_run(text, start, position, kind, stretch)
            if position == run_end:  # the common case: nothing was added or parted, all is known
                if located:
                    starts[count], ends[count] = start, position
                hashes[count], lengths[count] = finished(state, packed, position - start), position - start
                flags[count] = ALPHABETIC * (least == LETTER)
                count += 1
                continue
        elif kind == MARK:
            position += 1
            hashes[count] = finished(HASH_SEED, np.uint64(byte), 1)
            if byte == 0x3A or byte == 0x3B:  # only a colon or semicolon can be the eyes of an emoticon
                position = after_face(text, position)
                hashes[count] = hash_bytes(text, start, position)
            if located:
                starts[count], ends[count] = start, position
            lengths[count], flags[count] = position - start, SYMBOL
            count += 1
            continue
        else:
            if kind == WIDE:
                kind, width = wide_class(text, position)
            position += width
            if kind <= INERT or (kind >= STICKY and kind != ALONE_LETTER and _begins_word(text, start, width, kind)):
                position = _word_end(text, start, position, stretch)
            elif kind == SPACE:
                continue
            elif byte == 0x2E or byte == 0x2D:  # runs of dots and of dashes are one word
                position = _after_same(text, position, byte)
        if located:
            starts[count], ends[count] = start, position
        hashes[count], lengths[count], flags[count] = describe_word(text, start, position)
        if kind == ALONE_LETTER and position == start + width:
            flags[count] |= ALONE
        count += 1
    return count


@njit(cache=True)
def _after_same(text, position, byte):  # type: ignore[no-untyped-def]
    """Where a run of one byte ends."""
    while position < len(text) and text[position] == byte:
        position += 1
    return position


@njit(cache=True, inline="always")
def _is_closing(text, position, kind):  # type: ignore[no-untyped-def]
    """Whether one mark that never belongs to the word before it, and then a space, is at ``position``."""
    after = position + 1
    return kind == MARK and after < len(text) and (text[after] == 0x20 or text[after] == 0x0A)


@njit(cache=True, inline="always")
def _is_full_stop(text, position):  # type: ignore[no-untyped-def]
    """Whether one full stop, and then a space, is at ``position``."""
    after = position + 1
    return text[position] == 0x2E and after < len(text) and (text[after] == 0x20 or text[after] == 0x0A)


@njit(cache=True, inline="always")
def _after_run(text, start, position, kind, stretch):  # type: ignore[no-untyped-def]
    """Where the word ends that was a run of letters and digits up to ``position``, where a character of class ``kind``
    is; what is most common there, white space or one mark and then a space, is asked first."""
    if position < len(text) and kind != SPACE and not _is_closing(text, position, kind):
        if _is_full_stop(text, position):
            position += is_abbreviated(text, start, position)
        else:
            position = _word_end(text, start, position, stretch)
    # In a run nothing but digits is so low: a number with letters at its end may hold a unit.
    if text[start] <= 0x39 and CLASSES[text[position - 1]] == LETTER:
        position = before_unit(text, start, position)
    return position


@njit(cache=True)
def _word_end(text, start, position, stretch):  # type: ignore[no-untyped-def]
    """Where the word ends that began at ``start`` and goes on at ``position``."""
    size = len(text)
    while position < size:
        kind = np.int64(CLASSES[text[position]])
        if kind <= INERT:
            position += 1
            continue
        if kind == SPACE:
            break
        if kind == WIDE:
            kind, width = wide_class(text, position)
            if kind <= INERT or joins_digits(text, position):
                position += width
                continue
            if kind != QUOTE:
                break
        end, goes_on = after_marks(text, start, position, stretch)
        position = end
        if not goes_on:
            break
    return position


@njit(cache=True)
def _begins_word(text, position, width, kind):  # type: ignore[no-untyped-def]
    """Whether the mark at ``position`` is the beginning of a word (``.gov``, ``-5``, ``'s``) and not one of its own."""
    after = position + width
    if after >= len(text) or text[position] == 0x3D:  # an equals sign is always parted at the beginning
        return False
    follows_word = kind_before(text, position) <= INERT
    if kind == QUOTE:
        return (follows_word or _stands_apart(text, position, width)) and is_clitic(text, position, width)
    next_kind, _ = class_at(text, after)
    return not follows_word and next_kind <= DIGIT


@njit(cache=True)
def _stands_apart(text, position, width):  # type: ignore[no-untyped-def]
    """Whether the apostrophe at ``position``, one letter and white space follow white space: text that was split."""
    after = position + width + 1
    return kind_before(text, position) == SPACE and (after >= len(text) or CLASSES[text[after]] == SPACE)


@njit(cache=True)
def _is_symbol(point):  # type: ignore[no-untyped-def]
    if point < 0x80:
        return CLASSES[point] > DIGIT
    place = np.searchsorted(_SYMBOLS, point)
    return place < len(_SYMBOLS) and _SYMBOLS[place] == point


@njit(cache=True)
def describe_word(text, position, end):  # type: ignore[no-untyped-def]
    """Hash, length in characters and flags of the word between two byte positions."""
    hashed, length, alphabetic, symbol = hash_bytes(text, position, end), 0, False, True
    while position < end:
        byte = text[position]
        if byte < 0x80:
            kind = CLASSES[byte]
            alphabetic = alphabetic or kind == LETTER
            symbol = symbol and kind > DIGIT
            position += 1
        else:
            point, width = code_point(text, position)
            alphabetic = alphabetic or not is_mark(point)
            symbol = symbol and _is_symbol(point)
            position += width
        length += 1
    return hashed, length, ALPHABETIC * alphabetic + SYMBOL * symbol


@njit(cache=True)
def count_words(lengths, flags):  # type: ignore[no-untyped-def]
    """How many words are no symbols, the characters in those, how many have a letter, and how many stand alone."""
    num_plain, num_characters, num_alphabetic, num_alone = 0, 0, 0, 0
    for number in range(len(lengths)):
        plain = (flags[number] & SYMBOL) == 0
        num_plain += plain
        num_characters += plain * lengths[number]
        num_alphabetic += flags[number] & ALPHABETIC  # the flag is the lowest bit: 1 or 0
        num_alone += (flags[number] & ALONE) != 0
    return num_plain, num_characters, num_alphabetic, num_alone
