"""`deepen trace`: in which steps a document is trained, or why it is not.

Ids are searched as numbers, in blocks, and the order is scanned by comparing arrays; nothing is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from deepen.errors import RunError
from deepen.formats.documents.document_ids import DocumentIds
from deepen.formats.documents.documents import document_id, read_tables
from deepen.formats.manifest import Artifact
from deepen.formats.tokens.order import row_ids
from deepen.runs.directory import finished_stages
from deepen.runs.order.rows import OpenedOrder, open_order

_BLOCK = 1 << 20
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Visit:
    """One time a document (or a part of it) is in a batch."""

    step: int
    row: int
    source: str
    position: int
    """Where in the row it begins."""
    start: int
    """Its first token there, counted in the document."""
    tokens: int


@dataclass(frozen=True)
class Traced:
    """What becomes of one document."""

    document: str
    source: str
    reason: str
    """Why it is in no step; empty when it is in some."""
    visits: tuple[Visit, ...]


def trace(run: Path, document: str) -> Traced:
    """Every step of ``run`` in which a document is trained, or why there is none.

    ``document`` is an id, a unique beginning of one, or ``SOURCE:LOCATION``. Raises ``RunError`` when there is no such
    document, or more than one.
    """
    wanted = _wanted(run, document)
    opened = open_order(run)
    places = [
        (index, source, sequence)
        for index, source in enumerate(opened.sources)
        for sequence in find_ids(opened.files(source).document_ids, wanted)
    ]
    found = {opened.files(source).document_ids[sequence]: source for _, source, sequence in places}
    if len(found) > 1:
        raise RunError(f"`{document}` is the beginning of {len(found)} document ids", hint="give more digits")
    if not found:
        return _not_trained(run, document, wanted)
    index, source, sequence = places[0]
    visits = tuple(_visits(opened, index, source, sequence))
    reason = "" if visits else f"not trained: no row with it is among the {opened.num_steps:,} steps of the order"
    return Traced(next(iter(found)), source, reason, visits)


def _wanted(run: Path, document: str) -> str:
    """The id, or the beginning of one, that is meant."""
    source, colon, location = document.partition(":")
    if colon:
        known = finished_stages(run)
        names = list(known["ingest"].counts["sources"]) if "ingest" in known else []
        names += known["mix"].counts.get("fixed_rows", {}) if "mix" in known else []
        if source not in names:
            raise RunError(f"`{source}` is no source of `{run}`", hint=f"its sources are {', '.join(names)}")
        return document_id(source, location)
    wanted = document.lower()
    if not wanted or len(wanted) > 32 or not set(wanted) <= _HEX:
        raise RunError(f"`{document}` is no document id", hint="give up to 32 hexadecimal digits, or SOURCE:LOCATION")
    return wanted


def find_ids(ids: DocumentIds, beginning: str) -> list[int]:
    """Sequences whose id begins with so many hexadecimal digits."""
    low, high = int(beginning.ljust(32, "0"), 16), int(beginning.ljust(32, "f"), 16)
    upper = np.array([low >> 64, high >> 64], dtype=np.uint64)
    lower = np.array([low & (1 << 64) - 1, high & (1 << 64) - 1], dtype=np.uint64)
    found: list[int] = []
    for begin in range(0, len(ids), _BLOCK):
        halves = ids.halves[begin : begin + _BLOCK]
        hits = (halves[:, 0] >= upper[0]) & (halves[:, 0] <= upper[1])
        if upper[0] == upper[1]:
            hits &= (halves[:, 1] >= lower[0]) & (halves[:, 1] <= lower[1])
        found += (begin + np.flatnonzero(hits)).tolist()
    return found


def _visits(opened: OpenedOrder, index: int, source: str, sequence: int) -> Iterator[Visit]:
    packs = opened.files(source).packs
    rows = np.array(sorted(packs.rows_with(sequence)), dtype=np.int64)
    row_of_id = dict(zip(row_ids(index, rows).tolist(), rows.tolist(), strict=True))
    for batch, place, row_id in opened.order.find(row_of_id):
        if opened.order.is_hole(batch):
            continue
        at, longest = 0, opened.order.segment_of(batch).sequence_length
        for of, start, length in packs.row(row_of_id[row_id]).tolist():
            inside = min(length, longest - at)
            if of == sequence and inside > 0:
                yield Visit(opened.order.step_of_batch(batch), place, source, at, start, inside)
            at += length


def _not_trained(run: Path, document: str, wanted: str) -> Traced:
    """Where a document that is in no shard ended; raises ``RunError`` when it is nowhere."""
    curate = finished_stages(run).get("curate")
    if curate is None:
        hint = f"`deepen curate {run}` makes them again"
        raise RunError(f"`{document}` is in no shard of `{run}`, whose curated documents are gone", hint=hint)
    rows = [row for folder in ("held_out", "dropped", "documents") for row in _rows_in(curate, folder, wanted)]
    if len({row["id"] for row in rows}) > 1:
        raise RunError(f"`{document}` is the beginning of several document ids", hint="give more digits")
    if not rows:
        raise RunError(
            f"no document with id `{document}` came into `{run}`",
            hint="ids are those of `deepen show RUN/ingest`; what could not be read is in RUN/ingest/rejected.jsonl",
        )
    row = rows[0]
    role = curate.counts["sources"][row["source"]]["role"]
    reasons = {
        "held_out": "held out: it is scored, and never trained on",
        "documents": f"kept, but not encoded: its source has the role {role}, or its text was refused by tokenize",
        "dropped": f"dropped because of {row.get('reason')} ({row.get('value')}) {row.get('detail') or ''}".rstrip(),
    }
    return Traced(row["id"], row["source"], f"not trained: {reasons[row['folder']]}", ())


def _rows_in(curate: Artifact, folder: str, wanted: str) -> Iterator[dict[str, Any]]:
    columns = ["id", "source", "reason", "value", "detail"] if folder == "dropped" else ["id", "source"]
    for path in sorted((curate.path / folder).glob("*.parquet")):
        for table in read_tables(path, columns):
            for row in table.filter(pc.starts_with(table["id"], wanted)).to_pylist():
                yield {**row, "folder": folder}
