"""Packing: which pieces of which documents share a row of T tokens.

``best_fit`` (Ding et al. 2024, arXiv:2404.10830) cuts only documents longer than T: into full rows and a rest. Rests
and whole documents go, longest first, each into the fullest row that still has room; a tree over the room left finds it
in O(log T). Where rows then have gaps, ``exact_fit.py`` looks for a better filling. ``concatenate`` splices all
documents and cuts at every T-th token. Neither drops a token.
Memory: about 80 bytes per piece while packing (1M documents: 0.08 GB), 12 to 24 bytes per piece in the result.
"""

from __future__ import annotations

import numpy as np

from deepen.engine.compiled import njit
from deepen.formats.files.arrays import Array
from deepen.mix.packing.exact_fit import fill_exactly


def pack(lengths: Array, sequence_length: int, packing: str) -> tuple[Array, Array]:
    """Pack documents of ``lengths`` tokens into rows of ``sequence_length`` by the method named ``packing``.

    Returns ``rows`` int64[num_rows + 1] and ``segments`` [num_segments, 3] (sequence, start, length): row r is the
    segments from ``rows[r]`` up to ``rows[r + 1]``. Rows come in the order in which their first piece stands in the
    corpus, pieces inside a row likewise, so neither is sorted by length.
    """
    method = {"best_fit": best_fit, "concatenate": concatenate, "one_per_row": one_per_row}[packing]
    rows, segments = method(np.ascontiguousarray(lengths, dtype=np.int32), sequence_length)
    small = len(lengths) < 2**31 and len(segments) < 2**31  # half the file, for all but the largest corpora
    return rows, segments.astype(np.int32) if small else segments


def one_per_row(lengths: Array, sequence_length: int) -> tuple[Array, Array]:
    """A row for each document, for rows that were made elsewhere; none is longer than ``sequence_length``."""
    assert lengths.max(initial=0) <= sequence_length, f"a document of {lengths.max()} in a row of {sequence_length}"
    number = np.arange(len(lengths) + 1, dtype=np.int64)
    return number, np.stack([number[:-1], np.zeros(len(lengths), np.int64), lengths.astype(np.int64)], axis=1)


def concatenate(lengths: Array, sequence_length: int) -> tuple[Array, Array]:
    """The classic splice: all tokens in corpus order, a row every ``sequence_length`` tokens."""
    # A pass that only counts, so that arrays have their size.
    num_segments, num_rows = _count_splices(lengths, sequence_length)
    return _splice(lengths, sequence_length, num_segments, num_rows)  # type: ignore[no-any-return]


def best_fit(lengths: Array, sequence_length: int) -> tuple[Array, Array]:
    """Best-fit decreasing over whole documents and the rests of those longer than ``sequence_length``.

    Where that needs more rows than the tokens alone would, ``fill_exactly`` is tried, and whichever needs fewer stands.
    """
    pieces = _cut(lengths, sequence_length, _count_pieces(lengths, sequence_length))
    placed, num_rows = _place(pieces[:, 2], sequence_length)
    if num_rows > -(-int(lengths.sum(dtype=np.int64)) // sequence_length):  # no packing has fewer rows than this
        filled = fill_exactly(pieces[:, 2], sequence_length)
        if filled is not None and filled[1] < num_rows:
            placed, num_rows = filled
    return _collect(pieces, placed, num_rows)  # type: ignore[no-any-return]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _count_splices(lengths: Array, sequence_length: int) -> tuple[int, int]:
    """Numbers of segments and rows of the splice."""
    num_segments, room, num_rows = 0, 0, 0
    for length in lengths:
        left = int(length)
        while left > 0:
            if room == 0:
                room, num_rows = sequence_length, num_rows + 1
            taken = min(room, left)
            left, room, num_segments = left - taken, room - taken, num_segments + 1
    return num_segments, num_rows


@njit(cache=True)  # type: ignore[untyped-decorator]
def _splice(lengths: Array, sequence_length: int, num_segments: int, num_rows: int) -> tuple[Array, Array]:
    rows = np.zeros(num_rows + 1, np.int64)
    segments = np.empty((num_segments, 3), np.int64)
    at, row, room = 0, 0, 0
    for sequence in range(len(lengths)):
        start = 0
        length = int(lengths[sequence])
        while start < length:
            if room == 0:
                room, row = sequence_length, row + 1
            taken = min(room, length - start)
            segments[at, 0], segments[at, 1], segments[at, 2] = sequence, start, taken
            start, room, at = start + taken, room - taken, at + 1
            rows[row] = at  # written over until the row is full: then it is where the next one begins
    return rows, segments


@njit(cache=True)  # type: ignore[untyped-decorator]
def _count_pieces(lengths: Array, sequence_length: int) -> int:
    num_pieces = 0
    for length in lengths:
        num_pieces += (length + sequence_length - 1) // sequence_length
    return num_pieces


@njit(cache=True)  # type: ignore[untyped-decorator]
def _cut(lengths: Array, sequence_length: int, num_pieces: int) -> Array:
    """Documents as pieces of at most ``sequence_length`` tokens: (sequence, start, length) in corpus order."""
    pieces = np.empty((num_pieces, 3), np.int64)
    at = 0
    for sequence in range(len(lengths)):
        for start in range(0, lengths[sequence], sequence_length):
            pieces[at, 0], pieces[at, 1] = sequence, start
            pieces[at, 2] = min(sequence_length, lengths[sequence] - start)
            at += 1
    return pieces


@njit(cache=True)  # type: ignore[untyped-decorator]
def _longest_first(sizes: Array, sequence_length: int) -> Array:
    """Piece numbers by falling size, equal sizes in corpus order (a counting sort)."""
    first = np.zeros(sequence_length + 2, np.int64)
    for size in sizes:
        # Sizes are whole numbers up to T, so n pieces are sorted in n + T steps; slot 0 is for those of T tokens.
        first[sequence_length - size + 1] += 1
    first = np.cumsum(first)
    order = np.empty(len(sizes), np.int64)
    for piece in range(len(sizes)):
        slot = sequence_length - sizes[piece]
        order[first[slot]] = piece
        first[slot] += 1
    return order


@njit(cache=True)  # type: ignore[untyped-decorator]
def _place(sizes: Array, sequence_length: int) -> tuple[Array, int]:
    """Best-fit decreasing: the bin of every piece, and the number of bins.

    Bins with equal room are interchangeable and form a stack (``top``, ``below``). ``tree`` is a binary tree over room
    0..T that marks which stacks are filled, so that the least sufficient room is found by one walk up and down.
    """
    num_leaves = 1
    while num_leaves < sequence_length + 1:
        num_leaves *= 2
    # Heap layout: node k has the children 2k and 2k + 1, the leaf of room r is `num_leaves + r`. The stacks are linked
    # lists: `top` has the newest bin of each room, `below[bin]` the one under it, -1 ends them.
    tree = np.zeros(2 * num_leaves, np.bool_)
    top = np.full(sequence_length + 1, -1, np.int64)
    below = np.empty(len(sizes), np.int64)
    placed = np.empty(len(sizes), np.int64)
    num_bins = 0
    for piece in _longest_first(sizes, sequence_length):
        size = sizes[piece]
        room = _least_room(tree, num_leaves, size)
        if room < 0:
            # A new bin enters no stack while it is empty.
            room, chosen, num_bins = sequence_length, num_bins, num_bins + 1
        else:
            chosen = top[room]
            top[room] = below[chosen]
            if top[room] < 0:
                _mark(tree, num_leaves + room, False)
        placed[piece] = chosen
        left = room - size
        if left > 0:  # a full bin is in no stack: nothing fits in it
            if top[left] < 0:  # a mark changes only when a stack begins or ends to be empty
                _mark(tree, num_leaves + left, True)
            below[chosen] = top[left]
            top[left] = chosen
    return placed, num_bins


@njit(cache=True)  # type: ignore[untyped-decorator]
def _mark(tree: Array, leaf: int, filled: bool) -> None:
    """Set a leaf and repair the marks above it."""
    tree[leaf] = filled
    node = leaf // 2
    while node >= 1:
        tree[node] = tree[2 * node] or tree[2 * node + 1]
        node //= 2


@njit(cache=True)  # type: ignore[untyped-decorator]
def _least_room(tree: Array, num_leaves: int, size: int) -> int:
    """The smallest room of at least ``size`` that some bin has, or -1."""
    node = num_leaves + size
    if tree[node]:  # exactly this room: no gap at all
        return size
    # Up, until there is something to the right, where all rooms are larger than those below this node; then down it to
    # the left, always to the leftmost mark.
    while node > 1 and not (node % 2 == 0 and tree[node + 1]):
        node //= 2
    if node <= 1:
        return -1
    node += 1
    while node < num_leaves:
        node = 2 * node if tree[2 * node] else 2 * node + 1
    return node - num_leaves


@njit(cache=True)  # type: ignore[untyped-decorator]
def _collect(pieces: Array, placed: Array, num_bins: int) -> tuple[Array, Array]:
    """Pieces gathered by bin, bins numbered by the corpus position of their first piece."""
    number = np.full(num_bins, -1, np.int64)
    rows = np.zeros(num_bins + 1, np.int64)
    num_seen = 0
    for piece in range(len(placed)):
        if number[placed[piece]] < 0:
            number[placed[piece]] = num_seen
            num_seen += 1
        rows[number[placed[piece]] + 1] += 1  # counted one place on, so that the sums are where rows begin
    rows = np.cumsum(rows)
    following = rows[:-1].copy()
    segments = np.empty((len(placed), 3), np.int64)
    for piece in range(len(placed)):
        row = number[placed[piece]]
        segments[following[row]] = pieces[piece]
        following[row] += 1
    return rows, segments
