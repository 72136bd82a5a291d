"""The line rules of C4 in one compiled walk: where each line lies, whether it stays, how many sentences it has.

Unwanted phrases are looked for only at a letter that is rare and in one of them, or where the last word of one of them
may begin; most bytes cost one look into a table.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepen.curate.kernels.lines import is_terminal
from deepen.curate.kernels.text import code_point, is_space
from deepen.curate.kernels.word_marks import is_abbreviated
from deepen.engine.compiled import njit

BLANK, KEPT, LONG_WORD, NOT_TERMINAL, FEW_WORDS, SCRIPT, POLICY, LOREM_IPSUM, BRACE = range(9)
"""What becomes of a line; the last two drop the whole document."""
JAVASCRIPT_BIT, POLICY_BIT, LOREM_BIT, BRACE_BIT = 1, 2, 4, 8
"""Phrases that a line holds."""
_BRACKET_BIT = 16

_OTHER, _RARE, _SPACE, _TERMINAL, _CLOSING, _WIDE = 0, 1, 2, 3, 4, 5


def _byte_classes() -> npt.NDArray[np.uint8]:
    table = np.zeros(256, dtype=np.uint8)
    table[list(b"jJkK{[")] = _RARE  # javascript and cookie are looked for at their rarest letter
    table[0x80:] = _WIDE
    table[[*range(0x09, 0x0E), 0x20]] = _SPACE
    table[[0x2E, 0x3F, 0x21]] = _TERMINAL
    table[[0x22, 0x27, 0x29, 0x5D]] = _CLOSING
    return table


_CLASSES = _byte_classes()


def _bytes(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


_JAVASCRIPT, _LOREM_IPSUM = _bytes("javascript"), _bytes("lorem ipsum")
_TERMS, _PRIVACY, _COOKIE = _bytes("terms of use"), _bytes("privacy policy"), _bytes("cookie")
_COOKIE_POLICY, _USES_COOKIES = _bytes("cookie policy"), _bytes("uses cookies")
_USE_OF_COOKIES, _USE_COOKIES = _bytes("use of cookies"), _bytes("use cookies")
_EDIT, _CITATION_NEEDED = _bytes("edit]"), _bytes("citation needed]")


@njit(cache=True)
def _is_at(text, position, phrase):  # type: ignore[no-untyped-def]
    """Whether the phrase (small letters) begins at ``position``, in letters of any size."""
    if position < 0 or position + len(phrase) > len(text):
        return False
    for place in range(len(phrase)):
        byte = text[position + place]
        # A capital differs from its small letter in the bit 0x20; of other bytes it makes other signs (a NUL a space).
        if byte != phrase[place] and (byte | 0x20 != phrase[place] or not 0x41 <= byte <= 0x5A):
            return False
    return True


@njit(cache=True)
def _phrase_at(text, position):  # type: ignore[no-untyped-def]
    """The bit of the unwanted phrase that has its rare letter at ``position``, or 0. No phrase goes over a line end."""
    # Folds J and K to small letters, and also `[` (0x5B) to `{` (0x7B), which the next lines tell apart.
    byte = text[position] | 0x20
    if byte == 0x7B:
        return BRACE_BIT if text[position] == 0x7B else _BRACKET_BIT
    if byte == 0x6A:
        return JAVASCRIPT_BIT if _is_at(text, position, _JAVASCRIPT) else 0
    if not _is_at(text, position - 3, _COOKIE):  # the k is its fourth letter; below, its place in each phrase
        return 0
    found = _is_at(text, position - 3, _COOKIE_POLICY) or _is_at(text, position - 8, _USES_COOKIES)
    found = found or _is_at(text, position - 10, _USE_OF_COOKIES) or _is_at(text, position - 7, _USE_COOKIES)
    return POLICY_BIT if found else 0


def _letter_bits(*letters: str) -> npt.NDArray[np.uint8]:
    """For each byte the bits of the places at which it is a letter there, of any size."""
    table = np.zeros(256, dtype=np.uint8)
    for place, letter in enumerate(letters):
        table[[ord(letter), ord(letter.upper())]] |= 1 << place
    return table


_FIRST, _SECOND = _letter_bits("i", "u", "p"), _letter_bits("p", "s", "o")
"""How the last words of lorem ipsum, terms of use and privacy policy begin."""


@njit(cache=True)
def _phrase_before(text, position):  # type: ignore[no-untyped-def]
    """The bit of the unwanted phrase whose last word begins at ``position``, or 0."""
    if _is_at(text, position - 6, _LOREM_IPSUM):
        return LOREM_BIT
    return POLICY_BIT if _is_at(text, position - 9, _TERMS) or _is_at(text, position - 8, _PRIVACY) else 0


@njit(cache=True)
def _class_at(text, position):  # type: ignore[no-untyped-def]
    """Class of the character at ``position``, and its number of bytes."""
    kind = np.int64(_CLASSES[text[position]])
    if kind != _WIDE:
        return kind, 1
    point, width = code_point(text, position)
    if is_space(point):
        return _SPACE, width
    if is_terminal(point):
        return _TERMINAL, width
    return (_CLOSING if point in (0x201D, 0x2019, 0xBB) else _OTHER), width


@njit(cache=True)
def judge_lines(text, wanted, limits, spans, verdicts, brackets):  # type: ignore[no-untyped-def]
    """Judge every line: stripped ``spans`` int64 [lines, 2], ``verdicts``, and whether there is a ``[`` in it
    (``brackets``); returns lines and sentences in kept ones.

    ``wanted`` are the bits of the phrases that matter. ``limits``: characters of the longest word, fewest words,
    whether a line must end in terminal punctuation.
    """
    size, position, count, sentences = len(text), 0, 0, 0
    while position < size:
        end = position
        while end < size and text[end] != 0x0A:
            end += 1
        first, last, words, longest, found, bits = _scan(text, position, end)
        spans[count, 0], spans[count, 1] = first, last
        verdict = BLANK if first == last else _verdict(text, first, last, words, longest, bits & wanted, limits)
        verdicts[count] = verdict
        brackets[count] = bits & _BRACKET_BIT != 0
        if verdict == KEPT:
            sentences += found
        count += 1
        position = end + 1
    return count, sentences


# In the order of datatrove's C4QualityFilter: a phrase counts only in a line that the rules before it have left.
@njit(cache=True)
def _verdict(text, first, last, words, longest, bits, limits):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    if longest > limits[0]:
        return LONG_WORD
    if limits[2] and not _ends_sentence(text, first, last):
        return NOT_TERMINAL
    if words < limits[1]:
        return FEW_WORDS
    if bits & LOREM_BIT:
        return LOREM_IPSUM
    if bits & JAVASCRIPT_BIT:
        return SCRIPT
    if bits & BRACE_BIT:
        return BRACE
    return POLICY if bits & POLICY_BIT else KEPT


# Carried along: `ended`, whether the word's last mark but quotes ends a sentence; `closed`, whether the word before the
# present place did; `continuations`, bytes of the word that begin no character.
@njit(cache=True)
def _scan(text, position, end):  # type: ignore[no-untyped-def]  # noqa: C901 - one loop
    """Of a line: begin and end of its visible part, words, characters of the longest, sentences, bits of phrases."""
    first, last, words, longest = end, end, 0, 0
    sentences, ended, closed, bits = 0, False, False, 0
    while position < end:
        kind, width = _class_at(text, position)
        if kind == _SPACE:
            position += width
            continue
        if words == 0:
            first = position
        words += 1
        continuations, ended, start = 0, False, position
        # The bits of both tables agree only where one of the three words may begin: others cost no comparison.
        if position + 1 < end and _FIRST[text[position]] & _SECOND[text[position + 1]]:
            bits |= _phrase_before(text, position)
        while position < end:
            byte = text[position]
            kind = np.int64(_CLASSES[byte])
            # The most common case has a loop of its own, which does nothing but look into the table.
            if kind == _OTHER:
                ended = False
                position += 1
                while position < end and _CLASSES[text[position]] == _OTHER:
                    position += 1
                continue
            if kind == _RARE:
                bits |= _phrase_at(text, position)
                ended = False
                position += 1
                continue
            width = 1
            if kind == _WIDE:
                kind, width = _class_at(text, position)
            if kind == _SPACE:
                break
            if kind == _TERMINAL:
                ended = byte != 0x2E or not is_abbreviated(text, start, position)
            elif kind != _CLOSING:  # quotes and brackets behind a full stop leave the sentence ended
                ended = False
            continuations += width - 1  # taken off again, so that `longest` is in characters
            position += width
        longest = max(longest, position - start - continuations)
        last = position
        closed = ended and position < end
        sentences += closed
    if words and not closed:  # what comes after the last full stop, or the sentence that ends the line
        sentences += 1
    return first, last, words, longest, sentences, bits


@njit(cache=True)
def _ends_sentence(text, first, last):  # type: ignore[no-untyped-def]
    """Whether the line, without references such as ``[12]`` at its end, ends in . ? ! " ' but not in an ellipsis."""
    last = _before_references(text, first, last)
    if last == first:
        return False
    if text[last - 1] == 0x22 or text[last - 1] == 0x27:  # in C4 a quote at the end is enough
        return True
    if last - first >= 3 and text[last - 1] == 0x2E and text[last - 2] == 0x2E and text[last - 3] == 0x2E:
        return False
    start = last - 1
    while start > first and (text[start] & 0xC0) == 0x80:
        start -= 1
    point, _ = code_point(text, start)
    return is_terminal(point)


@njit(cache=True)
def _before_references(text, first, last):  # type: ignore[no-untyped-def]
    while last - first >= 2 and text[last - 1] == 0x5D:
        start = last - 2
        while start > first and 0x30 <= text[start] <= 0x39:
            start -= 1
        if text[start] != 0x5B:  # `[]` without a number goes too: the pattern of datatrove is `\[\d*]`
            return last
        last = start
    return last


@njit(cache=True)
def filter_texts(buffer, starts, ends, wanted, limits, references, out, out_ends, counts):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """The lines that stay of every text, end to end in ``out`` (as large as all texts) up to ``out_ends``; and in
    ``counts`` int64 [texts, 5] its sentences, visible and kept lines, and lines of lorem ipsum and with a brace."""
    used = 0
    for number in range(len(starts)):
        text = buffer[starts[number] : ends[number]]
        most = 1
        for byte in text:
            most += byte == 0x0A
        spans, verdicts = np.empty((most, 2), dtype=np.int64), np.empty(most, dtype=np.uint8)
        brackets = np.empty(most, dtype=np.bool_)
        count, counts[number, 0] = judge_lines(text, wanted, limits, spans, verdicts, brackets)
        counts[number, 1:] = 0
        begin, blank = used, False
        for line in range(count):
            verdict = verdicts[line]
            counts[number, 1] += verdict != BLANK
            counts[number, 2] += verdict == KEPT
            counts[number, 3] += verdict == LOREM_IPSUM
            counts[number, 4] += verdict == BRACE
            blank = blank or verdict == BLANK  # it parts what is kept, whatever was dropped beside it
            if verdict == KEPT:
                if counts[number, 2] > 1:
                    out[used] = 0x0A
                    # Both line feeds are written and one or both are counted: the next line overwrites what is not.
                    out[used + 1] = 0x0A
                    used += 1 + blank
                used = _copy_line(text, spans[line, 0], spans[line, 1], references and brackets[line], out, used)
                blank = False
        if counts[number, 2] == 0:
            used = begin
        out_ends[number] = used


@njit(cache=True)
def _copy_line(text, position, end, references, out, used):  # type: ignore[no-untyped-def]
    if not references:
        out[used : used + end - position] = text[position:end]
        return used + end - position
    while position < end:
        byte = text[position]
        if byte == 0x5B:
            after = _reference_end(text, position, end)
            if after > position:
                position = after
                continue
        out[used] = byte
        used, position = used + 1, position + 1
    return used


@njit(cache=True)
def _reference_end(text, position, end):  # type: ignore[no-untyped-def]
    """The byte after the reference mark that begins at ``position``, or ``position`` where there is none."""
    after = position + 1
    while after < end and 0x30 <= text[after] <= 0x39:
        after += 1
    if after < end and text[after] == 0x5D:
        return after + 1
    for mark in (_EDIT, _CITATION_NEEDED):
        after = position + 1 + len(mark)
        if after <= end and np.all(text[position + 1 : after] == mark):
            return after
    return position
