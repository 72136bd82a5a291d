"""Clusters of near-duplicates in the whole corpus: the pairs that were found, joined by union-find."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepen.curate.duplicates.pairs import blocks, root
from deepen.curate.duplicates.shingles import similar
from deepen.curate.passes.corpus import Corpus, Positions
from deepen.engine.compiled import njit

Labels = npt.NDArray[np.int64]


def find_clusters(corpus: Corpus, similarity: float) -> Labels:
    """For every document the number of the first document of its cluster (its own where it stands alone).

    Two documents are in one cluster when a chain of pairs of at least ``similarity`` leads from one to the other.
    """
    parents = np.arange(corpus.num_documents, dtype=np.int64)
    for path in corpus.pair_files:
        pairs = np.load(path)
        strong = pairs[pairs["similarity"] >= similarity]
        # As arrays by themselves, not every third number.
        _join_pairs(strong["first"].copy(), strong["second"].copy(), parents)
    return np.asarray(_roots(parents))


@njit(cache=True)
def _join_pairs(first, second, parents):  # type: ignore[no-untyped-def]
    """Make the two clusters of each pair one, named after its first document."""
    for number in range(len(first)):
        one, other = root(parents, first[number]), root(parents, second[number])
        # The lower number is the root: a cluster is named after its first document, in whatever order pairs come.
        parents[max(one, other)] = min(one, other)


@njit(cache=True)
def _roots(parents):  # type: ignore[no-untyped-def]
    for document in range(len(parents)):
        parents[document] = root(parents, document)
    return parents


def similarities(corpus: Corpus, first: Positions, second: Positions) -> npt.NDArray[np.float64]:
    """Exact Jaccard similarity of each pair of documents (``first[i]``, ``second[i]``)."""
    found = [np.empty(0)]
    for begin, end in blocks(corpus.stored, first):
        one, other = corpus.stored.sets(first[begin:end]), corpus.stored.sets(second[begin:end])
        found.append(_similarities(one.starts, one.shingles, other.starts, other.shingles))
    return np.concatenate(found)


@njit(cache=True)
def _similarities(starts, shingles, other_starts, other_shingles):  # type: ignore[no-untyped-def]
    result = np.empty(len(starts) - 1, dtype=np.float64)
    for pair in range(len(result)):
        own = shingles[starts[pair] : starts[pair + 1]]
        result[pair] = similar(own, other_shingles[other_starts[pair] : other_starts[pair + 1]], 0.0)
    return result
