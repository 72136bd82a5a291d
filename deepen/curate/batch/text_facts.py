"""Words and lines of many texts, found once per batch and shared by every rule that asks about them.

Tables are laid end to end, text after text, so that finding them and each rule on them is one compiled call per batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepen.curate.batch.texts import Texts, texts_of
from deepen.curate.kernels.lines import count_lines, describe_lines
from deepen.curate.kernels.text import room_for_lines
from deepen.curate.kernels.words import count_words, split_words
from deepen.engine.compiled import njit
from deepen.formats.files.arrays import Array


@dataclass(frozen=True)
class Words:
    """The words of n texts, marks that stand alone (symbols) among them: ``hashes`` uint64, ``lengths`` in characters
    and ``flags``. Those of the i-th text are ``[offsets[i] : offsets[i + 1]]``."""

    hashes: Array
    lengths: Array
    flags: Array
    offsets: Array
    counts: Array
    """int64 [n, 4]: words that are no symbols, characters in those, words with a letter, characters of scripts without
    spaces."""

    @property
    def num_words(self) -> Array:
        """Words of each text, symbols too."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Lines:
    """The lines of n texts that are not empty, with what ``describe_lines`` says of them."""

    hashes: Array
    lengths: Array
    flags: Array
    breaks: Array
    offsets: Array
    num_lines: Array
    """All lines of each text, empty ones too, int64 [n]."""
    num_newlines: Array
    num_characters: Array
    num_hash_signs: Array
    num_ellipses: Array
    num_open_ends: Array
    """How many of the text's two ends are line feeds."""

    def counts(self, short: int) -> Array:
        """int64 [n, 5]: visible lines, of those terminal ones and those of at most ``short`` characters; lines that end
        in an ellipsis, that begin with a bullet."""
        return np.asarray(_count_lines(self.lengths, self.flags, self.offsets, short))


def words_of(texts: Texts | Sequence[str]) -> Words:
    """The words of some texts."""
    own = texts if isinstance(texts, Texts) else texts_of(texts)
    most = int(own.sizes.sum())  # no word without a byte: room for all, so that the loop never has to grow a table
    hashes, lengths = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.int32)
    flags, counts = np.empty(most, dtype=np.uint8), np.empty((len(own), 4), dtype=np.int64)
    offsets = np.zeros(len(own) + 1, dtype=np.int64)
    _words(own.buffer, own.starts, own.ends, hashes, lengths, flags, offsets, counts)
    used = offsets[-1]
    return Words(hashes[:used], lengths[:used], flags[:used], offsets, counts)


def lines_of(texts: Texts | Sequence[str]) -> Lines:
    """The lines of some texts."""
    own = texts if isinstance(texts, Texts) else texts_of(texts)
    most = room_for_lines(own.buffer, own.starts, own.ends)
    hashes, lengths = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.int32)
    flags, breaks = np.empty(most, dtype=np.uint8), np.empty(most, dtype=np.int32)
    offsets, counts = np.zeros(len(own) + 1, dtype=np.int64), np.empty((6, len(own)), dtype=np.int64)
    _lines(own.buffer, own.starts, own.ends, hashes, lengths, flags, breaks, offsets, counts)
    used = offsets[-1]
    return Lines(hashes[:used], lengths[:used], flags[:used], breaks[:used], offsets, *counts)


@njit(cache=True)
def _words(buffer, starts, ends, hashes, lengths, flags, offsets, counts):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    nowhere, used = np.empty(0, dtype=np.int32), 0  # empty: positions are not wanted
    for number in range(len(starts)):
        text = buffer[starts[number] : ends[number]]
        end = used + split_words(text, nowhere, nowhere, hashes[used:], lengths[used:], flags[used:])
        counts[number] = count_words(lengths[used:end], flags[used:end])
        used = end
        offsets[number + 1] = used


@njit(cache=True)
def _lines(buffer, starts, ends, hashes, lengths, flags, breaks, offsets, counts):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    used = 0
    for number in range(len(starts)):
        text = buffer[starts[number] : ends[number]]
        found = describe_lines(text, hashes[used:], lengths[used:], flags[used:], breaks[used:])
        used += found[0]
        offsets[number + 1] = used
        for column in range(5):
            counts[column, number] = found[column + 1]
        # A text of one line feed has both ends open: beyond each there is an empty line.
        counts[5, number] = (text[0] == 0x0A) + (text[-1] == 0x0A) if len(text) else 0


@njit(cache=True)
def _count_lines(lengths, flags, offsets, short):  # type: ignore[no-untyped-def]
    counts = np.empty((len(offsets) - 1, 5), dtype=np.int64)
    for number in range(len(counts)):
        own = slice(offsets[number], offsets[number + 1])
        counts[number] = count_lines(lengths[own], flags[own], short)
    return counts
