"""The two kinds of curation steps: one sees a document at a time, the other the whole corpus.

Steps on documents run first, in the order of the recipe, in any number of processes; then the held-out documents are
set aside; then steps on the corpus choose among what is left.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deepen.curate.corpus import Corpus
from deepen.formats.documents import Document
from deepen.plug import Plug


@dataclass(frozen=True)
class Drop:
    """Why a document is dropped: what is wrong with it and the value that crossed the limit."""

    reason: str
    value: float
    detail: str = ""
    """What the document was matched with or where, where that says more than the value."""


@dataclass(frozen=True)
class Drops:
    """Documents that a corpus step drops for one reason: positions int64 [n] and values float64 [n]."""

    reason: str
    documents: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    kept: npt.NDArray[np.int64] | None = None
    """For each the document that stays in its place, int64 [n]; its id becomes the drop's ``detail``."""


class Applies(Protocol):
    """Whatever can be applied to documents: a step, or one that is bound to what it found in a survey."""

    def apply(self, document: Document) -> Document | Drop:
        """The document (changed or as it was), or why it is dropped."""


class DocumentStep(Plug):
    """A step that sees one document at a time; what it measures goes into ``document.scores`` as ``step.quantity``."""

    @abstractmethod
    def apply(self, document: Document) -> Document | Drop:
        """The document (changed or as it was), or why it is dropped. Depends on nothing but document and settings.

        A step that changes the text need not mind ``content_hash``: it is made anew. Where the document has ``spans``
        they must be moved along (``spans.edited_within``, ``spans.of_pieces``); else it is dropped (``spans_lost``).
        """


class CorpusStep(Plug):
    """A step that chooses among all documents of all sources."""

    @abstractmethod
    def apply(self, corpus: Corpus, alive: npt.NDArray[np.bool_]) -> Drops:
        """Which of the documents marked in ``alive`` (bool [n], not to be changed) are dropped."""


CurateStep = DocumentStep | CorpusStep
