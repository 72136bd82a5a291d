"""Signatures of the documents of one part, taken as they pass from the steps to their file.

What is kept in memory is about 200 bytes per document of the part; shingles go straight to the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from deepen.curate.corpus import INDEX, PartFiles, save_array
from deepen.formats.atomic import HashingWriter, writing
from deepen.formats.document_ids import pack_ids
from deepen.formats.documents import Document

_BATCH_CHARACTERS = 4_000_000


class Signer:
    """Signatures of the documents that pass through, taken in batches; their shingles go to the file given."""

    def __init__(self, shingles: HashingWriter) -> None:
        self._shingles = shingles
        self._bands: list[np.ndarray[Any, np.dtype[np.uint64]]] = []
        self._index: list[np.ndarray[Any, np.dtype[np.void]]] = []
        self._ids: list[np.ndarray[Any, np.dtype[np.uint64]]] = []

    def signing(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The same documents, signed on the way."""
        batch: list[Document] = []
        num_characters = 0
        for document in documents:
            batch.append(document)
            num_characters += len(document.text)
            if num_characters >= _BATCH_CHARACTERS:
                self._sign(batch)
                yield from batch
                batch, num_characters = [], 0
        self._sign(batch)
        yield from batch

    def _sign(self, batch: list[Document]) -> None:
        from deepen.curate.shingles import sign  # loads numba

        if not batch:
            return
        signatures = sign([document.text for document in batch])
        index = np.empty(len(batch), dtype=INDEX)
        index["hash_high"] = [int(document.content_hash[:16], 16) for document in batch]
        index["hash_low"] = [int(document.content_hash[16:], 16) for document in batch]
        index["num_bytes"] = signatures.num_bytes
        index["num_shingles"] = signatures.sizes
        self._index.append(index)
        self._ids.append(pack_ids([document.id for document in batch]))
        self._bands.append(signatures.bands)
        self._shingles.write(signatures.shingles)

    def save(self, files: PartFiles) -> None:
        """Write index, ids and band keys, once all documents went through."""
        from deepen.curate.shingles import NUM_BANDS

        save_array(files.index, np.concatenate([np.empty(0, dtype=INDEX), *self._index]))
        save_array(files.ids, np.concatenate([np.empty((0, 2), dtype=np.uint64), *self._ids]))
        with writing(files.bands) as file:
            for bands in self._bands:
                file.write(np.ascontiguousarray(bands.T))
        keys = np.concatenate([np.empty((NUM_BANDS, 0), dtype=np.uint64), *self._bands], axis=1)
        rows = np.argsort(keys, axis=1)  # in whatever order where keys are equal: readers sort those
        save_array(files.sorted_rows, rows.astype(np.uint32))
        save_array(files.sorted_keys, np.take_along_axis(keys, rows, axis=1))
