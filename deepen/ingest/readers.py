"""One reader per format: a file in, records and rejects out, streaming, in the order of the file.

``READERS`` at the bottom names them. A reader is given the names of the fields that are wanted, so that a format that
stores columns need not read the others; it may yield more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepen.ingest.files import InputFile
from deepen.ingest.read_csv import read_csv
from deepen.ingest.records import (
    FAULTS,
    MAX_RECORD_BYTES,
    Record,
    Reject,
    brief,
    decode,
    lines_of,
    open_stream,
    stream_reject,
)

_ROWS_PER_BATCH = 256

Reader = Callable[[InputFile, Sequence[str] | None], Iterator[Record | Reject]]


def read_text(file: InputFile, fields: Sequence[str] | None = None) -> Iterator[Record | Reject]:
    """The whole file as one record with the field ``text``."""
    try:
        with open_stream(file.path) as stream:
            data = stream.read(MAX_RECORD_BYTES + 1)
    except FAULTS as error:
        yield stream_reject(file.location, error)
        return
    if len(data) > MAX_RECORD_BYTES:
        yield Reject(file.location, "record_too_long", f"more than {MAX_RECORD_BYTES} bytes")
        return
    text = decode(data.removeprefix(b"\xef\xbb\xbf"), file.location)
    yield text if isinstance(text, Reject) else Record(file.location, {"text": text})


def read_jsonl(file: InputFile, fields: Sequence[str] | None = None) -> Iterator[Record | Reject]:
    """One record per line that is not blank; a damaged line costs that line only."""
    number = 0
    try:
        with open_stream(file.path) as stream:
            for number, line in lines_of(stream):
                if line is None or line.strip():
                    yield _json_record(f"{file.location}:{number}", line)
    except FAULTS as error:
        yield stream_reject(f"{file.location}:{number + 1}", error)


def _json_record(location: str, line: bytes | None) -> Record | Reject:
    if line is None:
        return Reject(location, "record_too_long", f"more than {MAX_RECORD_BYTES} bytes")
    text = decode(line, location)
    if isinstance(text, Reject):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Reject(location, "invalid_json", brief(error))
    if not isinstance(value, dict):
        return Reject(location, "not_an_object", f"a JSON {type(value).__name__}, not an object")
    return Record(location, value)


def read_parquet(file: InputFile, fields: Sequence[str] | None = None) -> Iterator[Record | Reject]:
    """One record per row, numbered from 1; a row group that cannot be read costs that group only."""
    try:
        with pq.ParquetFile(file.path) as parquet:
            names = set(parquet.schema_arrow.names)
            columns = None if fields is None else [name for name in fields if name in names]
            first_row = 1
            for group in range(parquet.num_row_groups):
                num_rows = parquet.metadata.row_group(group).num_rows
                yield from _row_group(parquet, group, columns, (file.location, first_row, num_rows))
                first_row += num_rows
    except (OSError, pa.ArrowException) as error:
        yield Reject(file.location, "unreadable_file", brief(error))


def _row_group(
    parquet: pq.ParquetFile, group: int, columns: Sequence[str] | None, place: tuple[str, int, int]
) -> Iterator[Record | Reject]:
    """Records of one row group; ``place`` is the file's location, the group's first row and its number of rows."""
    location, first_row, num_rows = place
    done = 0
    if columns == []:
        yield from (Record(f"{location}:{first_row + row}", {}) for row in range(num_rows))
        return
    try:
        for batch in parquet.iter_batches(batch_size=_ROWS_PER_BATCH, row_groups=[group], columns=columns):
            for row in range(batch.num_rows):
                yield _row(batch, row, f"{location}:{first_row + done}")
                done += 1
    except (OSError, pa.ArrowException) as error:
        lost = num_rows - done
        yield Reject(f"{location}:{first_row + done}", "corrupt_row_group", f"{lost} rows: {brief(error)}", lost)


def _row(batch: Any, row: int, location: str) -> Record | Reject:
    try:
        values = {name: batch.column(number)[row].as_py() for number, name in enumerate(batch.schema.names)}
    except UnicodeDecodeError as error:
        return Reject(location, "not_utf8", f"byte 0x{error.object[error.start]:02x} at position {error.start}")
    return Record(location, values)


READERS: dict[str, Reader] = {
    "text": read_text,
    "markdown": read_text,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
}
