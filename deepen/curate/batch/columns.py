"""Documents in columns on their way through the steps: texts as one buffer, scores as arrays, the rest as Arrow.

Steps with a batch form see arrays; for the others single documents are made out of the columns and put back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from deepen.curate.batch.texts import Texts, from_arrow, texts_of_bytes, to_arrow
from deepen.formats.documents.documents import SCHEMA, Document, documents_of, read_tables, table_of
from deepen.formats.files.arrays import Array

if TYPE_CHECKING:
    from deepen.curate.batch.text_facts import Lines, Words

_BATCH_BYTES = 1_000_000
"""Text of a batch: what is found in it (words above all) should stay near the processor."""
_LARGE_BYTES = 64_000_000  # texts from here on are worth the time it takes to give memory back to the system
HEAD_BYTES = 800
"""So much of each text is kept as it came: room for the 200 characters that a dropped document shows."""
_REST = [name for name in SCHEMA.names if name not in ("text", "scores", "content_hash")]


class Batch:
    """Some documents while steps are applied to them; dropped ones stay in their rows, no longer ``alive``."""

    def __init__(self, table: pa.Table) -> None:
        """``table`` has the columns of ``SCHEMA``."""
        self._table = table.drop_columns(["text"])
        self.texts = from_arrow(table["text"])
        self.heads = self.texts.heads(HEAD_BYTES)
        """How the texts began before any step."""
        self.alive: Array = np.ones(table.num_rows, dtype=np.bool_)
        self.scores = Scores(table["scores"])
        self._edited = np.zeros(table.num_rows, dtype=np.bool_)
        self._changed: dict[int, Document] = {}
        self._words: Words | None = None
        self._lines: Lines | None = None

    def __len__(self) -> int:
        return len(self.alive)

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return list(self._table.select(_REST).to_pylist())

    @cached_property
    def has_spans(self) -> Array:
        """Whether each document has spans, which only steps on single documents can move along, bool [n]."""
        return np.asarray(pc.is_valid(self._table["spans"]).to_numpy())

    @cached_property
    def _hashes(self) -> list[str]:
        return list(self._table["content_hash"].to_pylist())

    def names(self, rows: Array) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Ids and sources of some documents."""
        chosen = self._table.select(["id", "source"]).take(pa.array(rows))
        return chosen["id"], chosen["source"]

    @property
    def source(self) -> str:
        """The source of the documents, which is the same for all documents of a file."""
        return str(self._table["source"][0].as_py())

    @property
    def languages(self) -> list[str | None]:
        """The language that each document names."""
        found: list[str | None] = self._table["language"].to_pylist()
        for row, document in self._changed.items():
            found[row] = document.language
        return found

    @property
    def words(self) -> Words:
        """The words of all texts; those of documents that are not alive are missing."""
        from deepen.curate.batch.text_facts import words_of  # loads numba

        if self._words is None:
            self._words = words_of(self.texts.only(self.alive))
        return self._words

    @property
    def lines(self) -> Lines:
        """The lines of all texts, likewise."""
        from deepen.curate.batch.text_facts import lines_of  # loads numba

        if self._lines is None:
            self._lines = lines_of(self.texts.only(self.alive))
        return self._lines

    def content_hash(self, row: int) -> str:
        """Hash of the document's text as it is now."""
        if self._edited[row]:
            return xxhash.xxh3_128_hexdigest(self.texts.data(row).data)
        return self._hashes[row]

    def document(self, row: int) -> Document:
        """One document as it is now."""
        text, scores, digest = self.texts.text(row), self.scores.of(row), self.content_hash(row)
        known = self._changed.get(row)
        if known is not None:
            return replace(known, text=text, scores=scores, content_hash=digest)
        (found,) = documents_of([{**self._rows[row], "scores": scores.items(), "text": text, "content_hash": digest}])
        return found

    def put(self, documents: Mapping[int, tuple[Document, Document]]) -> None:
        """Take over documents, given by their row as they were and as a step made them."""
        # All texts of the batch are laid together anew once, however many of its documents the step has changed.
        texts: dict[int, bytes] = {}
        for row, (before, after) in documents.items():
            self.scores.put(row, after.scores)
            if after.text != before.text:
                texts[row] = after.text.encode()
            # Text, scores and hash have columns of their own: only for what else differs a document is kept.
            rest = replace(after, text="", scores={}, content_hash="")
            if rest != replace(before, text="", scores={}, content_hash=""):
                self._changed[row] = rest
        if texts:
            # Dropped ones give up their text.
            kept = [texts.get(row, self.texts.data(row)) if self.alive[row] else b"" for row in range(len(self))]
            self.edit(texts_of_bytes(kept), np.isin(np.arange(len(self)), list(texts)))

    def edit(self, texts: Texts, edited: Array) -> None:
        """Take other texts, which differ in the rows marked in ``edited`` (bool [n])."""
        self.texts, self._edited = texts, self._edited | edited
        self._words, self._lines = None, None  # they were found in the texts as they were

    def kept(self) -> pa.Table:
        """The documents that are alive, as a table of ``SCHEMA``."""
        self._words, self._lines = None, None  # of a large text several times its size
        rows = np.flatnonzero(self.alive)
        table = self._rest(rows)
        columns = {name: table[name] for name in _REST}
        columns["text"] = to_arrow(Texts(self.texts.buffer, self.texts.starts[rows], self.texts.ends[rows]))
        columns["scores"] = self.scores.column(rows)
        hashes = self._table["content_hash"] if len(rows) == len(self) else self._table["content_hash"].take(rows)
        if self._edited[rows].any():
            hashes = pa.array([self.content_hash(row) for row in rows.tolist()], pa.string())
        columns["content_hash"] = hashes
        return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)

    def _rest(self, rows: Array) -> pa.Table:
        """The columns that hardly any step changes, of some rows."""
        # Changed documents are put behind the table, and each row takes its place from either: no column is made anew.
        table = self._table.select(_REST)
        if not self._changed:
            return table if len(rows) == len(table) else table.take(pa.array(rows))
        changed = sorted(self._changed)
        places = np.arange(len(self))
        places[changed] = len(self) + np.arange(len(changed))
        both = pa.concat_tables([table, table_of([self._changed[row] for row in changed]).select(_REST)])
        return both.take(pa.array(places[rows]))


class Scores:
    """What was measured of n documents, a column per quantity; a document has only those that it was measured for."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        """``column`` maps names to values, a row per document."""
        self._num_documents = len(column)
        self._columns: dict[str, tuple[Array, Array]] = {}
        for row, known in enumerate(column.to_pylist() if _has_items(column) else ()):
            self.put(row, dict(known or ()))

    def _column(self, name: str) -> tuple[Array, Array]:
        if name not in self._columns:
            self._columns[name] = np.zeros(self._num_documents), np.zeros(self._num_documents, dtype=np.bool_)
        return self._columns[name]

    def add(self, name: str, values: Array, measured: Array) -> None:
        """Note a quantity (float64 [n]) of the documents marked in ``measured`` (bool [n])."""
        own, known = self._column(name)
        np.copyto(own, values, where=measured)
        known |= measured

    def put(self, row: int, scores: Mapping[str, float]) -> None:
        """Make these the scores of one document."""
        for name, (_, known) in self._columns.items():
            known[row] = known[row] and name in scores  # what the document no longer has is forgotten
        for name, value in scores.items():
            values, known = self._column(name)
            values[row], known[row] = value, True

    def of(self, row: int) -> dict[str, float]:
        """The scores of one document."""
        return {name: float(values[row]) for name, (values, known) in self._columns.items() if known[row]}

    def column(self, rows: Array) -> pa.Array:
        """The scores of some documents as an Arrow column of maps."""
        # One row per document, one column per quantity: `nonzero` goes by rows, which is the order of a map column.
        known = np.array([known[rows] for _, known in self._columns.values()], dtype=np.bool_).T
        values = np.array([values[rows] for values, _ in self._columns.values()], dtype=np.float64).T
        shape = len(rows), len(self._columns)  # without documents or quantities there is nothing to transpose
        known, values = known.reshape(shape), values.reshape(shape)
        offsets = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(known.sum(axis=1), out=offsets[1:])
        names = pa.array(list(self._columns), pa.string()).take(pa.array(np.nonzero(known)[1]))
        return pa.MapArray.from_arrays(pa.array(offsets), names, pa.array(values[known]))


def _has_items(column: pa.ChunkedArray) -> bool:
    return any(chunk.offsets[-1].as_py() > chunk.offsets[0].as_py() for chunk in column.chunks if len(chunk))


def batches_of(table: pa.Table) -> Iterator[Batch]:
    """A table of documents in batches of about a megabyte of text, at least one document each."""
    for name in SCHEMA.names:
        if name not in table.column_names:  # written before there was this column
            table = table.append_column(SCHEMA.field(name), pa.nulls(table.num_rows, SCHEMA.field(name).type))
    sizes = np.cumsum(from_arrow(table["text"]).sizes)
    begin, parts = 0, []
    while begin < table.num_rows:
        before = sizes[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(sizes, before + _BATCH_BYTES, side="right")))
        parts.append(table.slice(begin, end - begin))
        begin = end
    del table  # so that a large text is gone once a step has made another one of it
    parts.reverse()  # so that `pop` gives the next one and lets go of it
    while parts:
        batch = Batch(parts.pop())
        if len(batch.texts.buffer) > _LARGE_BYTES:  # what reading it took goes back to the system
            pa.default_memory_pool().release_unused()
        yield batch


def read_batches(path: Path) -> Iterator[Batch]:
    """Stream a document file in batches."""
    for batches in map(batches_of, read_tables(path)):
        yield from batches
