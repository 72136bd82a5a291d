"""Likelihood files: what a model made of every held-out document.

One parquet file per model and probe, one row per document, scored or not: a document without a likelihood carries the
reason instead. Sums over rows are all that bits per byte and their intervals need, so text is never read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepen.formats.files.atomic import FileEntry, writing
from deepen.formats.files.parquet import opened_parquet

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("nll", pa.float64()),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("reason", pa.string()),
    ]
)

NOT_FINITE = "not_finite"
"""Reason of a document whose likelihood came out as NaN or infinite."""


def write_likelihoods(path: Path, table: pa.Table, root: Path) -> FileEntry:
    """Write a probe's table atomically; the entry is named relative to ``root``."""
    with writing(path) as file:
        pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd")
    return file.entry(path.relative_to(root).as_posix())


def read_likelihoods(path: Path) -> pa.Table:
    """The table of one file, its columns and meaning as in ``SCHEMA`` (or ``items.SCHEMA``)."""
    with opened_parquet(path) as file:
        return file.read()


def part_of(table: pa.Table, ids: Collection[str]) -> pa.Table:
    """The rows of some documents or items."""
    return table.filter(pc.is_in(table["id"], value_set=pa.array(sorted(ids), pa.string())))


def table_of(
    ids: list[str], sources: list[str], nll: np.ndarray, sizes: tuple[np.ndarray, np.ndarray], reasons: list[str | None]
) -> pa.Table:
    """Build a table from columns; ``sizes`` are scored bytes and tokens.

    A likelihood that is not finite becomes null with the reason ``not_finite``; so does one with a reason already.
    """
    reasons = [
        reason or (None if finite else NOT_FINITE) for reason, finite in zip(reasons, np.isfinite(nll), strict=True)
    ]
    unscored = np.array([reason is not None for reason in reasons], dtype=bool)
    columns = [ids, sources, pa.array(nll, pa.float64(), mask=unscored), *map(pa.array, sizes), reasons]
    return pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)


def summary(table: pa.Table, source: str | None) -> dict[str, Any]:
    """Counts of one source, or of all (None): documents, scored and not (by reason), bytes, tokens, bits per byte."""
    rows = table if source is None else table.filter(pc.equal(table["source"], source))
    scored = rows.filter(pc.is_valid(rows["nll"]))
    num_bytes, nll = pc.sum(scored["bytes"]).as_py() or 0, pc.sum(scored["nll"]).as_py()
    return {
        "documents": rows.num_rows,
        "scored": scored.num_rows,
        "not_scored": dict(sorted(Counter(reason for reason in rows["reason"].to_pylist() if reason).items())),
        "bytes": num_bytes,
        "tokens": pc.sum(scored["tokens"]).as_py() or 0,
        "bits_per_byte": nll / (num_bytes * float(np.log(2))) if num_bytes else None,
    }
