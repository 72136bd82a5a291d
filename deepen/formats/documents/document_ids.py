"""Which document a sequence of a shard came from: ``documents/SOURCE.npy``.

uint64[num_sequences, 2]: the two halves of the document's 128-bit id, the more significant first; 16 bytes per document
instead of 32 characters, and readable at any position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from deepen.errors import DamageError
from deepen.formats.files.arrays import Array, open_array


def pack_ids(ids: Sequence[str]) -> Array:
    """Document ids (32 hex digits each) as uint64[n, 2]; raises ``ValueError`` when one is no such id."""
    digits = "".join(ids)
    if len(digits) != 32 * len(ids):
        raise ValueError("a document id has 32 hexadecimal digits")
    # Hex digits are big-endian, files are little-endian.
    return np.frombuffer(bytes.fromhex(digits), dtype=">u8").reshape(-1, 2).astype("<u8")


@dataclass(frozen=True)
class DocumentIds(Sequence[str]):
    """The ids of a shard's documents as hex strings; only what is looked at is read."""

    halves: Array
    """uint64[num_sequences, 2]."""

    def __len__(self) -> int:
        return len(self.halves)

    @overload
    def __getitem__(self, sequence: int) -> str: ...
    @overload
    def __getitem__(self, sequence: slice) -> list[str]: ...
    def __getitem__(self, sequence: int | slice) -> str | list[str]:
        found = self.halves[sequence].astype(">u8").tobytes().hex()
        return [found[at : at + 32] for at in range(0, len(found), 32)] if isinstance(sequence, slice) else found


def read_document_ids(path: Path) -> DocumentIds:
    """Open ``documents/SOURCE.npy``; raises ``DamageError`` when it is missing or of another shape."""
    halves = open_array(path)
    if halves.dtype != np.uint64 or halves.shape[1:] != (2,):
        raise DamageError(f"`{path}` holds no document ids", hint="run `deepen tokenize` again with --redo")
    return DocumentIds(halves)
