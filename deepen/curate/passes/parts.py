"""The two passes over the documents, each a function on one part that runs in any number of processes.

The first applies the steps on documents and writes what the corpus steps need; the second carries out what was decided
about the whole corpus. Between them only small arrays are exchanged, texts go from file to file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepen.curate.batch.columns import read_batches
from deepen.curate.duplicates.signatures import Signer
from deepen.curate.passes.chain import DROPPED_SCHEMA, SHOWN_CHARACTERS, apply_to_batch
from deepen.curate.passes.corpus import PartFiles
from deepen.curate.step import Applies
from deepen.formats.documents.document_ids import DocumentIds
from deepen.formats.documents.documents import SCHEMA, read_tables, regrouped, table_writer, write_tables
from deepen.formats.files.atomic import FileEntry, writing

DECISION = np.dtype([("code", "u1"), ("value", "<f8"), ("kept_id", "<u8", (2,))])
"""0: kept; 1: held out; more: dropped for ``SecondPart.reasons[code - 2]`` with ``value``; the id of the document that
stays in its place, if there is one (else zeros)."""
KEPT, HELD_OUT, FIRST_REASON = 0, 1, 2


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
        drops, _ = stack.enter_context(table_writer(files.dropped, DROPPED_SCHEMA, scratch=True))
        kept, _ = stack.enter_context(table_writer(files.documents, SCHEMA, scratch=True))
        for table in regrouped(_kept(part, count, drops)):
            signer.sign(table)
            kept.write_table(table)
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


def _kept(part: FirstPart, count: _Incoming, drops: pq.ParquetWriter) -> Iterator[pa.Table]:
    """What stays of each batch; what does not goes to ``drops``."""
    for batch in read_batches(Path(part.documents)):
        count.documents += len(batch)
        count.num_bytes += int(batch.texts.sizes.sum())
        dropped = apply_to_batch(part.steps, batch)
        if not batch.alive.all():
            table = dropped.table(batch)
            drops.write_table(table)
            count.dropped.update(table["reason"].to_pylist())
        table = batch.kept() if batch.alive.any() else None
        del batch  # before the consumer goes on: a large text would be held twice
        if table is not None:
            yield table


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
    yield from regrouped(read_tables(files.dropped))  # the first pass wrote a small group per batch
    for table, own in _with_decisions(files, decisions):
        chosen = np.flatnonzero(own["code"] >= FIRST_REASON)
        if len(chosen):
            yield _decided(table, own, chosen, reasons)


def _decided(
    table: pa.Table, decisions: np.ndarray[Any, Any], chosen: np.ndarray[Any, Any], reasons: Sequence[str]
) -> pa.Table:
    part = table.select(["id", "source", "text", "scores"]).take(pa.array(chosen))
    columns = {
        "id": part["id"],
        "source": part["source"],
        "reason": pa.array([reasons[code - FIRST_REASON] for code in decisions["code"][chosen].tolist()]),
        "value": pa.array(decisions["value"][chosen].astype(np.float64)),
        "detail": pa.array(_names(decisions["kept_id"][chosen]), pa.string()),
        "text": pc.utf8_slice_codeunits(part["text"], 0, SHOWN_CHARACTERS).cast(pa.string()),
        "scores": part["scores"],
    }
    return pa.table(columns, schema=DROPPED_SCHEMA)


def _names(kept_ids: np.ndarray[Any, Any]) -> list[str]:
    return [name if name.strip("0") else "" for name in DocumentIds(kept_ids)]  # zeros stand for no document
