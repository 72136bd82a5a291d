"""What marks do within a word: classes of characters, and where spaCy's English rules cut what no space parts.

Kept apart from the walk over the text (``words_kernel``), which asks here only where a word and a mark meet.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepen.curate.kernels.text import code_point, is_separator, is_space, is_unspaced
from deepen.engine.compiled import njit

LETTER, DIGIT, INERT, SPACE, MARK, STICKY, QUOTE, ALONE_LETTER, WIDE = 0, 1, 2, 3, 4, 5, 6, 7, 8
"""Classes: those up to ``INERT`` are part of any word, ``STICKY`` marks of the word that they follow, ``MARK`` never at
an end; ``ALONE_LETTER`` is a letter of a script without spaces; ``WIDE`` has to be looked up, it begins no ASCII."""


def _byte_classes() -> npt.NDArray[np.uint8]:
    table = np.full(256, WIDE, dtype=np.uint8)
    table[:128] = MARK
    for number in range(128):
        character = chr(number)
        if character.isalpha():
            table[number] = LETTER
        elif character.isdigit():
            table[number] = DIGIT
        elif 0x09 <= number <= 0x0D or number == 0x20:
            table[number] = SPACE
        elif character in "@\\|^~":
            table[number] = INERT
        elif character in "/-=+.":
            table[number] = STICKY
        elif character == "'":
            table[number] = QUOTE
    return table


CLASSES = _byte_classes()
"""Class of each byte."""


@njit(cache=True)
def is_mark(point):  # type: ignore[no-untyped-def]
    """Whether a character is neither letter nor digit; the signs of micro and of ordinal numbers are letters."""
    return is_separator(point) and point != 0xB5 and point != 0xAA and point != 0xBA


@njit(cache=True)
def wide_class(text, position):  # type: ignore[no-untyped-def]
    """Class and number of bytes of a character beyond ASCII; a typographic apostrophe joins like a plain one."""
    point, width = code_point(text, position)
    if point == 0x2019:
        return QUOTE, width
    if is_space(point):
        return SPACE, width
    if is_unspaced(point):
        return ALONE_LETTER, width
    if is_mark(point):
        return (INERT if point in (0xB1, 0x2212, 0x2264, 0x2265) else MARK), width
    return LETTER, width


@njit(cache=True)
def class_at(text, position):  # type: ignore[no-untyped-def]
    """Class of the character at ``position``, and its number of bytes."""
    kind = np.int64(CLASSES[text[position]])
    if kind != WIDE:
        return kind, 1
    return wide_class(text, position)


@njit(cache=True)
def kind_before(text, position):  # type: ignore[no-untyped-def]
    """Class of the character that ends before ``position``, all beyond ASCII taken for letters."""
    if position == 0:
        return SPACE
    kind = np.int64(CLASSES[text[position - 1]])
    return LETTER if kind == WIDE else kind  # going back over a character of several bytes would cost a loop


@njit(cache=True)
def joins_digits(text, position):  # type: ignore[no-untyped-def]
    """Whether an en dash (10–20) or a raised decimal point (0·5) between two digits is at ``position``."""
    if text[position] == 0xC2:
        after = position + 2  # the raised point has two bytes, the dash three
        joins = after < len(text) and text[position + 1] == 0xB7
    else:
        after = position + 3
        joins = after < len(text) and text[position] == 0xE2 and text[position + 1] == 0x80
        joins = joins and text[position + 2] == 0x93
    return joins and 0x30 <= text[position - 1] <= 0x39 and 0x30 <= text[after] <= 0x39


@njit(cache=True)
def is_clitic(text, position, width):  # type: ignore[no-untyped-def]
    """Whether one or two letters and then no more follow the apostrophe at ``position``: 's, 'll, 't."""
    position += width
    letters, kind = 0, SPACE
    while position < len(text):
        kind, width = class_at(text, position)
        if kind != LETTER:
            break
        letters += 1
        position += width
        if letters > 2:
            return False
    return letters > 0 and kind != DIGIT  # 's2 is no clitic


@njit(cache=True)
def _before_clitic(text, start, position, width):  # type: ignore[no-untyped-def]
    """Where the clitic with the apostrophe at ``position`` is cut off, before the n of n't; -1 if it is not."""
    if not is_clitic(text, position, width):
        return -1
    after = position + width
    negates = text[position - 1] | 0x20 == 0x6E and text[after] | 0x20 == 0x74  # n't, in letters of any size
    if not negates or (after + 1 < len(text) and class_at(text, after + 1)[0] == LETTER):
        return position
    return position - 1 if position - 1 > start else -1  # n't alone has no word before it and stays whole


def _packed(word: str) -> int:
    """Up to eight ASCII letters as one number, the first one highest."""
    return int.from_bytes(word.encode(), "big")


def _packed_words(words: str) -> npt.NDArray[np.int64]:
    return np.array(sorted(map(_packed, words.split())), dtype=np.int64)


@njit(cache=True)
def _is_one_of(text, position, end, packed_words):  # type: ignore[no-untyped-def]
    """Whether the bytes between two positions, seven at most, are one of the words."""
    # Seven bytes leave the sign alone, so numbers sort as words do, and one search among a few dozen finds the word.
    packed = np.int64(0)
    for place in range(position, end):
        packed = (packed << 8) | np.int64(text[place])
    found = np.searchsorted(packed_words, packed)
    return found < len(packed_words) and packed_words[found] == packed


_SHORTENED = """
Mr Mrs Ms Dr Prof Messrs Jr Sr St Mt Rev Rep Sen Gov Gen Adm Inc Co Corp Ltd Bros vs
Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec
Id Ala Ariz Ark Calif Colo Conn Del Fla Ga Ia Ill Ind Kan Kans Ky La Mass Md Mich Minn Miss Mo Mont Neb Nebr Nev
Okla Ore Pa Tenn Va Wash Wis
"""
_ABBREVIATIONS = _packed_words(_SHORTENED)
"""English abbreviations that keep their full stop."""


@njit(cache=True)
def is_abbreviated(text, start, position):  # type: ignore[no-untyped-def]
    """Whether the full stop at ``position`` belongs to the word that began at ``start``: U.S., e.g., J., Mr."""
    if position == start or text[position - 1] >= 0x80:
        return False
    before = text[position - 1]
    single = position - 1 == start or text[position - 2] == 0x2E  # one letter, or one after a full stop: J. and U.S.
    if 0x41 <= before <= 0x5A:
        return single or not 0x41 <= text[position - 2] <= 0x5A  # spaCy parts a full stop after two capitals only
    if not 0x61 <= before <= 0x7A:
        return False
    # No abbreviation has more than six letters; most words of the text are ruled out by that or by their small letter.
    if single or position - start > 6 or (text[start] > 0x5A and text[start] != 0x76):  # only `vs` has no capital
        return single
    return _is_one_of(text, start, position, _ABBREVIATIONS)


_UNITS = _packed_words(
    "km m dm cm mm ha nm yd in ft kg g mg t lb oz mph kmh hPa Pa mbar mb MB kb KB gb GB tb TB T G M K"
)
"""Units of ASCII letters that are parted from their number."""


@njit(cache=True)
def before_unit(text, start, end):  # type: ignore[no-untyped-def]
    """Where the unit at the end of the word begins (30 mph), if there is one, or ``end``."""
    begin = end
    while begin > start and CLASSES[text[begin - 1]] == LETTER:
        begin -= 1
    # Not letters alone, not digits alone; no unit has more than four letters.
    if begin in (start, end) or end - begin > 4 or CLASSES[text[begin - 1]] != DIGIT:
        return end
    if end < len(text) and class_at(text, end)[0] >= STICKY:
        return end
    return begin if _is_one_of(text, begin, end, _UNITS) else end


@njit(cache=True)
def after_marks(text, start, position, stretch):  # type: ignore[no-untyped-def]
    """Past the marks at ``position`` inside a word: where it goes on, or where it ends; and which of the two.

    ``stretch`` is this function's memory from one call to the next in the same text (see ``new_stretch``).
    """
    # `stays`: how far the marks belong to the word if nothing follows them (`50%` none, `U.S.` the last one).
    size, end, stays, kind = len(text), position, position, SPACE
    while end < size:
        kind, width = class_at(text, end)
        if kind <= SPACE or kind == ALONE_LETTER:
            break
        if kind == MARK and width > 1:  # quotation marks and the like beyond ASCII always end the word
            return stays, False
        end += width
        if kind == STICKY and _stays(text, start, end - 1):
            stays = end
    if end >= size or kind in (SPACE, ALONE_LETTER):
        return stays, False
    if _is_scheme(text, start, position):  # http:// and the like: an address, whatever follows
        return _address_end(text, end), False
    # In an address nothing is cut (example.org/a-b): before a cut the whole stretch is looked at.
    cut = _cut(text, start, position, end, kind)
    if cut < 0:
        return end, True
    # Not in the rest of a word that was cut.
    if text[position] != 0x27 and text[position] < 0x80 and kind_before(text, start) in (SPACE, MARK, QUOTE):
        address = _address_in(text, start, position, stretch)
        if address >= 0:
            return address, False
    return cut, False


@njit(cache=True)
def _stays(text, start, position):  # type: ignore[no-untyped-def]
    """Whether the sticky mark at ``position`` is part of the word that ends there: not a full stop, not 50+."""
    if text[position] == 0x2E:
        return is_abbreviated(text, start, position)
    return text[position] != 0x2B or CLASSES[text[position - 1]] != DIGIT


@njit(cache=True)
def _cut(text, start, position, end, after):  # type: ignore[no-untyped-def]
    """Where the word is cut that has marks between ``position`` and ``end`` and goes on; -1 if it is not."""
    mark = text[position]
    if mark == 0x27 or mark >= 0x80:  # an apostrophe, plain or typographic (three bytes)
        return _before_clitic(text, start, position, 1 if mark < 0x80 else 3)
    if not _parts(text, position, end, after):
        return -1
    if mark == 0x2E and is_abbreviated(text, start, position):
        return position + 1
    if mark == 0x2F and _is_and_or(text, start, position):
        return -1
    return position


@njit(cache=True)
def _parts(text, position, end, after):  # type: ignore[no-untyped-def]
    """Whether the marks between ``position`` and ``end``, with a word on each side, part the two."""
    before, mark = kind_before(text, position), text[position]
    letters, digits = before == LETTER and after == LETTER, before == DIGIT and after == DIGIT
    for place in range(position + 1, end):  # marks of several kinds in a row part nothing here
        if text[place] != mark:
            return False
    if mark == 0x2E:  # end.Next are two sentences
        return end > position + 1 or (0x61 <= text[position - 1] <= 0x7A and 0x41 <= text[end] <= 0x5A)
    # From here on spaCy's infix rules: a-b, 10-20; then a,b; 2+2, 2*2; a:b, a/b, a<b, a=b, a>b.
    if mark == 0x2D:
        return (after == LETTER and before <= DIGIT) or (digits and end == position + 1)
    if end > position + 1:
        return False
    if mark == 0x2C:
        return letters
    if mark == 0x2B or mark == 0x2A:
        return digits
    if mark == 0x3A or mark == 0x2F or 0x3C <= mark <= 0x3E:
        return after == LETTER and before <= DIGIT
    return False


@njit(cache=True)
def _is_and_or(text, start, position):  # type: ignore[no-untyped-def]
    """Whether the slash at ``position`` is that of and/or, the one such pair that is one word."""
    if position - start != 3 or position + 2 >= len(text):
        return False
    if text[start] != 0x61 or text[start + 1] != 0x6E or text[start + 2] != 0x64:
        return False
    if text[position + 1] != 0x6F or text[position + 2] != 0x72:
        return False
    return position + 3 == len(text) or class_at(text, position + 3)[0] > INERT


@njit(cache=True)
def _is_scheme(text, start, position):  # type: ignore[no-untyped-def]
    """Whether ``://`` is at ``position`` and only letters are before it in the word."""
    if position + 2 >= len(text) or text[position] != 0x3A or text[position + 1] != 0x2F or text[position + 2] != 0x2F:
        return False
    place = position - 1  # backwards: in ://a://a each call would go over all of the word
    while place >= start and CLASSES[text[place]] == LETTER:
        place -= 1
    return place < start


@njit(cache=True)
def _raw_end(text, position):  # type: ignore[no-untyped-def]
    """The end of what goes on at ``position`` up to white space."""
    end = position
    while end < len(text):
        kind, width = class_at(text, end)
        if kind == SPACE or (width > 1 and kind != LETTER):
            break
        end += width
    return end


@njit(cache=True)
def _without_closing(text, position, end):  # type: ignore[no-untyped-def]
    """``end`` without closing punctuation: the full stop of the sentence, the bracket around it."""
    while end > position and (CLASSES[text[end - 1]] == MARK or text[end - 1] == 0x2E or text[end - 1] == 0x27):
        end -= 1
    return end


@njit(cache=True)
def _address_end(text, position):  # type: ignore[no-untyped-def]
    """The end of what goes on at ``position`` up to white space, without closing punctuation."""
    return _without_closing(text, position, _raw_end(text, position))


@njit(cache=True)
def new_stretch():  # type: ignore[no-untyped-def]
    """What ``after_marks`` knows of the stretch without white space that it looked at last: nothing yet.

    Where it was looked at from, its end, its end without closing punctuation, the last @ before a host. Each cut of a
    word would otherwise go over the whole stretch again: quadratic time where no space comes for long.
    """
    return np.array([-1, -1, -1, -1], dtype=np.int64)


@njit(cache=True)
def _address_in(text, start, position, stretch):  # type: ignore[no-untyped-def]
    """The end of the web or mail address or file name that begins at ``start`` and goes on at ``position``
    (example.org/page, a-b.md, me@x.org); -1 if there is none."""
    if not stretch[0] <= position < stretch[1]:
        end = _raw_end(text, position)
        address = _without_closing(text, position, end)
        stretch[0], stretch[1], stretch[2], stretch[3] = position, end, address, -1
        for place in range(address - 1, position - 1, -1):
            if text[place] == 0x40 and _is_host(text, place + 1, address):
                stretch[3] = place
                break
    address = max(stretch[2], position)
    if _is_host(text, start, address) or stretch[3] >= position:
        return address
    for place in range(start, position):
        if text[place] == 0x40 and _is_host(text, place + 1, address):
            return address
    return -1


_LONGEST_LABEL = 64
"""Characters between two full stops of a host; DNS (RFC 1035) allows 63, spaCy one more."""


@njit(cache=True)
def _is_port(text, position, end):  # type: ignore[no-untyped-def]
    return text[position] == 0x3A and position + 1 < end and CLASSES[text[position + 1]] == DIGIT


@njit(cache=True)
def _is_host(text, position, end):  # type: ignore[no-untyped-def]
    """Whether labels of letters, digits, hyphens and underscores stand between full stops, the last one of two small
    letters or more, and then the end, a path or a port."""
    # Of the present label: its length, may it be the last one (`small`), was the last byte a hyphen (`joined`).
    dots, length, small, joined = 0, 0, True, False
    while position < end:
        byte = text[position]
        kind = np.int64(CLASSES[byte])
        if kind <= DIGIT or kind == WIDE:
            length += 1
            small = small and (kind == WIDE or byte >= 0x61)
        elif byte == 0x2E and 0 < length <= _LONGEST_LABEL and not joined:
            dots, length, small = dots + 1, 0, True
        elif (byte == 0x2D or byte == 0x5F) and length:
            small, length = False, length + 1  # no top-level domain has a hyphen
        else:
            if byte == 0x2F or byte == 0x3F or byte == 0x23 or _is_port(text, position, end):
                break
            return False
        joined = byte == 0x2D or byte == 0x5F
        position += 1
    return dots > 0 and small and length >= 2


@njit(cache=True)
def after_face(text, position):  # type: ignore[no-untyped-def]
    """Where the emoticon of marks ends, :) or ;-) or :*, whose eyes are before ``position``; or ``position``."""
    mouth = position + (position < len(text) and text[position] == 0x2D)  # behind the nose, if there is one
    if mouth >= len(text):
        return position
    if text[mouth] == 0x29:
        return mouth + 1
    if text[position - 1] == 0x3A and text[mouth] in (0x28, 0x2A, 0x5B, 0x5D, 0x7C, 0x7D):
        return mouth + 1
    return position
