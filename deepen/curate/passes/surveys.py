"""Steps that must have seen a whole source before they can judge one document of it.

Before the first pass such a step counts in how many documents of each source each of its keys occurs. Parts write their
own sorted counts; these are merged one range of keys at a time, so memory stays flat, and only the keys that occur in
enough documents are kept. A count is exact and does not depend on the number of processes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from deepen.curate.batch.columns import Batch, read_batches
from deepen.curate.passes.chain import apply_to_batch
from deepen.curate.passes.corpus import save_array
from deepen.curate.step import Applies, DocumentStep, Drop, Judgement
from deepen.formats.documents.documents import Document

Keys = npt.NDArray[np.uint64]
_MERGED_KEYS = 8_000_000  # at a time, over all parts
_PENDING_KEYS = 4_000_000  # gathered before they are sorted: sorting after each batch would be quadratic


class SurveyStep(DocumentStep):
    """A step on documents that first counts keys over each source."""

    @abstractmethod
    def keys(self, document: Document) -> Keys:
        """What is counted in a document, each key once."""

    def batch_keys(self, batch: Batch) -> Keys:
        """The keys of all living documents of a batch, end to end. A step may do this faster."""
        found = [self.keys(batch.document(row)) for row in np.flatnonzero(batch.alive).tolist()]
        return np.concatenate([np.zeros(0, dtype=np.uint64), *found])

    @abstractmethod
    def fewest_documents(self, num_documents: int) -> int:
        """In how many of a source's documents a key must occur to be found."""

    @abstractmethod
    def apply_found(self, document: Document, found: Keys) -> Document | Drop:
        """The document, or why it is dropped, given the keys found in its source (ascending)."""

    def apply(self, document: Document) -> Document | Drop:
        """Never called: the stage binds the step to its survey first."""
        raise AssertionError(f"`{self.use}` needs its survey")


@dataclass(frozen=True)
class Surveyed:
    """A survey step with its finished survey."""

    step: SurveyStep
    folder: str

    def apply(self, document: Document) -> Document | Drop:
        """As for any step on documents."""
        return self.step.apply_found(document, _found(self.folder, document.source))


class BatchSurveyStep(SurveyStep):
    """A survey step with a batch form of ``apply_found``."""

    @abstractmethod
    def judge_found(self, batch: Batch, found: Keys) -> Judgement:
        """What becomes of the documents of a batch, all of one source, given the keys found there."""


class SurveyedBatch(Surveyed):
    """A survey step that has a batch form, with its finished survey."""

    step: BatchSurveyStep
    edits: ClassVar[bool] = True

    def judge(self, batch: Batch) -> Judgement:
        """As for any step with a batch form."""
        return self.step.judge_found(batch, _found(self.folder, batch.source))


def surveyed(step: SurveyStep, folder: str) -> Surveyed:
    """A step bound to its survey."""
    return (SurveyedBatch if isinstance(step, BatchSurveyStep) else Surveyed)(step, folder)


@lru_cache(maxsize=16)
def _found(folder: str, source: str) -> Keys:
    return np.asarray(np.load(Path(folder) / f"{source}.found.npy"))


@dataclass(frozen=True)
class SurveyPart:
    """One document file of ingest, what is done to it before the survey step, and the folder of the survey."""

    name: str
    documents: str
    folder: str
    before: tuple[Applies, ...]
    step: SurveyStep
    fingerprint: str

    def file(self, what: str) -> Path:
        """The part's sorted ``keys`` (uint64) or their ``counts`` (uint32)."""
        return Path(self.folder) / f"{self.name}.{what}.npy"


def survey_part(part: SurveyPart) -> dict[str, Any]:
    """Count the keys of one part; returns the number of documents that reach the step."""
    num_documents, num_pending = 0, 0
    pending: list[Keys] = []
    merged = (np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64))
    for batch in read_batches(Path(part.documents)):
        apply_to_batch(part.before, batch)
        keys = part.step.batch_keys(batch)
        num_documents, num_pending = num_documents + int(batch.alive.sum()), num_pending + len(keys)
        pending.append(keys)
        if num_pending > _PENDING_KEYS:
            merged = _sum([merged, *((keys, np.ones(len(keys), dtype=np.int64)) for keys in pending)])
            pending, num_pending = [], 0
    keys, counts = _sum([merged, *((keys, np.ones(len(keys), dtype=np.int64)) for keys in pending)])
    save_array(part.file("keys"), keys)
    save_array(part.file("counts"), counts.astype(np.uint32))
    return {"documents": num_documents}


def _sum(counted: Sequence[tuple[Keys, npt.NDArray[np.int64]]]) -> tuple[Keys, npt.NDArray[np.int64]]:
    """Each key once, ascending, with the sum of its counts."""
    keys = np.concatenate([keys for keys, _ in counted])
    counts = np.concatenate([counts for _, counts in counted])
    if len(keys) == 0:
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    firsts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[firsts], np.add.reduceat(counts, firsts)  # sums from each first to the next


def conclude_survey(source: str, parts: Sequence[SurveyPart], num_documents: int) -> None:
    """Write the keys that occur in enough documents of a source whose parts are all surveyed."""
    if not parts:
        return
    least = parts[0].step.fewest_documents(num_documents)
    found = [keys[counts >= least] for keys, counts in _ranges(parts)]
    save_array(Path(parts[0].folder) / f"{source}.found.npy", np.concatenate([np.zeros(0, dtype=np.uint64), *found]))


def _ranges(parts: Sequence[SurveyPart]) -> Iterator[tuple[Keys, npt.NDArray[np.int64]]]:
    """The keys of all parts with their counts, one range of keys after the other."""
    tables = [
        (np.load(part.file("keys"), mmap_mode="r"), np.load(part.file("counts"), mmap_mode="r")) for part in parts
    ]
    num_ranges = 1 + sum(len(keys) for keys, _ in tables) // _MERGED_KEYS
    # Keys are hashes: equal ranges hold about equally many. A key lies in one range only, so its sum is whole.
    limits = [number * (2**64 // num_ranges) for number in range(num_ranges)]
    starts = [np.searchsorted(keys, np.array(limits, dtype=np.uint64)).tolist() + [len(keys)] for keys, _ in tables]
    for number in range(num_ranges):
        pieces = []
        for (keys, counts), own in zip(tables, starts, strict=True):
            chosen = slice(own[number], own[number + 1])
            pieces.append((np.asarray(keys[chosen]), counts[chosen].astype(np.int64)))
        yield _sum(pieces)
