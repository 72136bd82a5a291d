"""One copy of each text that occurs in several wordings."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deepen.curate.passes.corpus import Corpus, Positions
from deepen.curate.step import CorpusStep, Drops


class NearDuplicates(CorpusStep):
    """Drop documents that nearly repeat one that is kept (``near_duplicate``), within and across sources.

    Of each cluster the best document is kept; another is dropped only if its own similarity to a kept one, computed
    exactly, reaches ``similarity``: members of a cluster that are alike only through others stay."""

    use: Literal["near_duplicates"] = "near_duplicates"
    similarity: Annotated[float, Field(ge=0.7, le=1.0)] = 0.8
    """Jaccard similarity of the sets of 5-word shingles (characters in scripts without spaces). 0.8 as Lee et al. 2022.
    Pairs of similarity s are found with probability 1 - (1 - s^8)^16: 0.95 at 0.8, 0.998 at 0.85, but 0.61 at 0.7."""
    keep: Literal["source_priority", "longest", "first"] = "source_priority"
    """Which document of a cluster is kept. ``source_priority``: of the earliest source in the recipe the longest, so
    that a text is never lost to a copy in the replay; ``longest``: the longest of all; ``first``: the first in recipe
    order. Ties go to the first."""
    across_sources: bool = True
    """Whether a document may be dropped for one of another source."""

    def apply(self, corpus: Corpus, alive: npt.NDArray[np.bool_]) -> Drops:
        """The copies, each with its similarity to the document that is kept instead."""
        from deepen.curate.duplicates.clusters import find_clusters
        from deepen.curate.duplicates.keep_best import keep_best

        labels = find_clusters(corpus, self.similarity)
        documents = np.flatnonzero(alive)
        clusters = labels[documents]
        if not self.across_sources:
            # One number per cluster and source.
            clusters = clusters * (1 + corpus.source.max(initial=0)) + corpus.source[documents]
        # By cluster, then best first: `lexsort` takes the last key first.
        order = np.lexsort((*self._ranks(corpus, documents), clusters))
        copies, kept, similarities = keep_best(corpus, documents[order], clusters[order], self.similarity)
        in_order = np.argsort(copies)
        return Drops("near_duplicate", copies[in_order], similarities[in_order], kept[in_order])

    def _ranks(self, corpus: Corpus, documents: Positions) -> tuple[Positions, ...]:
        """Sort keys that put the best document first, the most important key last."""
        shortness = -corpus.index["num_bytes"][documents]
        if self.keep == "first":
            return (documents,)
        if self.keep == "longest":
            return (documents, shortness)
        return (documents, shortness, corpus.source[documents])
