"""How much of a text repeats itself: the thirteen quantities of the Gopher repetition rules.

Lines, paragraphs and n-grams are compared by 64-bit hashes in open-addressing tables; texts are never sliced. Counting
follows the reference implementation (datatrove); that the most frequent n-gram counts only if it occurs twice is ours.
An n-gram can only be repeated where the (n-1)-gram it begins with is, so each length looks at the few places that the
one before it left: nine lengths cost little more than one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepen.curate.batch.text_facts import Lines, Words, lines_of, words_of
from deepen.curate.kernels.lines import VISIBLE, join_paragraphs
from deepen.curate.kernels.text import absorb
from deepen.curate.kernels.words import ALONE
from deepen.engine.compiled import njit

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
_LARGEST_TABLE = 1 << 22
"""Slots of the table of n-grams (4 bytes each): what a core's cache about holds."""
_SLOTS_PER_GRAM = 4
"""At least, where the table can be that large: hardly a look meets another n-gram, so its branch is foreseen."""


def measure(text: str) -> npt.NDArray[np.float64]:
    """The thirteen shares (float64 [13], between 0 and 1) of one text."""
    return np.asarray(measure_words(words_of([text]), lines_of([text]))[0])


def measure_words(words: Words, lines: Lines, *, as_datatrove: bool = False) -> npt.NDArray[np.float64]:
    """The thirteen shares of n texts (float64 [n, 13]) for any splitting into words.

    ``as_datatrove``: blank lines count as lines, and the most frequent n-gram counts even if it occurs once.
    """
    shares = np.zeros((len(lines.num_lines), 13), dtype=np.float64)
    open_ends = lines.num_open_ends if as_datatrove else np.full(len(shares), -1)
    _all_line_shares(
        lines.hashes, lines.lengths, lines.flags, lines.breaks, lines.offsets, lines.num_characters, open_ends, shares
    )
    _all_n_grams(words.hashes, words.lengths, words.flags, words.offsets, lines.num_characters, as_datatrove, shares)
    return shares


@njit(cache=True)
def _all_line_shares(hashes, lengths, flags, breaks, offsets, num_characters, open_ends, shares):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    for text in range(len(shares)):
        if num_characters[text]:
            own = slice(offsets[text], offsets[text + 1])
            table = hashes[own], lengths[own], flags[own], breaks[own]
            _line_shares(table[0], table[1], table[2], table[3], num_characters[text], open_ends[text], shares[text])


@njit(cache=True)
def _all_n_grams(hashes, lengths, flags, offsets, num_characters, as_datatrove, shares):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    for text in range(len(shares)):
        if num_characters[text]:
            own = slice(offsets[text], offsets[text + 1])
            _n_grams(hashes[own], lengths[own], flags[own], num_characters[text], as_datatrove, shares[text])


@njit(cache=True)
def count_duplicate_characters(hashes, lengths, flags, offsets, needed):  # type: ignore[no-untyped-def]
    """For each text the characters in lines with the flags ``needed`` that occurred before, int64 [n]."""
    characters = np.empty(len(offsets) - 1, dtype=np.int64)
    for text in range(len(characters)):
        own = slice(offsets[text], offsets[text + 1])
        _, _, characters[text] = duplicate_lines(hashes[own], lengths[own], flags[own], needed)
    return characters


@njit(cache=True)
def duplicate_lines(hashes, lengths, flags, needed):  # type: ignore[no-untyped-def]
    """How many lines have the flags ``needed``, how many of those occurred before, and the characters in the latter."""
    chosen, num_chosen = np.empty(len(hashes), dtype=np.uint64), 0
    sizes = np.empty(len(hashes), dtype=np.int64)
    for number in range(len(hashes)):
        if flags[number] & needed == needed:
            chosen[num_chosen], sizes[num_chosen] = hashes[number], lengths[number]
            num_chosen += 1
    repeated, characters = _duplicates(chosen[:num_chosen], sizes)
    return num_chosen, repeated, characters


@njit(cache=True)
def _line_shares(hashes, lengths, flags, breaks, num_characters, num_open_ends, shares):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Shares of lines and paragraphs that occurred before, and of the characters in them, into ``shares[:4]``.

    ``num_open_ends`` (0 to 2; -1: blank lines do not count): how many ends of the text are line feeds, beyond each of
    which the reference implementation sees one more, empty, line.
    """
    needed = VISIBLE if num_open_ends < 0 else 0  # flags that a line must have: with 0 every line counts
    num_lines, repeated, characters = duplicate_lines(hashes, lengths, flags, needed)
    if num_open_ends > 0:
        # Of two empty lines beyond the ends the second repeats the first, without a character of its own.
        num_lines, repeated = num_lines + num_open_ends, repeated + (num_open_ends - 1)
    shares[0], shares[1] = repeated / max(1, num_lines), characters / num_characters
    chosen, sizes = np.empty(len(hashes), dtype=np.uint64), np.empty(len(hashes), dtype=np.int64)
    num_paragraphs = join_paragraphs(hashes, lengths, flags, breaks, needed, chosen, sizes)
    repeated, characters = _duplicates(chosen[:num_paragraphs], sizes)
    shares[2], shares[3] = repeated / max(1, num_paragraphs), characters / num_characters


@njit(cache=True)
def _slot(table, key):  # type: ignore[no-untyped-def]
    """Where ``key`` is, or belongs, in a table whose size is a power of two."""
    mask = np.uint64(len(table) - 1)
    slot = key & mask
    while table[slot] != _ZERO and table[slot] != key:  # at most half of the slots are taken, so a free one ends it
        slot = (slot + _ONE) & mask
    return slot


@njit(cache=True)
def _table_size(count):  # type: ignore[no-untyped-def]
    size = 8
    while size < 2 * count:  # a power of two, so that a mask finds the slot; at most half full
        size *= 2
    return size


@njit(cache=True)
def _duplicates(hashes, lengths):  # type: ignore[no-untyped-def]
    """How many pieces occurred before, and their characters."""
    table = np.zeros(_table_size(len(hashes)), dtype=np.uint64)
    repeated, characters = 0, 0
    for number in range(len(hashes)):
        key = hashes[number] | _ONE  # zero stands for a free slot; one bit of the hash pays for that
        slot = _slot(table, key)
        if table[slot] == key:
            repeated += 1
            characters += lengths[number]
        table[slot] = key
    return repeated, characters


@njit(cache=True)
def _n_grams(words, lengths, flags, num_characters, as_datatrove, shares):  # type: ignore[no-untyped-def]
    """Shares of the most frequent 2- to 4-gram and of repeated 5- to 10-grams, into ``shares[4:]``."""
    num_words = len(words)
    places = np.arange(num_words, dtype=np.int32)  # where an n-gram might begin that occurs twice
    grams = words.copy()  # hash of the n-gram at each of those places
    firsts, counts = np.empty(num_words, dtype=np.int32), np.empty(num_words, dtype=np.int32)
    table = np.empty(min(2 * _table_size(num_words), _LARGEST_TABLE), dtype=np.int32)  # one for all nine lengths
    count = num_words
    for n in range(2, 11):
        if num_words < n:
            break
        count = _grown(places[:count], grams, words, n)
        _count_grams(grams[:count], table, counts, firsts)
        if n <= 4:
            place, most = _top(places[:count], counts, firsts)
            if most > 1 or as_datatrove:
                span = _length(lengths, flags, place, n)
                # Four shares of lines and paragraphs come first, so those of 2-grams are the fifth.
                shares[2 + n] = min(1.0, most * span / num_characters)
        else:
            shares[2 + n] = _repeated(places[:count], n, lengths, counts, firsts) / num_characters
        count = _kept(places[:count], grams, counts, firsts)


@njit(cache=True)
def _grown(places, grams, words, n):  # type: ignore[no-untyped-def]
    """Turn the (n-1)-grams into n-grams, in place; returns how many do not reach beyond the text."""
    count = 0
    for number in range(len(places)):
        place = places[number]
        # What stays is moved to the front of the same arrays; `count` never passes `number`, so nothing unread is lost.
        if place + n <= len(words):
            places[count], grams[count] = place, absorb(grams[number], words[place + n - 1])
            count += 1
    return count


@njit(cache=True)
def _count_grams(grams, table, counts, firsts):  # type: ignore[no-untyped-def]
    """For each n-gram the first equal one (``firsts``), and at that one how often it occurs (``counts``).

    A table of more slots than ``table`` has is filled one range of hashes after the other. The highest bits of a hash
    are the best mixed ones: they choose the slot, those below the range.
    """
    bits, range_bits = 3, 0
    # Slots for all n-grams at once, as far as the table goes; beyond that, ranges that fill it to one half.
    while (1 << bits) < _SLOTS_PER_GRAM * len(grams) and (2 << bits) <= len(table):
        bits += 1
    while (1 << (bits + range_bits)) < 2 * len(grams):
        range_bits += 1
    own = table[: 1 << bits]
    shift, mask = np.uint64(64 - bits), (1 << bits) - 1
    range_shift, range_mask = np.uint64(64 - bits - range_bits), np.uint64((1 << range_bits) - 1)
    for part in range(1 << range_bits):
        own[:] = -1
        for number in range(len(grams)):
            gram = grams[number]
            if range_bits and (gram >> range_shift) & range_mask != np.uint64(part):  # another pass is for it
                continue
            # The table holds numbers of n-grams, not hashes: half the bytes, so twice the slots in the cache.
            slot = np.int64(gram >> shift)
            first = own[slot]
            # `&` and `max` let both be worked out without a jump: for a free slot `grams[0]` is read and not used.
            while (first >= 0) & (grams[max(first, 0)] != gram):
                slot = (slot + 1) & mask
                first = own[slot]
            counts[number] = 0
            first = number if first < 0 else first
            own[slot] = firsts[number] = first  # stays as it is when an equal n-gram was there
            counts[first] += 1


@njit(cache=True)
def _top(places, counts, firsts):  # type: ignore[no-untyped-def]
    """Where the first of the most frequent n-grams is, and how often it occurs (overlaps count)."""
    # Without a repeat the text's first n-gram stands, once, as `Counter.most_common` of the reference gives it.
    most, best = 1, 0
    for number in range(len(places)):
        if firsts[number] == number and counts[number] > most:
            most, best = counts[number], places[number]
    return best, most


@njit(cache=True)
def _repeated(places, n, lengths, counts, firsts):  # type: ignore[no-untyped-def]
    """Letters in n-grams that occurred before: after a repeat counting goes on n words later, so none counts twice."""
    characters, next_place = 0, 0
    for number in range(len(places)):
        place, first = places[number], firsts[number]
        if place < next_place:  # skipped, and not noted as seen either, as in the reference
            continue
        # The sign says that the n-gram was met in this pass; counts are made anew for the next length.
        if counts[first] < 0:
            for word in range(place, place + n):
                characters += lengths[word]
            next_place = place + n
        else:
            counts[first] = -counts[first]
    return characters


@njit(cache=True)
def _kept(places, grams, counts, firsts):  # type: ignore[no-untyped-def]
    """Keep the places whose n-gram occurs more than once; returns their number."""
    count = 0
    for number in range(len(places)):
        # Copied in any case, and counted only if it stays: no branch that depends on the text.
        places[count], grams[count] = places[number], grams[number]
        count += abs(counts[firsts[number]]) > 1
    return count


@njit(cache=True)
def _length(lengths, flags, place, n):  # type: ignore[no-untyped-def]
    """Characters of an n-gram with a space between its words, except within scripts without spaces."""
    total = 0
    for number in range(place, place + n):
        total += lengths[number]
        if number > place and not (flags[number] & flags[number - 1] & ALONE):
            total += 1
    return total
