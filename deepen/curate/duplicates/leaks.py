"""The exact search for near-duplicates of held-out documents among those that will be trained on.

Clusters come from MinHash, which misses a pair of similarity 0.8 one time in twenty. For the few held-out documents we
can afford certainty: two sets of similarity >= t share at least one element of their prefixes, where the prefix of a
sorted set of size m is its first m - ceil(t m) + 1 elements (prefix filtering, Chaudhuri et al. 2006). Shingles are
stored sorted by hash, so only the first fifth of each document's is looked at. In memory are the held-out sets, which
`cap` bounds, and one part of the corpus.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from deepen.curate.duplicates.pairs import SIMILARITY
from deepen.curate.duplicates.shingles import similar
from deepen.curate.passes.corpus import Corpus, Positions
from deepen.engine.compiled import njit
from deepen.progress import track


def find_leaks(corpus: Corpus, held_out: Positions, trained: Positions) -> Positions:
    """For each of ``trained`` (ascending) the held-out document most similar to it, or -1 if none reaches
    ``SIMILARITY``."""
    found = np.full(len(trained), -1, dtype=np.int64)
    if len(held_out) == 0:
        return found
    sets = corpus.stored.sets(held_out)
    prefixes = [_prefix(own) for own in np.split(sets.shingles, sets.starts[1:-1])]
    owners = np.repeat(np.arange(len(held_out)), [len(prefix) for prefix in prefixes])
    keys = np.concatenate(prefixes)
    # One sorted list of (shingle, who has it in its prefix): for a shingle all owners stand together.
    order = np.argsort(keys, kind="stable")
    firsts = corpus.stored.first_documents
    with track("curate: copies of held-out documents", len(trained), "documents") as tracker:
        for number in range(len(corpus.stored.parts)):
            begin, end = np.searchsorted(trained, firsts[number : number + 2])
            if begin == end:
                continue
            own = corpus.stored.part_sets(number)
            best = _most_similar(
                keys[order], owners[order], sets.starts, sets.shingles,
                trained[begin:end] - firsts[number], own.starts, own.shingles, SIMILARITY,
            )  # fmt: skip
            found[begin:end] = np.where(best < 0, -1, held_out[best])
            tracker.advance(end - begin)
    return found


def _prefix(shingles: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return shingles[: prefix_size(len(shingles), SIMILARITY)]


@njit(cache=True)
def prefix_size(size, threshold):  # type: ignore[no-untyped-def]
    """How many elements of a sorted set of ``size`` must be looked at (the small number guards against rounding)."""
    return size - int(math.ceil(threshold * size - 1e-9)) + 1


@njit(cache=True)
def _most_similar(keys, owners, held_starts, held_shingles, rows, starts, shingles, threshold):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    found = np.full(len(rows), -1, dtype=np.int64)
    # For each held-out document the last row it was compared with: nothing has to be cleared from row to row.
    compared_with = np.full(len(held_starts) - 1, -1, dtype=np.int64)
    for number in range(len(rows)):
        own = shingles[starts[rows[number]] : starts[rows[number] + 1]]
        best = 0.0
        # Two sets of similarity t share at least t m elements, m the size of either. If none of them were in its
        # prefix, all would be among the last ceil(t m) - 1: too few. So both prefixes hold the smallest shared one.
        for shingle in own[: prefix_size(len(own), threshold)]:
            place = np.searchsorted(keys, shingle)
            while place < len(keys) and keys[place] == shingle:
                owner = owners[place]
                place += 1
                if compared_with[owner] == number:
                    continue
                compared_with[owner] = number
                similarity = similar(own, held_shingles[held_starts[owner] : held_starts[owner + 1]], threshold)
                if similarity > best:
                    best, found[number] = similarity, owner
    return found
