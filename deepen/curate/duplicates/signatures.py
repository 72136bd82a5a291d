"""Signatures of the documents of one part, taken as they pass from the steps to their file.

What is kept in memory is about 200 bytes per document of the part; shingles go straight to the disk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from deepen.curate.batch.texts import from_arrow
from deepen.curate.passes.corpus import INDEX, PartFiles, save_array
from deepen.formats.documents.document_ids import pack_ids
from deepen.formats.files.atomic import HashingWriter, writing


class Signer:
    """Signatures of the documents that pass through, taken in batches; their shingles go to the file given."""

    def __init__(self, shingles: HashingWriter) -> None:
        self._shingles = shingles
        self._bands: list[np.ndarray[Any, np.dtype[np.uint64]]] = []
        self._index: list[np.ndarray[Any, np.dtype[np.void]]] = []
        self._ids: list[np.ndarray[Any, np.dtype[np.uint64]]] = []

    def sign(self, table: pa.Table) -> None:
        """Sign the documents of a table."""
        from deepen.curate.duplicates.shingles import sign  # loads numba

        signatures = sign(from_arrow(table["text"]))
        index = np.empty(table.num_rows, dtype=INDEX)
        halves = pack_ids(table["content_hash"].to_pylist())
        index["hash_high"], index["hash_low"] = halves[:, 0], halves[:, 1]
        index["num_bytes"], index["num_shingles"] = signatures.num_bytes, signatures.sizes
        self._index.append(index)
        self._ids.append(pack_ids(table["id"].to_pylist()))
        self._bands.append(signatures.bands)
        self._shingles.write(signatures.shingles)

    def save(self, files: PartFiles) -> None:
        """Write index, ids and band keys, once all documents went through."""
        from deepen.curate.duplicates.shingles import NUM_BANDS

        save_array(files.index, np.concatenate([np.empty(0, dtype=INDEX), *self._index]))
        save_array(files.ids, np.concatenate([np.empty((0, 2), dtype=np.uint64), *self._ids]))
        with writing(files.bands) as file:
            for bands in self._bands:
                # A row per document, so that the keys of one are a single read.
                file.write(np.ascontiguousarray(bands.T))
        keys = np.concatenate([np.empty((NUM_BANDS, 0), dtype=np.uint64), *self._bands], axis=1)
        rows = np.argsort(keys, axis=1)  # in whatever order where keys are equal: readers sort those
        save_array(files.sorted_rows, rows.astype(np.uint32))
        save_array(files.sorted_keys, np.take_along_axis(keys, rows, axis=1))
