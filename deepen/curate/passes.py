"""The two passes over the documents, each a function on one part that runs in any number of processes.

The first applies the steps on documents and writes what the corpus steps need; the second carries out what was decided
about the whole corpus. Between them only small arrays are exchanged, texts go from file to file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deepen.curate.corpus import PartFiles
from deepen.curate.signatures import Signer
from deepen.curate.spans import lost_by
from deepen.curate.step import Applies, Drop
from deepen.formats.atomic import FileEntry, HashingWriter, writing
from deepen.formats.document_ids import DocumentIds
from deepen.formats.documents import (
    SCHEMA,
    Document,
    content_hash,
    read_documents,
    read_tables,
    write_documents,
    write_tables,
)
from deepen.formats.records import read_records

DROPPED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)
SHOWN_CHARACTERS = 200
"""How much of a dropped document's text is kept to look at."""
DECISION = np.dtype([("code", "u1"), ("value", "<f8"), ("kept_id", "<u8", (2,))])
"""0: kept; 1: held out; more: dropped for ``SecondPart.reasons[code - 2]`` with ``value``; the id of the document that
stays in its place, if there is one (else zeros)."""
KEPT, HELD_OUT, FIRST_REASON = 0, 1, 2

_ROWS_PER_GROUP = 1_000


@dataclass(frozen=True)
class FirstPart:
    """One document file of ingest and what is done to it."""

    name: str
    documents: str
    partial: str
    steps: tuple[Applies, ...]
    fingerprint: str


@dataclass(frozen=True)
class SecondPart:
    """One part after the decisions: ``watch`` parts give no documents to train on."""

    name: str
    partial: str
    out: str
    watch: bool
    reasons: tuple[str, ...]
    fingerprint: str


def first_pass(part: FirstPart) -> dict[str, Any]:
    """Apply the steps on documents; returns documents and bytes that came in, and drops by reason."""
    files = PartFiles(Path(part.partial), part.name)
    count = _Incoming()
    with ExitStack() as stack:
        signer = Signer(stack.enter_context(writing(files.shingles)))
        drops = stack.enter_context(writing(files.dropped))
        kept = signer.signing(_kept(part, count, drops))
        write_documents(files.documents, kept, files.partial)
    signer.save(files)
    return {
        "documents_in": count.documents,
        "bytes_in": count.num_bytes,
        "dropped": dict(sorted(count.dropped.items())),
    }


@dataclass
class _Incoming:
    documents: int = 0
    num_bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def _kept(part: FirstPart, count: _Incoming, drops: HashingWriter) -> Iterator[Document]:
    for document in read_documents(Path(part.documents)):
        count.documents += 1
        count.num_bytes += len(document.text.encode())
        result = apply_steps(part.steps, document)
        if isinstance(result, Document):
            yield result
            continue
        count.dropped[result.reason] += 1
        drops.write((json.dumps(_drop_row(document, result), ensure_ascii=False) + "\n").encode())


def apply_steps(steps: Sequence[Applies], document: Document) -> Document | Drop:
    """The document after all steps, with its content hash, or the first step's reason to drop it."""
    for step in steps:
        result = step.apply(document)
        if isinstance(result, Drop):
            return result
        if result.text != document.text:
            reason = lost_by(document, result)
            if reason is not None:
                return Drop(reason, 0.0)
            result = replace(result, content_hash=content_hash(result.text))
        document = result
    return document


def _drop_row(document: Document, drop: Drop) -> dict[str, Any]:
    return {
        "id": document.id,
        "source": document.source,
        "reason": drop.reason,
        "value": float(drop.value),
        "detail": drop.detail,
        "text": document.text[:SHOWN_CHARACTERS],
    }


def second_pass(part: SecondPart) -> dict[str, Any]:
    """Write the part's final documents and drops, and aside its held-out documents; returns entries and counts."""
    files, out = PartFiles(Path(part.partial), part.name), Path(part.out)
    decisions = np.load(files.decisions)
    entries: list[FileEntry] = []
    kept_bytes = 0
    if not part.watch:
        entry, _ = write_tables(
            out / "documents" / f"{part.name}.parquet", _chosen(files, decisions, KEPT), out, SCHEMA
        )
        entries.append(entry)
        kept_bytes = _num_bytes(files, decisions, KEPT)
    write_tables(files.held_out, _chosen(files, decisions, HELD_OUT), files.partial, SCHEMA)
    drops = _drop_tables(files, decisions, part.reasons)
    entry, _ = write_tables(out / "dropped" / f"{part.name}.parquet", drops, out, DROPPED_SCHEMA)
    entries.append(entry)
    codes = np.bincount(decisions["code"], minlength=FIRST_REASON + len(part.reasons)).tolist()
    return {
        "files": [entry.model_dump() for entry in entries],
        "documents_kept": codes[KEPT],
        "bytes_kept": kept_bytes,
        "held_out": codes[HELD_OUT],
        "held_out_bytes": _num_bytes(files, decisions, HELD_OUT),
        "dropped": {reason: codes[FIRST_REASON + number] for number, reason in enumerate(part.reasons)},
    }


def _num_bytes(files: PartFiles, decisions: np.ndarray[Any, Any], code: int) -> int:
    return int(np.load(files.index)["num_bytes"][decisions["code"] == code].sum())


def _with_decisions(
    files: PartFiles, decisions: np.ndarray[Any, Any]
) -> Iterator[tuple[pa.Table, np.ndarray[Any, Any]]]:
    """The part's tables, each with the decisions about its rows."""
    row = 0
    for table in read_tables(files.documents):
        yield table, decisions[row : row + table.num_rows]
        row += table.num_rows


def _chosen(files: PartFiles, decisions: np.ndarray[Any, Any], code: int) -> Iterator[pa.Table]:
    for table, own in _with_decisions(files, decisions):
        chosen = own["code"] == code
        if chosen.all():
            yield table
        elif chosen.any():
            yield table.filter(pa.array(chosen))


def _drop_tables(files: PartFiles, decisions: np.ndarray[Any, Any], reasons: Sequence[str]) -> Iterator[pa.Table]:
    """What the first pass dropped, then what was decided afterwards, in the order of the documents."""
    rows: list[dict[str, Any]] = []
    for row in read_records(files.dropped):
        rows.append(row)
        if len(rows) == _ROWS_PER_GROUP:
            yield pa.Table.from_pylist(rows, schema=DROPPED_SCHEMA)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, schema=DROPPED_SCHEMA)
    for table, own in _with_decisions(files, decisions):
        chosen = np.flatnonzero(own["code"] >= FIRST_REASON)
        if len(chosen):
            yield _decided(table, own, chosen, reasons)


def _decided(
    table: pa.Table, decisions: np.ndarray[Any, Any], chosen: np.ndarray[Any, Any], reasons: Sequence[str]
) -> pa.Table:
    part = table.select(["id", "source", "text"]).take(pa.array(chosen))
    columns = {
        "id": part["id"],
        "source": part["source"],
        "reason": pa.array([reasons[code - FIRST_REASON] for code in decisions["code"][chosen].tolist()]),
        "value": pa.array(decisions["value"][chosen].astype(np.float64)),
        "detail": pa.array(_names(decisions["kept_id"][chosen]), pa.string()),
        "text": pa.array([text[:SHOWN_CHARACTERS] for text in part["text"].to_pylist()], pa.string()),
    }
    return pa.table(columns, schema=DROPPED_SCHEMA)


def _names(kept_ids: np.ndarray[Any, Any]) -> list[str]:
    return [name if name.strip("0") else "" for name in DocumentIds(kept_ids)]
