"""What curation knows of all documents at once: hashes, sizes and signatures; texts and shingles stay on disk.

The first pass writes these arrays beside each part's documents; here they are laid end to end. Shingle sets and band
keys are read from the files of their parts when they are needed (never mapped: mapped pages count as memory), so that
what is held is under 100 bytes per document.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepen.formats.files.atomic import writing

_ROWS_AT_ONCE = 32  # reading up to so many for each one wanted costs less than a read of its own

Positions = npt.NDArray[np.int64]
"""Documents by their number in the corpus."""


class _File:
    """A file of a part, named by its ending."""

    def __init__(self, ending: str) -> None:
        self._ending = ending

    def __get__(self, part: PartFiles, _kind: type[PartFiles]) -> Path:
        return part.partial / f"{part.name}.{self._ending}"


@dataclass(frozen=True)
class PartFiles:
    """The files that the first pass makes of one part of a source, all in the folder ``partial``."""

    partial: Path
    name: str

    documents = _File("kept.parquet")
    """What the steps on documents kept."""
    dropped = _File("dropped.parquet")
    """What they dropped."""
    shingles = _File("shingles.u32")
    """Sorted 32-bit shingle hashes of all kept documents, end to end."""
    bands = _File("bands.u64")
    """Band keys of each document, uint64 [documents, bands], without a header."""
    sorted_keys = _File("sorted.npy")
    """The same keys sorted within each band, uint64 [bands, documents]: any range of keys is one slice."""
    sorted_rows = _File("rows.npy")
    """The row of the document of each sorted key, uint32 [bands, documents]."""
    ids = _File("ids.npy")
    """Document ids, uint64 [documents, 2]."""
    index = _File("index.npy")
    """``INDEX`` of each kept document."""
    decisions = _File("decisions.npy")
    """``DECISION`` for each kept document, made between the passes."""
    held_out = _File("held.parquet")
    """The part's held-out documents, made by the second pass."""


INDEX = np.dtype([("hash_high", "<u8"), ("hash_low", "<u8"), ("num_bytes", "<i8"), ("num_shingles", "<i8")])
"""Content hash (as two halves, so that numbers sort as the hex digits do), bytes of text, size of the shingle set."""


@dataclass(frozen=True)
class Sets:
    """Shingle sets of some documents: that of the i-th is ``shingles[starts[i] : starts[i + 1]]``, sorted uint32."""

    starts: npt.NDArray[np.int64]
    shingles: npt.NDArray[np.uint32]


@dataclass(frozen=True)
class StoredSets:
    """The shingle sets and band keys of all documents, on disk, in the order of parts and rows."""

    parts: tuple[PartFiles, ...]
    starts: npt.NDArray[np.int64]
    """Where each document's shingles begin if all were laid end to end, and where the last one's end [n + 1]."""
    first_documents: Positions
    """Number of each part's first document, and of all documents at the end."""

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.starts) - 1

    def sets(self, documents: Positions) -> Sets:
        """The sets of some documents, in the order given."""
        starts = np.zeros(len(documents) + 1, dtype=np.int64)
        np.cumsum(self.starts[documents + 1] - self.starts[documents], out=starts[1:])
        shingles = np.empty(int(starts[-1]), dtype=np.uint32)
        for number, chosen in self.by_part(documents):
            begins = self.starts[documents[chosen]] - self.starts[self.first_documents[number]]
            _gather(self.parts[number].shingles, begins, shingles, starts[chosen], starts[chosen + 1])
        return Sets(starts, shingles)

    def part_sets(self, number: int) -> Sets:
        """The sets of all documents of one part."""
        first, last = self.first_documents[number], self.first_documents[number + 1]
        shingles = np.fromfile(self.parts[number].shingles, dtype=np.uint32)
        return Sets(self.starts[first : last + 1] - self.starts[first], shingles)

    def bands(self, documents: Positions, num_bands: int) -> npt.NDArray[np.uint64]:
        """Band keys of some documents, uint64 [documents, bands]."""
        keys = np.empty((len(documents), num_bands), dtype=np.uint64)
        for number, chosen in self.by_part(documents):
            rows = documents[chosen] - self.first_documents[number]
            first, span = int(rows[0]), int(rows[-1] - rows[0]) + 1
            if span <= _ROWS_AT_ONCE * len(rows):  # one read of all between costs less than one each
                offset = first * num_bands * keys.itemsize
                stretch = np.fromfile(self.parts[number].bands, np.uint64, span * num_bands, offset=offset)
                keys[chosen] = stretch.reshape(span, num_bands)[rows - first]
                continue
            flat = keys.reshape(-1)
            _gather(self.parts[number].bands, rows * num_bands, flat, chosen * num_bands, (chosen + 1) * num_bands)
        return keys

    def by_part(self, documents: Positions) -> list[tuple[int, Positions]]:
        """Which of the documents (by their place in the list) lie in which part, each list ascending by document."""
        order = np.argsort(documents, kind="stable")
        cuts = np.searchsorted(documents[order], self.first_documents)
        pieces = [(number, order[cuts[number] : cuts[number + 1]]) for number in range(len(self.parts))]
        return [(number, chosen) for number, chosen in pieces if len(chosen)]


def _gather(path: Path, begins: Positions, out: npt.NDArray[Any], places: Positions, ends: Positions) -> None:
    """Read items of a file of numbers from ``begins[i]`` into ``out[places[i] : ends[i]]``."""
    width = out.itemsize
    data = memoryview(out.data).cast("B")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for begin, place, end in zip(begins.tolist(), places.tolist(), ends.tolist(), strict=True):
            # Straight into its place, without a seek.
            num_read = os.preadv(descriptor, [data[place * width : end * width]], begin * width)
            assert num_read == (end - place) * width, f"`{path}` is shorter than its index says"
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Corpus:
    """All n documents that the steps on documents kept, in the order of sources, parts and rows."""

    index: npt.NDArray[np.void]
    """``INDEX`` [n]."""
    source: npt.NDArray[np.int64]
    """Number of each document's source [n]."""
    stored: StoredSets
    pair_files: tuple[Path, ...]
    """Files of ``PAIR``: pairs of near-duplicates that suffice to join all clusters."""
    names: tuple[str, ...] = ()
    """Names of the sources by number, where steps have a setting for each."""

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.index)

    def ids(self, documents: Positions) -> npt.NDArray[np.uint64]:
        """Ids of some documents, uint64 [documents, 2]."""
        found = np.empty((len(documents), 2), dtype=np.uint64)
        for number, chosen in self.stored.by_part(documents):
            own = np.load(self.stored.parts[number].ids, mmap_mode="r")
            found[chosen] = own[documents[chosen] - self.stored.first_documents[number]]
        return found

    def by_content(self, documents: Positions) -> Positions:
        """The given documents (ascending) sorted by content hash; equal contents stay in their order."""
        chosen = self.index[documents]
        return documents[np.lexsort((chosen["hash_low"], chosen["hash_high"]))]

    def repeats(self, documents: Positions) -> npt.NDArray[np.bool_]:
        """Whether each of the documents, sorted by ``by_content``, has the content of the one before it."""
        chosen = self.index[documents]
        same = np.zeros(len(chosen), dtype=np.bool_)
        same[1:] = (chosen["hash_high"][1:] == chosen["hash_high"][:-1]) & (
            chosen["hash_low"][1:] == chosen["hash_low"][:-1]
        )
        return same


def open_stored(parts: Sequence[PartFiles]) -> StoredSets:
    """The sets of all parts, in the order given; nothing but sizes is read."""
    sizes = [np.load(files.index)["num_shingles"] for files in parts]
    first_documents = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(own) for own in sizes], out=first_documents[1:])
    starts = np.zeros(int(first_documents[-1]) + 1, dtype=np.int64)
    np.cumsum(np.concatenate(sizes) if sizes else [], out=starts[1:])
    return StoredSets(tuple(parts), starts, first_documents)


def open_corpus(
    parts: Sequence[tuple[int, PartFiles]], pair_files: Sequence[Path], names: Sequence[str] = ()
) -> Corpus:
    """The corpus of parts given as (source number, files), from sources of these names."""
    indices = [np.load(files.index) for _, files in parts]
    numbers = np.array([number for number, _ in parts], dtype=np.int64)
    return Corpus(
        index=np.concatenate([np.zeros(0, dtype=INDEX), *indices]),
        source=np.repeat(numbers, [len(own) for own in indices]),
        stored=open_stored([files for _, files in parts]),
        pair_files=tuple(pair_files),
        names=tuple(names),
    )


def save_array(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write an array as ``.npy`` atomically."""
    with writing(path) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
