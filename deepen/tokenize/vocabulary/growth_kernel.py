"""Learning more merges for a vocabulary: the most frequent adjacent pair becomes one token, again and again.

Words are arrays of symbols; pair counts are kept up to date where a merge happens, so a merge costs what it touches and
not the corpus. A pair is two symbols in one int64, and ties go to the smaller one: the result does not depend on the
order of the words. Strings are compared by a 64-bit hash; the caller checks every string that is made.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numba import types
from numba.typed import Dict, List

from deepen.engine.compiled import njit
from deepen.formats.files.arrays import Array

HASH_BASE = 0x9E3779B97F4A7C15
"""Multiplier of the string hash: hash(ab) = hash(a) * HASH_BASE ** len(b) + hash(b), modulo 2**64."""
_BITS = 32  # two symbols make one key: as numbers, keys sort by the left symbol, then the right one
_NONE = -1
_KEYS = types.ListType(types.int64)
_STEP = types.UniTuple(types.int64, 4)


@njit(cache=True)  # type: ignore[untyped-decorator]
def learn(
    words: tuple[Array, Array, Array], symbols: tuple[Array, Array, Array, Array], old_hashes: Array, most: int
) -> Any:
    """Up to ``most`` new tokens and their merges, in the order in which they are learned.

    ``words`` is (symbols back to back int64, offsets int64[words + 1], counts int64[words]). ``symbols`` is, for each,
    (hash uint64, power uint64 = HASH_BASE ** length, class int64, cost int64): only pairs of classes that
    ``_may_join`` are merged; a cost above 0 marks a character that the vocabulary lacks, which takes that many more
    tokens than one and must become a token itself before it is merged. ``old_hashes`` (sorted) are all strings of the
    vocabulary: a pair that spells one of them is left alone. Returns steps int64[n, 4] of (left, right, made, saved),
    with right -1 where ``left`` is a character that became a token, and the symbols of all words (-1: merged away).
    """
    state, offsets, counts = words[0].copy(), words[1], words[2]
    num_old = len(symbols[0])
    hashes, powers = np.empty(num_old + most, np.uint64), np.empty(num_old + most, np.uint64)
    classes, costs = np.empty(num_old + most, np.int64), np.zeros(num_old + most, np.int64)
    hashes[:num_old], powers[:num_old], classes[:num_old], costs[:num_old] = symbols
    around = _links(offsets, len(state))
    index = _index_pairs(state, offsets, counts, around[0])
    pair_counts = index[0]
    heap = _first_heap(pair_counts, costs, _uses(state, offsets, counts, num_old))
    waiting = Dict.empty(types.int64, _KEYS)  # pairs put aside, by the lacking character that they wait for
    made_symbols = Dict.empty(types.uint64, types.int64)  # by hash of the string: one token however it is put together
    steps = List.empty_list(_STEP)
    num_new = 0
    while heap and num_new < most:
        # A heap gives the smallest: counts are negated, and of equal ones the smaller key comes.
        negative, key = heapq.heappop(heap)
        if key < 0:  # a character becomes a token, and its pairs may be merged
            costs[-key - 1] = 0
            steps.append((-key - 1, _NONE, -key - 1, -negative))
            num_new += 1
            _release(-key - 1, waiting, heap, pair_counts)
            continue
        if not _is_due(key, -negative, heap, pair_counts):
            continue
        left, right = key >> _BITS, key & ((1 << _BITS) - 1)
        made_hash = hashes[left] * powers[right] + hashes[right]
        # Not asked again, since neither changes. A new merge for an old piece would change texts that hold nothing new.
        if not _may_join(classes[left], classes[right]) or _is_among(made_hash, old_hashes):
            continue
        if costs[left] > 0 or costs[right] > 0:  # the merge would make a token out of one that does not exist yet
            _wait(left if costs[left] > 0 else right, key, waiting)
            continue
        made = num_old + len(made_symbols)
        if made_hash in made_symbols:  # spelled in another way before: one more merge for the same token
            made = made_symbols[made_hash]
        else:
            made_symbols[made_hash] = made
            hashes[made], powers[made] = made_hash, powers[left] * powers[right]
            classes[made] = max(classes[left], classes[right])  # a space mark (0) takes the class of what follows it
            num_new += 1
        steps.append((left, right, made, -negative))
        _merge(state, around, (offsets, counts), (left, right, made), index, heap)
    return _as_array(steps), state


@njit(cache=True)  # type: ignore[untyped-decorator]
def _first_heap(pair_counts: Any, costs: Array, uses: Array) -> Any:
    """(-tokens saved, key) of every pair, and of every lacking character (key: -symbol - 1)."""
    heap = [(-pair_counts[key], key) for key in pair_counts]
    for symbol in range(len(uses)):
        if costs[symbol] > 0:
            heap.append((-uses[symbol] * costs[symbol], -symbol - 1))
    heapq.heapify(heap)
    return heap


@njit(cache=True)  # type: ignore[untyped-decorator]
def _is_due(key: int, claimed: int, heap: Any, pair_counts: Any) -> bool:
    """Whether a pair still occurs as often as its entry claims; if less often, it is entered anew."""
    # Entries may be old: a count that rises is entered at once (`_merge`), one that falls only when its entry comes up.
    # So none is too low, and the first that is due is the largest.
    count = pair_counts[key]
    if 2 <= count < claimed:
        heapq.heappush(heap, (-count, key))
    return bool(count == claimed and count >= 2)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _is_among(value: Any, ordered: Array) -> bool:
    at = np.searchsorted(ordered, value)
    return bool(at < len(ordered) and ordered[at] == value)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _wait(symbol: int, key: int, waiting: Any) -> None:
    """Put a pair aside until a lacking character of it is a token."""
    if symbol not in waiting:
        waiting[symbol] = List.empty_list(types.int64)
    waiting[symbol].append(key)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _release(symbol: int, waiting: Any, heap: Any, pair_counts: Any) -> None:
    if symbol in waiting:
        for key in waiting[symbol]:
            heapq.heappush(heap, (-pair_counts[key], key))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _may_join(left: int, right: int) -> bool:
    """Classes: 0 one mark of a space, 1 letters, 2 signs, 3 bytes (byte-level pieces), 4 anything else.

    A space mark goes before letters and signs; letters join letters, signs signs, bytes bytes; the rest joins nothing.
    """
    if left == 0:
        return right in (1, 2)
    return left == right and left in (1, 2, 3)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _value(table: Any, key: int, otherwise: int) -> int:
    """``table.get``, which gives numba an optional number."""
    if key in table:
        return int(table[key])
    return otherwise


@njit(cache=True)  # type: ignore[untyped-decorator]
def _links(offsets: Array, num_symbols: int) -> tuple[Array, Array]:
    """Next and previous place in the same word of every place, -1 at its ends."""
    # A list over all words, cut at their ends: removing a symbol moves nothing.
    following, before = np.arange(1, num_symbols + 1), np.arange(-1, num_symbols - 1)
    for word in range(len(offsets) - 1):
        if offsets[word] < offsets[word + 1]:
            before[offsets[word]] = _NONE
            following[offsets[word + 1] - 1] = _NONE
    return following, before


@njit(cache=True)  # type: ignore[untyped-decorator]
def _index_pairs(state: Array, offsets: Array, counts: Array, following: Array) -> Any:
    """How often each pair occurs, and a linked list of its places, newest first."""
    pair_counts = Dict.empty(types.int64, types.int64)
    heads = Dict.empty(types.int64, types.int64)
    links, places = List.empty_list(types.int64), List.empty_list(types.int64)
    for word in range(len(counts)):
        for place in range(offsets[word], offsets[word + 1]):
            if following[place] != _NONE:
                key = (state[place] << _BITS) | state[following[place]]
                pair_counts[key] = _value(pair_counts, key, 0) + counts[word]
                _add_place(key, place, heads, links, places)
    return pair_counts, heads, links, places


@njit(cache=True)  # type: ignore[untyped-decorator]
def _add_place(key: int, place: int, heads: Any, links: Any, places: Any) -> None:
    # A list per pair inside two flat lists: a place costs two numbers and no object. Nothing is ever taken out of it.
    links.append(_value(heads, key, _NONE))
    places.append(place)
    heads[key] = len(places) - 1


@njit(cache=True)  # type: ignore[untyped-decorator]
def _uses(state: Array, offsets: Array, counts: Array, num_symbols: int) -> Array:
    """How often each symbol occurs in all words."""
    uses = np.zeros(num_symbols, dtype=np.int64)
    for word in range(len(counts)):
        for place in range(offsets[word], offsets[word + 1]):
            uses[state[place]] += counts[word]
    return uses


@njit(cache=True)  # type: ignore[untyped-decorator]
def _merge(state: Array, around: Any, words: Any, step: Any, index: Any, heap: Any) -> None:
    """Replace a pair by the symbol it makes wherever it still is, from left to right, and enter what is new."""
    following, before = around
    offsets, counts = words
    left, right, made = step
    pair_counts, heads, links, places = index
    key = (left << _BITS) | right
    changed = Dict.empty(types.int64, types.int64)
    for place in _places_of(key, heads, links, places):
        after = following[place]
        # Merged away since: by this pair (aaa) or another.
        if state[place] != left or after == _NONE or state[after] != right:
            continue
        count = counts[np.searchsorted(offsets, place, side="right") - 1]  # of the word that the place is in
        # Both neighbours' pairs change: (right, beyond) to (made, beyond), (previous, left) to (previous, made).
        previous, beyond = before[place], following[after]
        state[place], state[after] = made, _NONE
        following[place] = beyond
        if beyond != _NONE:
            before[beyond] = place
            _recount((right << _BITS) | state[beyond], (made << _BITS) | state[beyond], count, pair_counts, changed)
            _add_place((made << _BITS) | state[beyond], place, heads, links, places)
        if previous != _NONE:
            _recount((state[previous] << _BITS) | left, (state[previous] << _BITS) | made, count, pair_counts, changed)
            _add_place((state[previous] << _BITS) | made, previous, heads, links, places)
    pair_counts[key] = 0  # exactly, whatever was taken off on the way where a pair overlaps itself
    heads[key] = _NONE
    for touched in sorted(changed):
        if pair_counts[touched] >= 2:
            heapq.heappush(heap, (-pair_counts[touched], touched))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _recount(gone: int, come: int, count: int, pair_counts: Any, changed: Any) -> None:
    """One pair gives way to another in a word that occurs ``count`` times."""
    pair_counts[gone] -= count
    pair_counts[come] = _value(pair_counts, come, 0) + count
    changed[come] = 1


@njit(cache=True)  # type: ignore[untyped-decorator]
def _places_of(key: int, heads: Any, links: Any, places: Any) -> Array:
    """Where a pair was ever seen, ascending: it may be gone from there."""
    found = List.empty_list(types.int64)
    at = _value(heads, key, _NONE)
    while at != _NONE:
        found.append(places[at])
        at = links[at]
    # Ascending: a run (aaaa) is merged from its left end, as the encoder does. And each place once.
    return np.unique(_as_places(found))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _as_places(found: Any) -> Array:
    array = np.empty(len(found), dtype=np.int64)
    for at in range(len(found)):
        array[at] = found[at]
    return array


@njit(cache=True)  # type: ignore[untyped-decorator]
def _as_array(steps: Any) -> Array:
    array = np.empty((len(steps), 4), dtype=np.int64)
    for at in range(len(steps)):
        for column in range(4):
            array[at, column] = steps[at][column]
    return array
