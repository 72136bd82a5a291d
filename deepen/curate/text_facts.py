"""Words and lines of one text, found once and shared by every rule that asks about them.

The rules of a recipe look at the same document one after the other, so the facts about the latest text are kept until
another text comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from deepen.curate.lines_kernel import describe_lines
from deepen.curate.words_kernel import count_words, describe_words, split_words
from deepen.engine.compiled import njit

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Words:
    """The n words of a text: ``hashes`` uint64, ``lengths`` in characters, ``flags``; symbols (marks alone) are words
    too, the others are ``plain``."""

    hashes: Array
    lengths: Array
    flags: Array
    num_plain: int
    plain_characters: int
    num_alphabetic: int
    num_alone: int
    """Characters of scripts without spaces."""

    @property
    def count(self) -> int:
        """How many words there are, symbols too."""
        return len(self.hashes)


@dataclass(frozen=True)
class Lines:
    """The m lines of a text that are not empty, with what ``describe_lines`` says of them, and counts of the text."""

    hashes: Array
    lengths: Array
    flags: Array
    breaks: Array
    num_lines: int
    """All lines, empty ones too."""
    num_newlines: int
    num_characters: int
    num_hash_signs: int
    num_ellipses: int
    num_open_ends: int
    """How many of the text's two ends are line feeds."""


@lru_cache(maxsize=1)
def encoded(text: str) -> Array:
    """The UTF-8 bytes of a text, uint8."""
    return np.frombuffer(text.encode(), dtype=np.uint8)


@lru_cache(maxsize=1)
def words_of(text: str) -> Words:
    """The words of a text."""
    return split(text)


def split(text: str) -> Words:
    """The words of a text, found anew."""
    return Words(*_words(np.frombuffer(text.encode(), dtype=np.uint8)))


def words_at(text: str, starts: Array, ends: Array) -> Words:
    """Words given by another splitter as positions (int32) in the UTF-8 bytes of ``text``."""
    return Words(*_described(encoded(text), starts, ends))


@lru_cache(maxsize=1)
def lines_of(text: str) -> Lines:
    """The lines of a text."""
    *table, numbers = _lines(encoded(text))
    return Lines(*table, *numbers)


@njit(cache=True)
def _words(text):  # type: ignore[no-untyped-def]
    starts, ends = np.empty(len(text), dtype=np.int32), np.empty(len(text), dtype=np.int32)
    hashes, lengths = np.empty(len(text), dtype=np.uint64), np.empty(len(text), dtype=np.int32)
    flags = np.empty(len(text), dtype=np.uint8)
    count = split_words(text, starts, ends, hashes, lengths, flags)
    return _counted(hashes[:count], lengths[:count], flags[:count])


@njit(cache=True)
def _described(text, starts, ends):  # type: ignore[no-untyped-def]
    hashes, lengths = np.empty(len(starts), dtype=np.uint64), np.empty(len(starts), dtype=np.int32)
    flags = np.empty(len(starts), dtype=np.uint8)
    describe_words(text, starts, ends, hashes, lengths, flags)
    return _counted(hashes, lengths, flags)


@njit(cache=True)
def _counted(hashes, lengths, flags):  # type: ignore[no-untyped-def]
    num_plain, characters, num_alphabetic, num_alone = count_words(lengths, flags)
    return hashes, lengths, flags, num_plain, characters, num_alphabetic, num_alone


@njit(cache=True)
def _lines(text):  # type: ignore[no-untyped-def]
    most = 1
    for byte in text:
        most += byte == 0x0A
    hashes, lengths = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.int32)
    flags, breaks = np.empty(most, dtype=np.uint8), np.empty(most, dtype=np.int32)
    count, num_lines, newlines, characters, signs, ellipses = describe_lines(text, hashes, lengths, flags, breaks)
    open_ends = (text[0] == 0x0A) + (text[-1] == 0x0A) if len(text) else 0
    numbers = (num_lines, newlines, characters, signs, ellipses, open_ends)
    return hashes[:count], lengths[:count], flags[:count], breaks[:count], numbers
