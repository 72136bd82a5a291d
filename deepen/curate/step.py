"""The two kinds of curation steps: one sees a document at a time, the other the whole corpus.

Steps on documents run first, in the order of the recipe, in any number of processes; then the held-out documents are
set aside; then steps on the corpus choose among what is left. A step on documents may have a batch form, which does the
same to many documents at once; it need not.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from deepen.curate.batch.columns import Batch
from deepen.curate.batch.texts import Texts
from deepen.curate.passes.corpus import Corpus
from deepen.errors import Problem
from deepen.formats.documents.documents import Document, table_of
from deepen.plug import Plug


@dataclass(frozen=True)
class Drop:
    """Why a document is dropped: what is wrong with it and the value that crossed the limit."""

    reason: str
    value: float
    detail: str = ""
    """What the document was matched with or where, where that says more than the value."""
    scores: Mapping[str, float] = field(default_factory=dict, compare=False)
    """What the step measured, kept with the dropped document so that another threshold can be tried."""


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


@runtime_checkable
class Judges(Protocol):
    """What can also be applied to a batch of documents."""

    edits: ClassVar[bool]
    """Whether it may change texts: documents with spans are then handed to ``apply``, which moves them along."""

    def judge(self, batch: Batch) -> Judgement:
        """What becomes of the documents of a batch, which is not to be changed."""


class Step(Plug):
    """What both kinds of steps have."""

    def problems(self, sources: Collection[str] | None) -> Iterator[Problem]:
        """What the disk and the names of the ``sources`` (None: not known) say against the settings.

        Paths of problems are keys of the step.
        """
        return iter(())


class DocumentStep(Step):
    """A step that sees one document at a time; what it measures goes into ``document.scores`` as ``step.quantity``."""

    @abstractmethod
    def apply(self, document: Document) -> Document | Drop:
        """The document (changed or as it was), or why it is dropped. Depends on nothing but document and settings.

        A step that changes the text need not mind ``content_hash``: it is made anew. Where the document has ``spans``
        they must be moved along (``spans.edited_within``, ``spans.of_pieces``); else it is dropped (``spans_lost``).
        """


@dataclass(frozen=True)
class Judgement:
    """What a step says of the n documents of a batch; rows of documents that are not alive do not matter."""

    scores: Mapping[str, npt.NDArray[np.float64]]
    """What was measured, by ``step.quantity``; NaN where it was not."""
    reasons: Sequence[str] = ()
    broken: npt.NDArray[np.int64] | None = None
    """For each document the number of its reason to be dropped, or -1; None: all stay."""
    values: npt.NDArray[np.float64] | None = None
    """For each dropped one the value that crossed the limit."""
    texts: Texts | None = None
    """The texts as they are now, if any was changed."""
    undecided: npt.NDArray[np.bool_] | None = None
    """Documents that the batch form has nothing to say of: the step's ``apply`` is asked."""

    def of_one(self) -> tuple[dict[str, float], Drop | None]:
        """Of a batch of one document: its scores, and why it is dropped, if it is."""
        scores = {name: float(values[0]) for name, values in self.scores.items() if not np.isnan(values[0])}
        if self.broken is None or self.values is None or self.broken[0] < 0:
            return scores, None
        return scores, Drop(self.reasons[self.broken[0]], float(self.values[0]), scores=scores)


Rule = tuple[str, str, npt.NDArray[np.float64], npt.NDArray[np.bool_]]
"""Reason to drop, name of what is measured, its values (NaN: not asked), whether the rule is broken."""


def judged(step: str, rules: Sequence[Rule]) -> Judgement:
    """What rules say, in this order: the first one that is broken is the reason."""
    num_documents = len(rules[0][2]) if rules else 0
    broken, values = np.full(num_documents, -1), np.zeros(num_documents)
    for number, (_, _, measured, breaks) in enumerate(rules):
        first = breaks & (broken < 0)  # the first broken rule is the reason, as if rules were asked one by one
        broken[first], values[first] = number, measured[first]
    scores = {f"{step}.{name}": measured for _, name, measured, _ in rules}
    return Judgement(scores, [reason for reason, *_ in rules], broken, values)


class BatchStep(DocumentStep):
    """A step on documents with a batch form. Where that says all there is to say, ``apply`` is a batch of one."""

    edits: ClassVar[bool] = False
    """Whether the step may change texts; such a step has an ``apply`` of its own, for documents with spans."""

    @abstractmethod
    def judge(self, batch: Batch) -> Judgement:
        """What becomes of the documents of a batch, which is not to be changed."""

    def apply(self, document: Document) -> Document | Drop:
        """The same for one document."""
        scores, drop = self.judge(Batch(table_of([document]))).of_one()
        return drop or replace(document, scores={**document.scores, **scores})


class CorpusStep(Step):
    """A step that chooses among all documents of all sources."""

    @abstractmethod
    def apply(self, corpus: Corpus, alive: npt.NDArray[np.bool_]) -> Drops:
        """Which of the documents marked in ``alive`` (bool [n], not to be changed) are dropped."""


CurateStep = DocumentStep | CorpusStep
