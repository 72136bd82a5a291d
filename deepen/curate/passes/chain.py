"""Applying the steps of a recipe to documents, one after the other: a batch at a time, or one at a time.

Both ways give the same; steps without a batch form are applied to the documents of a batch one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from deepen.curate.batch.columns import Batch
from deepen.curate.batch.spans import lost_by
from deepen.curate.step import Applies, Drop, Judgement, Judges
from deepen.formats.documents.documents import Document, content_hash

DROPPED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("scores", pa.map_(pa.string(), pa.float64())),
    ]
)
SHOWN_CHARACTERS = 200
"""How much of a dropped document's text is kept to look at."""


@dataclass
class Dropped:
    """The documents of a batch that were dropped: for each row the place of its reason in ``reasons`` (or -1), the
    value, and what is to be said beyond them."""

    reasons: list[str]
    places: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    details: dict[int, str]

    def note(self, row: int, drop: Drop) -> None:
        """One document is dropped."""
        self.places[row], self.values[row] = self.place(drop.reason), drop.value
        if drop.detail:
            self.details[row] = drop.detail

    def place(self, reason: str) -> int:
        """Where a reason is in the list."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)

    def table(self, batch: Batch) -> pa.Table:
        """The drops in the order of the rows, as a table of ``DROPPED_SCHEMA``, with the texts as they came."""
        rows = np.flatnonzero(self.places >= 0)
        columns = [
            *batch.names(rows),
            pa.array(self.reasons, pa.string()).take(pa.array(self.places[rows])),
            pa.array(self.values[rows]),
            pa.array([self.details.get(row, "") for row in rows.tolist()], pa.string()),
            pa.array([batch.heads.head(row, SHOWN_CHARACTERS) for row in rows.tolist()], pa.string()),
            batch.scores.column(rows),
        ]
        return pa.table(columns, schema=DROPPED_SCHEMA)


def apply_to_batch(steps: Sequence[Applies], batch: Batch) -> Dropped:
    """Apply all steps to the documents of a batch, which is changed; returns what was dropped."""
    dropped = Dropped([], np.full(len(batch), -1), np.zeros(len(batch)), {})
    for step in steps:
        if not batch.alive.any():
            break
        if not isinstance(step, Judges):
            _apply_singly(step, batch, batch.alive.copy(), dropped)
            continue
        # A batch form sees texts only; where it may edit one that has spans, the step's `apply` must move these along.
        singly = batch.alive & batch.has_spans if step.edits else np.zeros(len(batch), np.bool_)
        judgement = step.judge(batch)
        if judgement.undecided is not None:
            singly |= batch.alive & judgement.undecided
        _take(judgement, batch, batch.alive & ~singly, dropped)
        if singly.any():
            _apply_singly(step, batch, singly, dropped)
    return dropped


def _take(judgement: Judgement, batch: Batch, concerned: npt.NDArray[np.bool_], dropped: Dropped) -> None:
    """Carry out what a step said of the documents marked in ``concerned``."""
    for name, values in judgement.scores.items():
        batch.scores.add(name, values, concerned & ~np.isnan(values))
    if judgement.broken is not None:
        assert judgement.values is not None, "a broken rule has a value"
        # A step counts its own reasons from 0.
        places = np.array([dropped.place(reason) for reason in judgement.reasons], dtype=np.int64)
        goes = concerned & (judgement.broken >= 0)
        if goes.any():
            dropped.places[goes] = places[judgement.broken[goes]]
            dropped.values[goes] = judgement.values[goes]
            batch.alive &= ~goes
    if judgement.texts is not None:
        batch.edit(judgement.texts.where(concerned, batch.texts), concerned & batch.alive)


def _apply_singly(step: Applies, batch: Batch, concerned: npt.NDArray[np.bool_], dropped: Dropped) -> None:
    documents: dict[int, tuple[Document, Document]] = {}
    for row in np.flatnonzero(concerned).tolist():
        before = batch.document(row)
        result = apply_steps((step,), before)
        if isinstance(result, Drop):
            dropped.note(row, result)
            batch.scores.put(row, {**before.scores, **result.scores})
            batch.alive[row] = False
        elif result is not before:  # most steps give the document back as it was: nothing to put
            documents[row] = before, result
    batch.put(documents)


def apply_steps(steps: Sequence[Applies], document: Document) -> Document | Drop:
    """The document after all steps, with its content hash, or the first step's reason to drop it."""
    for step in steps:
        result = step.apply(document)
        if isinstance(result, Drop):
            return replace(result, scores={**document.scores, **result.scores})
        if result.text != document.text:
            reason = lost_by(document, result)
            if reason is not None:
                return Drop(reason, 0.0, scores=document.scores)
            result = replace(result, content_hash=content_hash(result.text))
        document = result
    return document
