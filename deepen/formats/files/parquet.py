"""Parquet files that deepen wrote, opened: what is missing or damaged is an error that names the file.

Arrow's own errors say what is wrong inside a file and not which file it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deepen.errors import DamageError
from deepen.formats.files.json_text import ANEW


@contextmanager
def opened_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A parquet file, open while the block runs. Raises ``DamageError`` when it cannot be read."""
    try:
        with path.open("rb") as handle, pq.ParquetFile(handle) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DamageError(f"`{path}` cannot be read: {error}", hint=ANEW) from error
