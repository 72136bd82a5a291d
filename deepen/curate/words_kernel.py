"""Words as the rules of the literature count them, found in one compiled walk over UTF-8.

The published thresholds were set with tokenisers that part punctuation from words, so splitting at white space alone
would shift them. The rules here follow spaCy's English ones: what stands between white space loses its marks at both
ends, each a word of its own, and is cut inside only at hyphens between letters and the like; clitics (``'s``) are
parted; abbreviations, numbers and addresses stay whole. In scripts without spaces every character is a word. What comes
out are byte positions, so that the rules can also be given the words of another splitter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepen.curate.text_kernels import (
    HASH_SEED,
    absorb,
    code_point,
    finished,
    hash_bytes,
    is_separator,
    is_space,
    is_unspaced,
)
from deepen.engine.compiled import njit

_NOTHING, _S8 = np.uint64(0), np.uint64(8)
_LETTER, _DIGIT, _INERT, _SPACE, _MARK, _STICKY, _QUOTE, _ALONE, _WIDE = 0, 1, 2, 3, 4, 5, 6, 7, 8
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


def _byte_classes() -> npt.NDArray[np.uint8]:
    table = np.full(256, _WIDE, dtype=np.uint8)
    table[:128] = _MARK
    for number in range(128):
        character = chr(number)
        if character.isalpha():
            table[number] = _LETTER
        elif character.isdigit():
            table[number] = _DIGIT
        elif 0x09 <= number <= 0x0D or number == 0x20:
            table[number] = _SPACE
        elif character in "@\\|^~":
            table[number] = _INERT
        elif character in "/-=+.":
            table[number] = _STICKY
        elif character == "'":
            table[number] = _QUOTE
    return table


_CLASSES = _byte_classes()


@njit(cache=True)
def _wide_class(text, position):  # type: ignore[no-untyped-def]
    """Class and number of bytes of a character beyond ASCII; a typographic apostrophe joins like a plain one."""
    point, width = code_point(text, position)
    if point == 0x2019:
        return _QUOTE, width
    if is_space(point):
        return _SPACE, width
    if is_unspaced(point):
        return _ALONE, width
    if is_separator(point):
        return (_INERT if point in (0xB1, 0x2212, 0x2264, 0x2265) else _MARK), width
    return _LETTER, width


@njit(cache=True)
def _class_at(text, position):  # type: ignore[no-untyped-def]
    """Class of the character at ``position``, and its number of bytes."""
    kind = np.int64(_CLASSES[text[position]])
    if kind != _WIDE:
        return kind, 1
    return _wide_class(text, position)


@njit(cache=True)
def split_words(text, starts, ends, hashes, lengths, flags):  # type: ignore[no-untyped-def]  # noqa: C901 - one loop
    """The words of a text: byte positions ``starts`` and ``ends`` (nobody wants them if they are empty), ``hashes``
    (uint64), ``lengths`` in characters and ``flags``, with room for one word per byte; returns how many there are."""
    size, count, position = len(text), 0, 0
    located = len(starts) > 0
    while position < size:
        byte = text[position]
        kind, width = np.int64(_CLASSES[byte]), 1
        if kind == _SPACE:
            position += 1
            continue
        start = position
        if kind <= _DIGIT:  # nearly every word begins with a run of ASCII letters and digits and ends there
            state, packed, least = HASH_SEED, _NOTHING, kind
            while kind <= _DIGIT:
                packed = (packed << _S8) | np.uint64(byte)
                least = min(least, kind)
                position += 1
                if (position - start) & 7 == 0:
                    state, packed = absorb(state, packed), _NOTHING
                if position == size:
                    break
                byte = text[position]
                kind = np.int64(_CLASSES[byte])
            run_end = position
            if position < size and kind != _SPACE and not _is_closing(text, position, kind):
                position = _after_run(text, start, position)
            if position == run_end:
                if located:
                    starts[count], ends[count] = start, position
                hashes[count], lengths[count] = finished(state, packed, position - start), position - start
                flags[count] = ALPHABETIC * (least == _LETTER)
                count += 1
                continue
        elif kind == _MARK:
            position += 1
            if located:
                starts[count], ends[count] = start, position
            lengths[count], flags[count] = 1, SYMBOL
            hashes[count] = finished(HASH_SEED, np.uint64(byte), 1)
            count += 1
            continue
        else:
            if kind == _WIDE:
                kind, width = _wide_class(text, position)
            position += width
            if kind <= _INERT or (kind >= _STICKY and kind != _ALONE and _begins_word(text, start, width, kind)):
                position = _word_end(text, start, position)
            elif kind == _SPACE:
                continue
            elif byte == 0x2E or byte == 0x2D:  # runs of dots and of dashes are one word
                while position < size and text[position] == byte:
                    position += 1
        if located:
            starts[count], ends[count] = start, position
        hashes[count], lengths[count], flags[count] = _describe(text, start, position)
        if kind == _ALONE and position == start + width:
            flags[count] |= ALONE
        count += 1
    return count


@njit(cache=True, inline="always")
def _is_closing(text, position, kind):  # type: ignore[no-untyped-def]
    """Whether one mark that never belongs to the word before it, and then a space, is at ``position``."""
    after = position + 1
    return kind == _MARK and after < len(text) and (text[after] == 0x20 or text[after] == 0x0A)


@njit(cache=True, inline="always")
def _is_full_stop(text, position):  # type: ignore[no-untyped-def]
    """Whether one full stop, and then a space, is at ``position``."""
    after = position + 1
    return text[position] == 0x2E and after < len(text) and (text[after] == 0x20 or text[after] == 0x0A)


@njit(cache=True)
def _after_run(text, start, position):  # type: ignore[no-untyped-def]
    """Where the word ends that was a run of letters and digits up to ``position``; most often there is a full stop."""
    if _is_full_stop(text, position):
        return position + is_abbreviated(text, start, position)
    return _word_end(text, start, position)


@njit(cache=True)
def _word_end(text, start, position):  # type: ignore[no-untyped-def]
    """Where the word ends that began at ``start`` and goes on at ``position``."""
    size = len(text)
    while position < size:
        kind = np.int64(_CLASSES[text[position]])
        if kind <= _INERT:
            position += 1
            continue
        if kind == _SPACE:
            break
        if kind == _WIDE:
            kind, width = _wide_class(text, position)
            if kind <= _INERT or _is_range(text, position):
                position += width
                continue
            if kind != _QUOTE:
                break
        end, goes_on = _after_marks(text, start, position)
        position = end
        if not goes_on:
            break
    return position


@njit(cache=True)
def _is_range(text, position):  # type: ignore[no-untyped-def]
    """Whether an en dash between two digits is at ``position``."""
    if position + 3 >= len(text) or text[position + 1] != 0x80 or text[position + 2] != 0x93 or text[position] != 0xE2:
        return False
    return 0x30 <= text[position - 1] <= 0x39 and 0x30 <= text[position + 3] <= 0x39


@njit(cache=True)
def _kind_before(text, position):  # type: ignore[no-untyped-def]
    """Class of the character that ends before ``position``, all beyond ASCII taken for letters."""
    if position == 0:
        return _SPACE
    kind = np.int64(_CLASSES[text[position - 1]])
    return _LETTER if kind == _WIDE else kind


@njit(cache=True)
def _begins_word(text, position, width, kind):  # type: ignore[no-untyped-def]
    """Whether the mark at ``position`` is the beginning of a word (``.gov``, ``-5``, ``'s``) and not one of its own."""
    after = position + width
    if after >= len(text) or text[position] == 0x3D:
        return False
    follows_word = _kind_before(text, position) <= _INERT
    if kind == _QUOTE:
        return (follows_word or _stands_apart(text, position, width)) and _is_clitic(text, position, width)
    next_kind, _ = _class_at(text, after)
    return not follows_word and next_kind <= _DIGIT


@njit(cache=True)
def _stands_apart(text, position, width):  # type: ignore[no-untyped-def]
    """Whether the apostrophe at ``position``, one letter and white space follow white space: text that was split."""
    after = position + width + 1
    return _kind_before(text, position) == _SPACE and (after >= len(text) or _CLASSES[text[after]] == _SPACE)


@njit(cache=True)
def _is_clitic(text, position, width):  # type: ignore[no-untyped-def]
    """Whether one or two letters and then no more follow the apostrophe at ``position``: 's, 'll, 't."""
    position += width
    letters, kind = 0, _SPACE
    while position < len(text):
        kind, width = _class_at(text, position)
        if kind != _LETTER:
            break
        letters += 1
        position += width
        if letters > 2:
            return False
    return letters > 0 and kind != _DIGIT


@njit(cache=True)
def _after_marks(text, start, position):  # type: ignore[no-untyped-def]
    """Past the marks at ``position`` inside a word: where it goes on, or where it ends; and which of the two."""
    size, end, stays, kind = len(text), position, position, _SPACE
    while end < size:
        kind, width = _class_at(text, end)
        if kind <= _SPACE or kind == _ALONE:
            break
        if kind == _MARK and width > 1:
            return stays, False
        end += width
        if kind == _STICKY and (text[end - 1] != 0x2E or is_abbreviated(text, start, end - 1)):
            stays = end
    if end >= size or kind in (_SPACE, _ALONE):
        return stays, False
    if _is_scheme(text, start, position):
        return _address_end(text, end), False
    return (position, False) if _parts(text, position, end, kind) else (end, True)


def _packed(word: str) -> int:
    """Up to eight ASCII letters as one number, the first one highest."""
    return int.from_bytes(word.encode(), "big")


_SHORTENED = """
Mr Mrs Ms Dr Prof Messrs Jr Sr St Mt Rev Rep Sen Gov Gen Adm Inc Co Corp Ltd Bros vs
Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec
Id Ala Ariz Ark Calif Colo Conn Del Fla Ga Ia Ill Ind Kan Kans Ky La Mass Md Mich Minn Miss Mo Mont Neb Nebr Nev
Okla Ore Pa Tenn Va Wash Wis
"""
_ABBREVIATIONS = np.array(sorted(map(_packed, _SHORTENED.split())), dtype=np.int64)
"""English abbreviations that keep their full stop."""


@njit(cache=True)
def is_abbreviated(text, start, position):  # type: ignore[no-untyped-def]
    """Whether the full stop at ``position`` belongs to the word that began at ``start``: U.S., e.g., J., Mr."""
    if position == start or text[position - 1] >= 0x80:
        return False
    before = text[position - 1]
    single = position - 1 == start or text[position - 2] == 0x2E
    if 0x41 <= before <= 0x5A:
        return single or not 0x41 <= text[position - 2] <= 0x5A
    if not 0x61 <= before <= 0x7A:
        return False
    if single or position - start > 6 or (text[start] > 0x5A and text[start] != 0x76):  # only `vs` has no capital
        return single
    packed = np.int64(0)
    for place in range(start, position):
        packed = (packed << 8) | np.int64(text[place])
    found = np.searchsorted(_ABBREVIATIONS, packed)
    return found < len(_ABBREVIATIONS) and _ABBREVIATIONS[found] == packed


@njit(cache=True)
def _parts(text, position, end, after):  # type: ignore[no-untyped-def]
    """Whether the marks between ``position`` and ``end``, with a word on each side, part the two."""
    before, mark = _kind_before(text, position), text[position]
    letters, digits = before == _LETTER and after == _LETTER, before == _DIGIT and after == _DIGIT
    if mark == 0x27 or mark >= 0x80:
        return _is_clitic(text, position, 1 if mark < 0x80 else 3)
    for place in range(position + 1, end):
        if text[place] != mark:
            return False
    if mark == 0x2E:  # end.Next are two sentences
        return end > position + 1 or (0x61 <= text[position - 1] <= 0x7A and 0x41 <= text[end] <= 0x5A)
    if mark == 0x2D:
        return letters or (digits and end == position + 1)
    if end > position + 1:
        return False
    if mark == 0x2C:
        return letters
    if mark == 0x2B or mark == 0x2A:
        return digits
    if mark == 0x3A or mark == 0x2F or 0x3C <= mark <= 0x3E:
        return after == _LETTER and before <= _DIGIT
    return False


@njit(cache=True)
def _is_scheme(text, start, position):  # type: ignore[no-untyped-def]
    """Whether ``://`` is at ``position`` and only letters are before it in the word."""
    if position + 2 >= len(text) or text[position] != 0x3A or text[position + 1] != 0x2F or text[position + 2] != 0x2F:
        return False
    return not np.any(_CLASSES[text[start:position]] != _LETTER)


@njit(cache=True)
def _address_end(text, position):  # type: ignore[no-untyped-def]
    """The end of the address that goes on at ``position``, without closing punctuation."""
    end = position
    while end < len(text) and text[end] > 0x20:
        end += 1
    while end > position and (_CLASSES[text[end - 1]] == _MARK or text[end - 1] == 0x2E or text[end - 1] == 0x27):
        end -= 1
    return end


@njit(cache=True)
def _is_symbol(point):  # type: ignore[no-untyped-def]
    if point < 0x80:
        return _CLASSES[point] > _DIGIT
    place = np.searchsorted(_SYMBOLS, point)
    return place < len(_SYMBOLS) and _SYMBOLS[place] == point


@njit(cache=True)
def _describe(text, position, end):  # type: ignore[no-untyped-def]
    """Hash, length in characters and flags of the word between two byte positions."""
    hashed, length, alphabetic, symbol = hash_bytes(text, position, end), 0, False, True
    while position < end:
        byte = text[position]
        if byte < 0x80:
            kind = _CLASSES[byte]
            alphabetic = alphabetic or kind == _LETTER
            symbol = symbol and kind > _DIGIT
            position += 1
        else:
            point, width = code_point(text, position)
            alphabetic = alphabetic or not is_separator(point)
            symbol = symbol and _is_symbol(point)
            position += width
        length += 1
    return hashed, length, ALPHABETIC * alphabetic + SYMBOL * symbol


@njit(cache=True)
def describe_words(text, starts, ends, hashes, lengths, flags):  # type: ignore[no-untyped-def]
    """``hashes``, ``lengths`` and ``flags`` of words that are given by their byte positions."""
    for number in range(len(starts)):
        hashes[number], lengths[number], flags[number] = _describe(text, starts[number], ends[number])


@njit(cache=True)
def count_words(lengths, flags):  # type: ignore[no-untyped-def]
    """How many words are no symbols, the characters in those, how many have a letter, and how many stand alone."""
    num_plain, num_characters, num_alphabetic, num_alone = 0, 0, 0, 0
    for number in range(len(lengths)):
        plain = (flags[number] & SYMBOL) == 0
        num_plain += plain
        num_characters += plain * lengths[number]
        num_alphabetic += flags[number] & ALPHABETIC
        num_alone += (flags[number] & ALONE) != 0
    return num_plain, num_characters, num_alphabetic, num_alone
