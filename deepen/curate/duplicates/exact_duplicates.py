"""One copy of each text."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from deepen.curate.passes.corpus import Corpus
from deepen.curate.step import CorpusStep, Drops


class ExactDuplicates(CorpusStep):
    """Drop all but the first document of equal text (``exact_duplicate``), within and across sources; the first is that
    of the earliest source in the recipe."""

    use: Literal["exact_duplicates"] = "exact_duplicates"

    def apply(self, corpus: Corpus, alive: npt.NDArray[np.bool_]) -> Drops:
        """The later copies; the value is the similarity, 1."""
        order = corpus.by_content(np.flatnonzero(alive))
        repeats = corpus.repeats(order)
        # Equal texts are neighbours, and only the first of them is no repeat: the last such place begins the group.
        first_of_each = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(order))))
        copies, kept = order[repeats], order[first_of_each[repeats]]
        in_order = np.argsort(copies)
        return Drops("exact_duplicate", copies[in_order], np.ones(len(copies)), kept[in_order])
