"""Clusters of near-duplicates in the whole corpus: candidates by MinHash band, verified exactly, joined by union-find.

One band is in memory at a time. Equal texts are joined first by their hash, so that the bands only see one of each.
Inside a group of equal band keys a document is compared with the latest unlike ones of the group, not with all, so a
group of a hundred thousand pages of one template costs no more than a few million comparisons.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from deepen.curate.corpus import Corpus
from deepen.curate.shingles import NUM_BANDS, jaccard, similar
from deepen.progress import track

SIMILARITY = 0.8
"""Jaccard similarity of 5-word shingles from which two documents count as the same text (Lee et al. 2022 use 0.8)."""
_NUM_LEADERS = 64

Labels = npt.NDArray[np.int64]


def find_clusters(corpus: Corpus) -> Labels:
    """For every document the number of the first document of its cluster (its own where it stands alone)."""
    parents = np.arange(corpus.num_documents, dtype=np.int64)
    order = corpus.by_content(parents)
    repeats = corpus.repeats(order)
    _join_runs(order, repeats, parents)
    firsts = np.sort(order[~repeats])
    with track("curate: near-duplicates", NUM_BANDS, "bands") as tracker:
        for number in range(NUM_BANDS):
            keys = corpus.band(number)[firsts]
            by_key = np.argsort(keys, kind="stable")
            _join_band(keys[by_key], firsts[by_key], corpus.shingles, corpus.starts, parents, SIMILARITY)
            tracker.advance(1)
    return np.asarray(_roots(parents))


@njit(cache=True)
def _root(parents, document):  # type: ignore[no-untyped-def]
    while parents[document] != document:
        parents[document] = parents[parents[document]]
        document = parents[document]
    return document


@njit(cache=True)
def _join(parents, first, second):  # type: ignore[no-untyped-def]
    """Make two clusters one, named after its first document."""
    one, other = _root(parents, first), _root(parents, second)
    parents[max(one, other)] = min(one, other)


@njit(cache=True)
def _join_runs(order, repeats, parents):  # type: ignore[no-untyped-def]
    for number in range(1, len(order)):
        if repeats[number]:
            _join(parents, order[number - 1], order[number])


@njit(cache=True)
def _join_band(keys, documents, shingles, starts, parents, threshold):  # type: ignore[no-untyped-def]
    """Join what is similar among documents with equal keys (given sorted by key)."""
    leaders = np.empty(_NUM_LEADERS, dtype=np.int64)
    num_leaders = 0
    for number in range(len(keys)):
        if number == 0 or keys[number] != keys[number - 1]:
            num_leaders = 0
        document = documents[number]
        if not _joins_a_leader(
            document, leaders[: min(num_leaders, _NUM_LEADERS)], shingles, starts, parents, threshold
        ):
            leaders[num_leaders % _NUM_LEADERS] = document
            num_leaders += 1


@njit(cache=True)
def _joins_a_leader(document, leaders, shingles, starts, parents, threshold):  # type: ignore[no-untyped-def]
    own_root = _root(parents, document)
    for leader in leaders:
        if _root(parents, leader) == own_root:
            return True
    own = shingles[starts[document] : starts[document + 1]]
    for leader in leaders:
        if similar(own, shingles[starts[leader] : starts[leader + 1]], threshold) > 0:
            _join(parents, document, leader)
            return True
    return False


@njit(cache=True)
def _roots(parents):  # type: ignore[no-untyped-def]
    for document in range(len(parents)):
        parents[document] = _root(parents, document)
    return parents


def similarities(corpus: Corpus, first: Labels, second: Labels) -> npt.NDArray[np.float64]:
    """Exact Jaccard similarity of each pair of documents (``first[i]``, ``second[i]``)."""
    return np.asarray(_similarities(first, second, corpus.shingles, corpus.starts))


@njit(cache=True)
def _similarities(first, second, shingles, starts):  # type: ignore[no-untyped-def]
    result = np.empty(len(first), dtype=np.float64)
    for pair in range(len(first)):
        one, other = first[pair], second[pair]
        result[pair] = jaccard(shingles[starts[one] : starts[one + 1]], shingles[starts[other] : starts[other + 1]])
    return result
