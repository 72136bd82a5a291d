"""A small, even sample of a source's documents: a few row groups spread over it, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deepen.formats.documents.documents import read_tables, row_groups
from deepen.formats.files.parquet import opened_parquet
from deepen.tokenize.vocabulary.report import Sample

SAMPLE_BYTES = 1_000_000
"""Of each source; a share of words or tokens is then known to within a few in a thousand."""
_ROW_GROUPS = 16
_DOCUMENT_CHARACTERS = 20_000
_GOLDEN_RATIO = 0.6180339887498949


def sample_source(name: str, role: str, files: Sequence[Path], most_bytes: int = SAMPLE_BYTES) -> list[Sample]:
    """About ``most_bytes`` of text from all over a source, one sample per language in alphabetical order.

    The same documents give the same sample. Of a document the first 20,000 characters are taken.
    """
    groups = [(path, at) for path in files for at in range(len(row_groups(path)))]
    stride = max(1, -(-len(groups) // _ROW_GROUPS))  # rounded up: no more than so many groups, spread to the end
    chosen = groups[::stride]
    texts: dict[str | None, list[str]] = {}
    for path, at in chosen:
        for language, text in _rows(path, at, most_bytes // max(1, len(chosen))):
            texts.setdefault(language, []).append(text)
    return [Sample(name, role, language, tuple(texts[language])) for language in sorted(texts, key=lambda x: x or "")]


def _rows(path: Path, row_group: int, most_bytes: int) -> list[tuple[str | None, str]]:
    """Documents of a row group that hold about ``most_bytes``, evenly chosen."""
    with opened_parquet(path) as file:
        table = file.read_row_group(row_group, columns=["language", "text"])
    heads = pc.utf8_slice_codeunits(table["text"], 0, _DOCUMENT_CHARACTERS)
    num_bytes = pc.sum(pc.binary_length(heads)).as_py() or 0
    # Multiples of the golden ratio lie evenly on the circle: no rhythm of the documents (every second one English, say)
    # can meet the choice, as it would meet every k-th document.
    is_taken = np.arange(len(heads)) * _GOLDEN_RATIO % 1 < most_bytes / max(1, num_bytes)
    taken = table.select(["language"]).append_column("text", heads).filter(pa.array(is_taken))
    return list(zip(taken["language"].to_pylist(), taken["text"].to_pylist(), strict=True))


def num_text_bytes(files: Sequence[Path]) -> int:
    """Bytes of all text in document files."""
    return sum(table["text"].nbytes for path in files for table in read_tables(path, ["text"]))
