"""Files of prepared token rows: folders of `datasets.save_to_disk`, Arrow streams and files, parquet.

Read with pyarrow alone, a thousand rows at a time. A folder's ``state.json`` says which files belong to it and in which
order, so that a missing one is found and the caches that `datasets` leaves beside them are not taken for data.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepen.errors import SourceError
from deepen.formats.files.arrays import Array

if TYPE_CHECKING:
    import pyarrow as pa

IDS, LABELS = "input_ids", "labels"
IGNORED = -100
"""The label of a token that is no target, as in Hugging Face and PyTorch."""
_SUFFIXES = (".arrow", ".parquet")
_ROWS_AT_ONCE = 1_000


@dataclass(frozen=True)
class FixedFile:
    """One file; ``location`` is relative to the folder of all files, so that they can be moved together."""

    location: str
    path: Path


@dataclass(frozen=True)
class Block:
    """Some rows of one file."""

    first_row: int
    """Number of the first of them in the file, from 0."""
    ids: Array
    """int64[tokens], back to back."""
    labels: Array | None
    """int64[tokens]; None where the file has no such column."""
    ends: Array
    """int64[rows]: where each row ends in ``ids``."""


def fixed_files(path: str) -> list[FixedFile]:
    """The files that ``path`` (folder, file or glob) names, in their order; raises ``SourceError`` without any."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        found = [folder / name for name in _names_in(folder)]
    elif folder.is_file():
        found = [folder]
    else:
        found = sorted(Path(name) for name in glob.glob(str(folder), recursive=True) if Path(name).is_file())  # noqa: PTH207
    if not found:
        raise SourceError(f"there are no prepared rows at `{path}`", hint="give a folder of .arrow or .parquet files")
    missing = [file for file in found if not file.is_file()]
    if missing:
        raise SourceError(f"`{missing[0]}` is missing, and state.json lists it", hint="copy the whole folder again")
    # Ids of rows are made of what is below it.
    root = folder if folder.is_dir() else Path(os.path.commonpath([file.parent for file in found]))
    return [FixedFile(file.relative_to(root).as_posix(), file) for file in found]


def _names_in(folder: Path) -> list[str]:
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text()).get("splits", [])
        raise SourceError(
            f"`{folder}` holds several splits: {', '.join(splits)}",
            hint=f"give one of them, for example {folder / (splits[0] if splits else 'train')}",
        )
    state = folder / "state.json"
    listed = json.loads(state.read_text()).get("_data_files") if state.is_file() else None
    if listed:
        return [entry["filename"] for entry in listed]
    return sorted(file.name for file in folder.iterdir() if file.suffix in _SUFFIXES and file.name[0] != ".")


def check_columns(file: FixedFile) -> list[str]:
    """The columns of a file that are not read; raises ``SourceError`` when it does not hold rows of token ids."""
    with _opened(file) as (schema, _):
        return _ignored_columns(file, schema)


def bytes_per_position(file: FixedFile) -> int:
    """Bytes that a position takes in the columns that are read, before any compression."""
    with _opened(file) as (schema, _):
        return sum(schema.field(name).type.value_type.bit_width // 8 for name in (IDS, LABELS) if name in schema.names)


def read_blocks(file: FixedFile) -> Iterator[Block]:
    """The rows of a file, in order; raises ``SourceError`` naming the row from which on they cannot be read."""
    import pyarrow as pa

    first_row = 0
    with _opened(file) as (schema, batches):
        _ignored_columns(file, schema)
        try:
            for batch in batches:
                for begin in range(0, batch.num_rows, _ROWS_AT_ONCE):
                    part = batch.slice(begin, _ROWS_AT_ONCE)
                    yield _block(file, part, first_row)
                    first_row += part.num_rows
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"`{file.path}` cannot be read from row {first_row} on: {error}", hint="copy or prepare it again"
            ) from error


def _ignored_columns(file: FixedFile, schema: pa.Schema) -> list[str]:
    import pyarrow as pa

    kinds = {name: schema.field(name).type for name in (IDS, LABELS) if name in schema.names}
    for name, kind in kinds.items():
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not (is_list and pa.types.is_integer(kind.value_type)):
            raise SourceError(
                f"`{file.path}`: `{name}` is {kind}, not a list of whole numbers", hint="prepare it again"
            )
    if IDS not in kinds:
        raise SourceError(
            f"`{file.path}` has no column `{IDS}` (its columns: {', '.join(schema.names)})",
            hint="documents of text belong under `ingest.sources`; here are rows of token ids",
        )
    return [name for name in schema.names if name not in kinds]


def _block(file: FixedFile, batch: pa.RecordBatch, first_row: int) -> Block:
    ids, ends = _values(file, batch, IDS, first_row)
    if LABELS not in batch.schema.names:
        return Block(first_row, ids, None, ends)
    labels, label_ends = _values(file, batch, LABELS, first_row)
    differs = np.flatnonzero(ends != label_ends)
    if len(differs):
        raise SourceError(
            f"`{file.path}`, row {first_row + int(differs[0])}: not as many labels as ids", hint="prepare it again"
        )
    return Block(first_row, ids, labels, ends)


def _values(file: FixedFile, batch: pa.RecordBatch, name: str, first_row: int) -> tuple[Array, Array]:
    """A list column as its values, back to back, and the end of each row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = batch.column(name)
    values = column.flatten()  # of a slice only its own values, unlike `column.values`
    if column.null_count or values.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) if column.null_count else 0
        where = f"row {first_row + row}" if column.null_count else f"from row {first_row} on"
        raise SourceError(f"`{file.path}`, {where}: `{name}` is null or holds a null", hint="prepare it again")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    return values.cast(pa.int64()).to_numpy(zero_copy_only=False), np.cumsum(lengths)


@contextmanager
def _opened(file: FixedFile) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """The schema and the batches of an Arrow stream (as `datasets` writes), an Arrow file or a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.path.suffix == ".parquet":
            table = pq.ParquetFile(file.path)
            read: Sequence[str] = [name for name in (IDS, LABELS) if name in table.schema_arrow.names]
            opened = table.schema_arrow, table.iter_batches(_ROWS_AT_ONCE, columns=read)
            close = table.close
        else:
            source = pa.memory_map(str(file.path))
            # An Arrow file begins with this; a stream, as `datasets` writes, with its schema.
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if is_file else iter(reader)
            opened, close = (reader.schema, batches), source.close
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"`{file.path}` cannot be read: {error}", hint="fixed rows are Arrow streams, Arrow files or parquet"
        ) from error
    try:
        yield opened
    finally:
        close()
