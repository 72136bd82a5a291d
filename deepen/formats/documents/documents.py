"""Documents: one row of text with its origin, in parquet (zstd).

Reading and writing stream row groups, so memory is flat in corpus size; writing is deterministic, so that a stage that
is run again after a kill gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from deepen.formats.files.atomic import FileEntry, HashingWriter, writing
from deepen.formats.files.parquet import opened_parquet

_ROWS_PER_GROUP = 1_000
_CHARACTERS_PER_GROUP = 16_000_000
"""A row group ends at either limit, so that memory stays flat for books as well as for tweets."""

SPANS_TYPE = pa.list_(
    pa.struct(
        [
            pa.field("role", pa.string(), nullable=False),
            pa.field("begin", pa.int32(), nullable=False),
            pa.field("end", pa.int32(), nullable=False),
        ]
    )
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("language", pa.string()),
        pa.field("licence", pa.string()),
        pa.field("scores", pa.map_(pa.string(), pa.float64())),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("meta", pa.map_(pa.string(), pa.string())),
        pa.field("spans", SPANS_TYPE),
    ]
)


CALL_ROLE = "call"
"""Calls of tools: a JSON list of objects with ``name``, ``arguments`` and perhaps ``id``. Behind the words of an
assistant they belong to the same turn."""
ROLES = ("system", "user", "assistant", CALL_ROLE, "tool", "prompt", "target")
"""Who a part of a text belongs to: the turns of a conversation, or the two halves of a prompt with its answer."""
TRAINED_ROLES = ("assistant", "target")
"""The roles whose words are learned; the others are read and carry no loss."""


class Span(NamedTuple):
    """Characters ``begin`` up to ``end`` of a document's text belong to ``role`` (one of ``ROLES``)."""

    role: str
    begin: int
    end: int


@dataclass(frozen=True)
class Document:
    """A text with its origin. ``id`` is stable: a hash of source name and location relative to the source root."""

    id: str
    text: str
    source: str
    category: str | None = None
    language: str | None = None
    licence: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    """What curation rules measured, by ``rule.quantity``."""
    content_hash: str = ""
    meta: dict[str, str] = field(default_factory=dict)
    """``location`` (file and position inside it) and anything a reader found worth keeping."""
    spans: tuple[Span, ...] | None = None
    """Whose words are where: ascending, disjoint, possibly empty ranges of ``text``, with separators between them. None
    for plain text, all of which is trained."""


def document_id(source: str, location: str) -> str:
    """The id of the document at ``location`` (relative to the source root) of ``source``: 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(f"{source}\0{location}".encode())


def content_hash(text: str) -> str:
    """Hash of a text's UTF-8 bytes: 32 hex digits, equal for equal texts."""
    return xxhash.xxh3_128_hexdigest(text.encode())


def write_documents(path: Path, documents: Iterable[Document], root: Path) -> tuple[FileEntry, int]:
    """Write documents to one parquet file; returns its entry (named relative to ``root``) and their number."""
    return write_tables(path, map(table_of, _groups(documents)), root, SCHEMA)


def write_tables(path: Path, tables: Iterable[pa.Table], root: Path, schema: pa.Schema) -> tuple[FileEntry, int]:
    """Write Arrow tables of ``schema`` to one parquet file, a row group each; returns its entry and number of rows."""
    num_rows = 0
    with table_writer(path, schema) as (writer, file):
        for table in tables:
            writer.write_table(table)
            num_rows += table.num_rows
    return file.entry(path.relative_to(root).as_posix()), num_rows


@contextmanager
def table_writer(
    path: Path, schema: pa.Schema, *, scratch: bool = False
) -> Iterator[tuple[pq.ParquetWriter, HashingWriter]]:
    """A parquet file, complete or absent; ``scratch``: soon read again and deleted, so fast rather than small."""
    options: dict[str, Any] = {"compression": "zstd", "compression_level": 3}
    if scratch:
        options = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}
    with writing(path) as file, pq.ParquetWriter(pa.PythonFile(file, mode="w"), schema, **options) as writer:
        yield writer, file


def table_of(documents: Sequence[Document]) -> pa.Table:
    """Documents as a table of ``SCHEMA``."""
    return pa.Table.from_pylist([_row(document) for document in documents], schema=SCHEMA)


def _row(document: Document) -> dict[str, Any]:
    row = dict(vars(document))
    row["scores"], row["meta"] = list(document.scores.items()), list(document.meta.items())
    row["spans"] = None if document.spans is None else [span._asdict() for span in document.spans]
    return row


def documents_of(rows: Iterable[dict[str, Any]]) -> Iterator[Document]:
    """The documents of rows as Arrow gives them (dictionaries by column name), which are changed."""
    for row in rows:
        row["scores"], row["meta"] = dict(row["scores"] or ()), dict(row["meta"] or ())
        if row.get("spans") is not None:
            row["spans"] = tuple(Span(**span) for span in row["spans"])
        yield Document(**row)


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    num_characters = 0
    for document in documents:
        group.append(document)
        num_characters += len(document.text)
        if len(group) == _ROWS_PER_GROUP or num_characters >= _CHARACTERS_PER_GROUP:
            yield group
            group, num_characters = [], 0
    if group:
        yield group


def regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows of tables with a ``text`` in tables the size of a row group, whatever came together before."""
    pending: list[pa.Table] = []
    rows, num_bytes = 0, 0
    for table in tables:
        begin = 0
        for row, size in enumerate(pc.binary_length(table["text"]).to_pylist()):
            rows, num_bytes = rows + 1, num_bytes + size
            if rows == _ROWS_PER_GROUP or num_bytes >= _CHARACTERS_PER_GROUP:
                # Slices share the memory of their tables; here they are copied once, and the tables can go.
                yield pa.concat_tables([*pending, table.slice(begin, row + 1 - begin)]).combine_chunks()
                pending, begin, rows, num_bytes = [], row + 1, 0, 0
        if begin < table.num_rows:
            pending.append(table.slice(begin))
    if pending:
        yield pa.concat_tables(pending).combine_chunks()


def read_documents(path: Path) -> Iterator[Document]:
    """Stream the documents of one parquet file in order."""
    for table in read_tables(path):
        yield from documents_of(table.to_pylist())


def read_tables(
    path: Path, columns: Sequence[str] | None = None, groups: tuple[int, int] | None = None
) -> Iterator[pa.Table]:
    """Stream a document file as Arrow tables of one row group each, optionally only some columns.

    ``groups``: only the row groups from the first up to (not with) the second number.
    """
    with opened_parquet(path) as file:
        for index in range(*(groups or (0, file.num_row_groups))):
            yield file.read_row_group(index, columns=columns, use_threads=False)  # parts run side by side already


def row_groups(path: Path) -> list[tuple[int, int]]:
    """Number of documents and of uncompressed bytes of each row group, from the footer alone."""
    with opened_parquet(path) as file:
        found = (file.metadata.row_group(index) for index in range(file.num_row_groups))
        return [(int(group.num_rows), int(group.total_byte_size)) for group in found]


def num_documents_in(path: Path) -> int:
    """Number of documents in a parquet file, from its footer alone."""
    with opened_parquet(path) as file:
        return int(file.metadata.num_rows)


def roles_in(path: Path) -> set[str]:
    """The roles that the spans of a file's documents have; none for plain text."""
    found: set[str] = set()
    with opened_parquet(path) as file:
        if "spans" not in file.schema_arrow.names:
            return found
        for index in range(file.num_row_groups):
            spans = file.read_row_group(index, columns=["spans"])["spans"]
            if spans.null_count < len(spans):  # most files have no spans at all
                flat = spans.combine_chunks().flatten()
                found.update(flat.field("role").unique().to_pylist())
    return found


def document_files(directory: Path, source: str | None = None) -> list[Path]:
    """The document files under ``directory`` in their fixed order, of one source (``NAME-00000.parquet``) or of all."""
    # A glob would take the parts of `notes-2023` for parts of `notes`.
    part = re.compile((".+" if source is None else re.escape(source)) + r"-\d{5,}\.parquet")
    return sorted((path for path in directory.glob("*.parquet") if part.fullmatch(path.name)), key=_part_order)


def _part_order(path: Path) -> tuple[str, int]:
    source, _, part = path.stem.rpartition("-")
    return source, int(part)  # as a number: of more than 99,999 parts names do not sort
