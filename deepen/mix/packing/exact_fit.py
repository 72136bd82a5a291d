"""Filling rows to the last position where best-fit leaves gaps: corpora of many documents of alike lengths.

Rows are filled one after another. The longest piece left goes first; then one piece, or two, that fill the row exactly
are looked for; where there are none, a piece of the most frequent length that fits goes in, which keeps lengths varied
to the end. A row is closed when nothing left fits, so no two rows would fit in one. The work is bounded: where lengths
do not pair up, the search gives up, and best-fit's rows stand.
"""

from __future__ import annotations

import numpy as np

from deepen.engine.compiled import njit
from deepen.formats.files.arrays import Array

_MOST_LOOKS = 4096
"""Looks at a length per piece, on average, before the search gives up: a few microseconds per piece."""


def fill_exactly(sizes: Array, sequence_length: int) -> tuple[Array, int] | None:
    """The row of every piece (sizes 1 to ``sequence_length``) and the number of rows; None when it gave up."""
    placed = np.full(len(sizes), -1, np.int64)
    num_rows = _fill(sizes, sequence_length, placed, _MOST_LOOKS * len(sizes))
    return (placed, int(num_rows)) if num_rows >= 0 else None


@njit(cache=True)  # type: ignore[untyped-decorator]
def _fill(sizes: Array, sequence_length: int, placed: Array, most_looks: int) -> int:
    """Put the row of every piece into ``placed``; returns the number of rows, or -1 when it took too many looks."""
    counts = np.zeros(sequence_length + 1, np.int64)
    for size in sizes:
        counts[size] += 1
    following, pieces = _by_size(sizes, counts)
    # `largest` only falls: nothing is put back.
    num_rows, num_looks, num_left, largest = 0, 0, len(sizes), sequence_length
    while num_left > 0:
        while counts[largest] == 0:
            largest -= 1
        # The longest goes first, since it has the fewest partners: put off, it would end in a row of its own.
        room, size = sequence_length, largest
        while size > 0:
            # Equal sizes are interchangeable: the first of the corpus goes first.
            placed[pieces[following[size]]] = num_rows
            following[size] += 1
            counts[size] -= 1
            num_left -= 1
            room -= size
            size, looks = _next_size(counts, room, min(room, largest))
            num_looks += looks
        if num_looks > most_looks:  # asked once a row, so that a row is never left half filled
            return -1
        num_rows += 1
    return num_rows


@njit(cache=True)  # type: ignore[untyped-decorator]
def _by_size(sizes: Array, counts: Array) -> tuple[Array, Array]:
    """Piece numbers by size, equal sizes in corpus order, and where each size begins among them."""
    following = np.zeros(len(counts), np.int64)
    following[1:] = np.cumsum(counts)[:-1]
    at = following.copy()
    pieces = np.empty(len(sizes), np.int64)
    for piece in range(len(sizes)):
        pieces[at[sizes[piece]]] = piece
        at[sizes[piece]] += 1
    return following, pieces


@njit(cache=True)  # type: ignore[untyped-decorator]
def _next_size(counts: Array, room: int, longest: int) -> tuple[int, int]:
    """The size of the next piece for a row with so much room (0: none fits), and how many sizes were looked at."""
    if room == 0 or counts[room] > 0:  # full, or filled by one piece
        return room, 1
    looks = 1
    # Two pieces that fill it, the longer one from the top; below half of the room the pairs would come again. The
    # shorter one is found by the next call, as the one piece that fills what is left.
    for size in range(min(room - 1, longest), (room + 1) // 2 - 1, -1):
        looks += 1
        other = room - size
        if counts[size] > 0 and counts[other] > (1 if other == size else 0):  # two of one size take two pieces
            return size, looks
    best, most = 0, 0
    for size in range(longest, 0, -1):
        if counts[size] > most:  # of equally frequent ones the longest
            best, most = size, counts[size]
    return best, looks + longest
