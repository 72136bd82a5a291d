"""What curation knows of all documents at once: hashes, sizes and signatures in arrays, texts stay on disk.

The first pass writes these arrays beside each part's documents; here they are laid end to end. Band keys are read one
band at a time and shingles are memory-mapped, so that what is held in memory is about 50 bytes per document.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepen.formats.atomic import HashingWriter, writing


@dataclass(frozen=True)
class PartFiles:
    """The files that the first pass makes of one part of a source, all in the folder ``partial``."""

    partial: Path
    name: str

    @property
    def documents(self) -> Path:
        """What the steps on documents kept."""
        return self.partial / f"{self.name}.kept.parquet"

    @property
    def dropped(self) -> Path:
        """What they dropped, as JSON lines."""
        return self.partial / f"{self.name}.dropped.jsonl"

    @property
    def shingles(self) -> Path:
        """Sorted 32-bit shingle hashes of all kept documents, end to end."""
        return self.partial / f"{self.name}.shingles.u32"

    @property
    def bands(self) -> Path:
        """Band keys, uint64 [bands, documents]."""
        return self.partial / f"{self.name}.bands.npy"

    @property
    def index(self) -> Path:
        """``INDEX`` of each kept document."""
        return self.partial / f"{self.name}.index.npy"

    @property
    def decisions(self) -> Path:
        """``DECISION`` for each kept document, made between the passes."""
        return self.partial / f"{self.name}.decisions.npy"

    @property
    def held_out(self) -> Path:
        """The part's held-out documents, made by the second pass."""
        return self.partial / f"{self.name}.held.parquet"


INDEX = np.dtype([("hash_high", "<u8"), ("hash_low", "<u8"), ("num_bytes", "<i8"), ("num_shingles", "<i8")])
"""Content hash (as two halves, so that numbers sort as the hex digits do), bytes of text, size of the shingle set."""


@dataclass(frozen=True)
class Corpus:
    """All n documents that the steps on documents kept, in the order of sources, parts and rows."""

    index: npt.NDArray[np.void]
    """``INDEX`` [n]."""
    source: npt.NDArray[np.int64]
    """Number of each document's source [n]."""
    starts: npt.NDArray[np.int64]
    """Where each document's shingles begin, and where the last one's end [n + 1]."""
    shingles: npt.NDArray[np.uint32]
    """Shingles of all documents, end to end (memory-mapped)."""
    band_files: tuple[Path, ...]

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.index)

    def band(self, number: int) -> npt.NDArray[np.uint64]:
        """Keys of one band, uint64 [n]: documents with equal keys may be near-duplicates."""
        return np.concatenate([np.load(path, mmap_mode="r")[number] for path in self.band_files])

    def by_content(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The given documents (ascending) sorted by content hash; equal contents stay in their order."""
        chosen = self.index[documents]
        return documents[np.lexsort((chosen["hash_low"], chosen["hash_high"]))]

    def repeats(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each of the documents, sorted by ``by_content``, has the content of the one before it."""
        chosen = self.index[documents]
        same = np.zeros(len(chosen), dtype=np.bool_)
        same[1:] = (chosen["hash_high"][1:] == chosen["hash_high"][:-1]) & (
            chosen["hash_low"][1:] == chosen["hash_low"][:-1]
        )
        return same


def open_corpus(parts: Sequence[tuple[int, PartFiles]], scratch: Path) -> Corpus:
    """The corpus of parts given as (source number, files); ``scratch`` becomes the file of all shingles."""
    indices = [np.load(files.index) for _, files in parts]
    index = np.concatenate(indices) if indices else np.zeros(0, dtype=INDEX)
    numbers = np.array([number for number, _ in parts], dtype=np.int64)
    starts = np.zeros(len(index) + 1, dtype=np.int64)
    np.cumsum(index["num_shingles"], out=starts[1:])
    with writing(scratch) as joined:
        for _, files in parts:
            _append(files.shingles, joined)
    shingles = np.memmap(scratch, dtype=np.uint32, mode="r") if starts[-1] else np.zeros(0, dtype=np.uint32)
    return Corpus(
        index=index,
        source=np.repeat(numbers, [len(own) for own in indices]),
        starts=starts,
        shingles=shingles,
        band_files=tuple(files.bands for _, files in parts),
    )


def _append(path: Path, joined: HashingWriter) -> None:
    with path.open("rb") as file:
        shutil.copyfileobj(file, joined, 1 << 20)


def save_array(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write an array as ``.npy`` atomically."""
    with writing(path) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
