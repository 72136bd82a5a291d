"""Parquet and Arrow files: one record per row, numbered from 1; only the wanted columns are read.

A parquet row group that cannot be read costs that group only; an Arrow file is lost from the damaged batch on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepen.ingest.files import InputFile
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Record, Reject, bad_byte, brief
from deepen.ingest.streams import FAULTS, Input, StreamError, open_seekable, stream_reject

_ROWS_PER_BATCH = 256
_ARROW_MAGIC = b"ARROW1"


def read_parquet(file: Input, reading: Reading) -> Iterator[Record | Reject]:
    """One record per row; a row group that cannot be read costs that group only."""
    try:
        with _parquet_source(file) as opened, pq.ParquetFile(opened) as parquet:
            names = set(parquet.schema_arrow.names)
            columns = None if reading.fields is None else [name for name in reading.fields if name in names]
            first_row = 1
            for group in range(parquet.num_row_groups):
                about = parquet.metadata.row_group(group)
                num_rows = about.num_rows
                if (bomb := _expands_too_far(about, columns, reading)) is not None:
                    yield Reject(f"{file.location}:{first_row}", "archive_bomb", bomb, num_rows)
                else:
                    yield from _row_group(parquet, group, columns, (file.location, first_row, num_rows))
                first_row += num_rows
    except (*FAULTS, pa.ArrowException) as error:
        yield _unreadable(file.location, error)


def _expands_too_far(about: Any, columns: Sequence[str] | None, reading: Reading) -> str | None:
    """What is wrong with a row group whose wanted columns expand more than the settings allow."""
    every = (about.column(number) for number in range(about.num_columns))
    wanted = [one for one in every if columns is None or one.path_in_schema.partition(".")[0] in columns]
    plain, packed = (
        sum(getattr(one, f"total_{kind}_size") for one in wanted) for kind in ("uncompressed", "compressed")
    )
    return f"{packed} bytes expand to {plain}" if reading.expansion.forbids(plain, packed) else None


def _parquet_source(file: Input) -> contextlib.AbstractContextManager[Any]:
    """A path where there is one: pyarrow reads it faster than a Python file."""
    return contextlib.nullcontext(file.path) if isinstance(file, InputFile) else open_seekable(file)


def _unreadable(location: str, error: Exception) -> Reject:
    if isinstance(error, StreamError):
        return stream_reject(location, error)
    return Reject(location, "unreadable_file", brief(error), loss="file")


def _row_group(
    parquet: pq.ParquetFile, group: int, columns: Sequence[str] | None, place: tuple[str, int, int]
) -> Iterator[Record | Reject]:
    """Records of one row group; ``place`` is the file's location, the group's first row and its number of rows."""
    location, first_row, num_rows = place
    done = 0
    if columns == []:  # rows without any wanted field are rejected one by one, with their places
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


def read_arrow(file: Input, reading: Reading) -> Iterator[Record | Reject]:
    """One record per row of an Arrow file (also called Feather 2) or stream, as Hugging Face data sets are stored."""
    done = 0
    try:
        with open_seekable(file) as stream:
            is_file = stream.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
            stream.seek(0)
            for batch in _batches(stream, is_file):
                yield from _arrow_rows(batch, reading, file.location, done)
                done += batch.num_rows
    except (*FAULTS, pa.ArrowException) as error:
        if done == 0:
            yield _unreadable(file.location, error)
        else:
            detail = f"the rest of the file: {brief(error)}"
            yield Reject(f"{file.location}:{done + 1}", "corrupt_batch", detail, loss="file")


def _arrow_rows(batch: Any, reading: Reading, location: str, done: int) -> Iterator[Record | Reject]:
    """Records of one batch. It is checked first: pyarrow believes what the file says, and damage would end the process.

    Texts are taken as bytes, so that one that is not UTF-8 costs its row and not the batch.
    """
    names = [name for name in batch.schema.names if reading.fields is None or name in reading.fields]
    columns = [_as_bytes(batch.column(batch.schema.names.index(name))) for name in names]
    try:
        for column in columns:
            column.validate(full=True)
    except pa.ArrowException as error:
        yield Reject(
            f"{location}:{done + 1}", "corrupt_batch", f"{batch.num_rows} rows: {brief(error)}", batch.num_rows
        )
        return
    texts = [isinstance(column, pa.BinaryArray | pa.LargeBinaryArray) for column in columns]
    for row in range(batch.num_rows):
        place = f"{location}:{done + row + 1}"
        values = {}
        try:
            for name, column, is_text in zip(names, columns, texts, strict=True):
                value = column[row].as_py()
                values[name] = value.decode() if is_text and value is not None else value
        except UnicodeDecodeError as error:
            yield Reject(place, "not_utf8", bad_byte(error))
        else:
            yield Record(place, values)


def _as_bytes(column: Any) -> Any:
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    return column.view(pa.large_binary()) if pa.types.is_large_string(column.type) else column


def _batches(stream: Any, is_file: bool) -> Iterator[Any]:
    if is_file:
        with pa.ipc.open_file(stream) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
    else:
        with pa.ipc.open_stream(stream) as reader:
            yield from reader


def _row(batch: Any, row: int, location: str) -> Record | Reject:
    try:
        values = {name: batch.column(number)[row].as_py() for number, name in enumerate(batch.schema.names)}
    except UnicodeDecodeError as error:
        return Reject(location, "not_utf8", bad_byte(error))
    return Record(location, values)
