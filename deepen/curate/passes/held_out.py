"""Choosing the held-out documents: by smallest content hash, whole clusters of near-duplicates at a time.

A choice by content hash is blind to order and to everything else in the corpus, and adding documents later moves only
few of them. One document of a cluster is scored; the others, of whatever source, leave training, for a copy that is
trained on would make the score worthless.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepen.curate.config import HeldOutConfig
from deepen.curate.duplicates.clusters import Labels
from deepen.curate.duplicates.leaks import find_leaks
from deepen.curate.passes.corpus import Corpus
from deepen.progress import say
from deepen.settings import BYTES_PER_TOKEN

_LARGEST_SHARE = 0.1
"""No source loses more than this share of its documents, so that ``at_least`` cannot eat a small one."""


@dataclass(frozen=True)
class SourcePlan:
    """One source as the split sees it; ``frozen``: content hashes that an earlier run held out of it, if it had it."""

    name: str
    role: str
    frozen: Collection[tuple[int, int]] | None = None


@dataclass(frozen=True)
class Split:
    """For every document [n]: is it held out, and which held-out document is it a copy of (-1: of none)."""

    held_out: npt.NDArray[np.bool_]
    copy_of: npt.NDArray[np.int64]
    watched: npt.NDArray[np.bool_]
    """Documents of watch sources, which are not trained in any case."""


def split(corpus: Corpus, labels: Labels, sources: Sequence[SourcePlan], config: HeldOutConfig) -> Split:
    """Choose what is held out, source by source in the recipe's order, then find every copy that is left."""
    watched = np.isin(corpus.source, [number for number, source in enumerate(sources) if source.role == "watch"])
    choice = _Choice(corpus, labels, watched, len(sources))
    for number, source in enumerate(sources):
        if source.frozen is not None:
            choice.take_frozen(number, source)
        else:
            choice.take_by_hash(number, source, config)
    trained = np.flatnonzero(~watched & (choice.copy_of < 0) & ~choice.held_out)
    leaks = find_leaks(corpus, np.flatnonzero(choice.held_out), trained)
    # Chosen first, searched afterwards: clusters of MinHash miss some copies, and no copy may be trained on.
    choice.copy_of[trained] = leaks
    return Split(choice.held_out, choice.copy_of, watched)


class _Choice:
    """The split while it is made."""

    def __init__(self, corpus: Corpus, labels: Labels, watched: npt.NDArray[np.bool_], num_sources: int) -> None:
        self.corpus, self.labels, self.watched = corpus, labels, watched
        self.held_out = np.zeros(corpus.num_documents, dtype=np.bool_)
        self.copy_of = np.full(corpus.num_documents, -1, dtype=np.int64)
        self._by_label = np.argsort(labels, kind="stable")
        self._sorted_labels = labels[self._by_label]
        self._num_sources = num_sources
        self._num_removed = np.zeros(self._num_sources, dtype=np.int64)
        num_documents = np.bincount(corpus.source, minlength=self._num_sources)
        self._most_removed = (num_documents * _LARGEST_SHARE).astype(np.int64)

    def take_by_hash(self, number: int, source: SourcePlan, config: HeldOutConfig) -> None:
        """Hold out the source's documents of smallest content hash, up to share, ``at_least`` and cap."""
        documents = np.flatnonzero(self.corpus.source == number)
        target, cap_bytes = len(documents), config.cap * BYTES_PER_TOKEN
        if source.role != "watch":
            target = max(math.ceil(config.share * len(documents)), config.at_least)
            target = min(target, int(self._most_removed[number]))
        num_taken, num_bytes = 0, 0
        for document in self.corpus.by_content(documents):
            size = int(self.corpus.index["num_bytes"][document])
            # One beyond the whole cap would end the choice at once.
            if num_taken >= target or not self._is_free(document) or size > cap_bytes:
                continue
            if num_bytes + size > cap_bytes:
                # Not `continue`: filling what is left of the cap with small ones would favour short documents.
                break
            if source.role == "watch" or self._may_go(document):
                self._take(document)
                num_taken, num_bytes = num_taken + 1, num_bytes + size
        if num_taken == 0 and len(documents):
            say(f"curate: no document of source `{source.name}` is held out (it has {len(documents)}); it has no score")

    def take_frozen(self, number: int, source: SourcePlan) -> None:
        """Hold out the documents that the earlier run held out, as far as they are still there."""
        frozen = source.frozen or ()
        num_taken = 0
        documents = np.flatnonzero(self.corpus.source == number)
        index = self.corpus.index[documents]
        for document, high, low in zip(documents, index["hash_high"].tolist(), index["hash_low"].tolist(), strict=True):
            if (high, low) in frozen and self._is_free(document):
                self._take(document)
                num_taken += 1
        if num_taken < len(frozen):
            missing = len(frozen) - num_taken
            say(f"curate: {missing} of {len(frozen)} documents held out of `{source.name}` before are there no more")

    def _is_free(self, document: np.int64) -> bool:
        return not self.held_out[document] and self.copy_of[document] < 0

    def _cluster(self, document: np.int64) -> npt.NDArray[np.int64]:
        label = self.labels[document]
        first, last = np.searchsorted(self._sorted_labels, [label, label + 1])
        return self._by_label[first:last]

    def _num_by_source(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        trained = documents[~self.watched[documents]]  # a watch source loses nothing: it is not trained
        return np.bincount(self.corpus.source[trained], minlength=self._num_sources)

    def _may_go(self, document: np.int64) -> bool:
        """Whether the cluster is small enough that no source loses more than its share."""
        removed = self._num_by_source(self._cluster(document))
        # A source that loses nothing by this cluster has no say, even if it has given all that it may.
        return bool(np.all((removed == 0) | (self._num_removed + removed <= self._most_removed)))

    def _take(self, document: np.int64) -> None:
        cluster = self._cluster(document)
        self._num_removed += self._num_by_source(cluster)
        # The whole cluster in one go: from now on none of it is free, so no cluster is taken twice.
        self.copy_of[cluster] = document
        self.copy_of[document] = -1
        self.held_out[document] = True
