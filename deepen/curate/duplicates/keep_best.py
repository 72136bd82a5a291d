"""Which documents of a cluster stay: going from the best to the worst, each that is unlike all kept so far."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepen.curate.duplicates.pairs import blocks
from deepen.curate.duplicates.shingles import similar
from deepen.curate.passes.corpus import Corpus, Positions
from deepen.engine.compiled import njit

_NUM_COMPARED = 512
"""A document is compared with so many of its cluster's kept ones, the latest. More are kept only where pairs chain
thousands of unlike documents together, as pages of one template with other contents."""


def keep_best(
    corpus: Corpus, documents: Positions, clusters: Positions, similarity: float
) -> tuple[Positions, Positions, npt.NDArray[np.float64]]:
    """Of documents sorted by cluster, best first: those to drop, the kept one most similar to each, how similar."""
    shared = np.zeros(len(clusters), dtype=np.bool_)
    # Documents alone in their cluster, which most are, are left out: their sets need not be read.
    shared[1:] = clusters[1:] == clusters[:-1]
    shared[:-1] |= shared[1:]
    documents, clusters = documents[shared], clusters[shared]
    copies, kept, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    carried = np.empty(0, np.int64)
    for begin, end in blocks(corpus.stored, documents):
        # A cluster may go on from one block to the next; only what was kept of it comes along, and only if it does.
        if len(carried) and clusters[begin] != clusters[begin - 1]:
            carried = carried[:0]
        chosen = np.concatenate([carried, documents[begin:end]])
        own_clusters = np.concatenate([np.full(len(carried), clusters[begin]), clusters[begin:end]])
        sets = corpus.stored.sets(chosen)
        kept_of, value, ring = _keep(own_clusters, len(carried), sets.starts, sets.shingles, similarity)
        dropped = np.flatnonzero(kept_of >= 0)
        copies.append(chosen[dropped])
        kept.append(chosen[kept_of[dropped]])
        values.append(value[dropped])
        carried = chosen[ring]
    return np.concatenate(copies), np.concatenate(kept), np.concatenate(values)


@njit(cache=True)
def _keep(clusters, num_carried, starts, shingles, threshold):  # type: ignore[no-untyped-def]
    """For each document the kept one it is most like, or -1, with the similarity; the first ones are kept already."""
    kept_of = np.full(len(clusters), -1, dtype=np.int64)
    values = np.zeros(len(clusters), dtype=np.float64)
    ring = np.empty(_NUM_COMPARED, dtype=np.int64)
    num_kept = 0
    for document in range(len(clusters)):
        if document == 0 or clusters[document] != clusters[document - 1]:
            num_kept = 0
        # Carried ones were kept already: they are not judged again, and go into the ring below.
        if document >= num_carried:
            own = shingles[starts[document] : starts[document + 1]]
            for place in range(min(num_kept, _NUM_COMPARED)):
                other = ring[place]
                similarity = similar(own, shingles[starts[other] : starts[other + 1]], threshold)
                if similarity > values[document]:  # of equals the first, since the best come first
                    values[document], kept_of[document] = similarity, other
        if kept_of[document] < 0:
            ring[num_kept % _NUM_COMPARED] = document  # the oldest makes room
            num_kept += 1
    return kept_of, values, ring[: min(num_kept, _NUM_COMPARED)].copy()
