"""The line rules of C4 in one compiled walk: where each line lies, whether it stays, how many sentences it has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepen.curate.lines_kernel import is_terminal
from deepen.curate.text_kernels import code_point, is_space
from deepen.curate.words_kernel import is_abbreviated
from deepen.engine.compiled import njit

BLANK, KEPT, LONG_WORD, NOT_TERMINAL, FEW_WORDS, SCRIPT, POLICY, LOREM_IPSUM, BRACE = range(9)
"""What becomes of a line; the last two drop the whole document."""
JAVASCRIPT_BIT, POLICY_BIT, LOREM_BIT, BRACE_BIT = 1, 2, 4, 8
"""Phrases that a line holds."""


_OTHER, _SPACE, _TERMINAL, _CLOSING, _WIDE = 0, 1, 2, 3, 4


def _byte_classes() -> npt.NDArray[np.uint8]:
    table = np.zeros(256, dtype=np.uint8)
    table[0x80:] = _WIDE
    table[[*range(0x09, 0x0E), 0x20]] = _SPACE
    table[[0x2E, 0x3F, 0x21]] = _TERMINAL
    table[[0x22, 0x27, 0x29, 0x5D]] = _CLOSING
    return table


_CLASSES = _byte_classes()


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
def judge_lines(text, places, phrases, limits, spans, verdicts):  # type: ignore[no-untyped-def]
    """Judge every line: stripped ``spans`` int64 [lines, 2] and ``verdicts``; returns lines and sentences in kept ones.

    ``phrases`` are the bits of phrases that begin at the bytes ``places`` (ascending). ``limits``: characters of the
    longest word, fewest words, whether a line must end in terminal punctuation.
    """
    size, position, count, place, sentences = len(text), 0, 0, 0, 0
    while position < size:
        end = position
        while end < size and text[end] != 0x0A:
            end += 1
        bits = 0
        while place < len(places) and places[place] < end:
            bits |= phrases[place]
            place += 1
        first, last, words, longest, found = _scan(text, position, end)
        spans[count, 0], spans[count, 1] = first, last
        verdict = BLANK if first == last else _verdict(text, first, last, words, longest, bits, limits)
        verdicts[count] = verdict
        if verdict == KEPT:
            sentences += found
        count += 1
        position = end + 1
    return count, sentences


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


@njit(cache=True)
def _scan(text, position, end):  # type: ignore[no-untyped-def]
    """Where the visible part of a line begins and ends, its words, the longest in characters, and its sentences."""
    first, last, words, longest = end, end, 0, 0
    sentences, ended, closed = 0, False, False
    while position < end:
        kind, width = _class_at(text, position)
        if kind == _SPACE:
            position += width
            continue
        if words == 0:
            first = position
        words += 1
        length, ended, start = 0, False, position
        while kind != _SPACE:
            if kind == _TERMINAL:
                ended = text[position] != 0x2E or not is_abbreviated(text, start, position)
            elif kind != _CLOSING:
                ended = False
            length += 1
            position += width
            if position >= end:
                break
            kind = np.int64(_CLASSES[text[position]])
            width = 1
            if kind == _WIDE:
                kind, width = _class_at(text, position)
        longest = max(longest, length)
        last = position
        closed = ended and position < end
        sentences += closed
    if words and not closed:  # what comes after the last full stop, or the sentence that ends the line
        sentences += 1
    return first, last, words, longest, sentences


@njit(cache=True)
def _ends_sentence(text, first, last):  # type: ignore[no-untyped-def]
    """Whether the line, without references such as ``[12]`` at its end, ends in . ? ! " ' but not in an ellipsis."""
    last = _before_references(text, first, last)
    if last == first:
        return False
    if text[last - 1] == 0x22 or text[last - 1] == 0x27:
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
        if text[start] != 0x5B:
            return last
        last = start
    return last


def limits_of(max_word_length: int, min_words: int, terminal: bool) -> npt.NDArray[np.int64]:
    """The limits as ``judge_lines`` takes them."""
    return np.array([max_word_length, min_words, terminal], dtype=np.int64)
