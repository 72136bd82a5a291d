"""The exact search for near-duplicates of held-out documents among those that will be trained on.

Clusters come from MinHash, which misses a pair of similarity 0.8 one time in twenty. For the few held-out documents we
can afford certainty: two sets of similarity >= t share at least one element of their prefixes, where the prefix of a
sorted set of size m is its first m - ceil(t m) + 1 elements (prefix filtering, Chaudhuri et al. 2006). Shingles are
stored sorted by hash, so only the first fifth of each document's is looked at.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from deepen.curate.clusters import SIMILARITY
from deepen.curate.corpus import Corpus
from deepen.curate.shingles import similar


def find_leaks(
    corpus: Corpus, held_out: npt.NDArray[np.int64], trained: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """For each of ``trained`` the held-out document most similar to it, or -1 where none reaches ``SIMILARITY``."""
    if len(held_out) == 0:
        return np.full(len(trained), -1, dtype=np.int64)
    prefixes = [_prefix(corpus.shingles[corpus.starts[item] : corpus.starts[item + 1]]) for item in held_out]
    owners = np.repeat(np.arange(len(held_out)), [len(prefix) for prefix in prefixes])
    keys = np.concatenate(prefixes)
    order = np.argsort(keys, kind="stable")
    found = _most_similar(keys[order], owners[order], held_out, trained, corpus.shingles, corpus.starts, SIMILARITY)
    return np.asarray(found)


def _prefix(shingles: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return shingles[: prefix_size(len(shingles), SIMILARITY)]


@njit(cache=True)
def prefix_size(size, threshold):  # type: ignore[no-untyped-def]
    """How many elements of a sorted set of ``size`` must be looked at (the small number guards against rounding)."""
    return size - int(math.ceil(threshold * size - 1e-9)) + 1


@njit(cache=True)
def _most_similar(keys, owners, held_out, trained, shingles, starts, threshold):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    found = np.full(len(trained), -1, dtype=np.int64)
    compared_with = np.full(len(held_out), -1, dtype=np.int64)
    for number in range(len(trained)):
        own = shingles[starts[trained[number]] : starts[trained[number] + 1]]
        best = 0.0
        for shingle in own[: prefix_size(len(own), threshold)]:
            place = np.searchsorted(keys, shingle)
            while place < len(keys) and keys[place] == shingle:
                owner = owners[place]
                place += 1
                if compared_with[owner] == number:
                    continue
                compared_with[owner] = number
                other = held_out[owner]
                similarity = similar(own, shingles[starts[other] : starts[other + 1]], threshold)
                if similarity > best:
                    best, found[number] = similarity, other
    return found
