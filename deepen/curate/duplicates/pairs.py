"""Pairs of near-duplicates: candidates from MinHash bands, each verified exactly, written to disk.

The work is cut into parts by band and by range of keys; a part reads its slice of every file's sorted keys, so its
memory depends on neither corpus nor workers. Documents with equal keys form a group. Every two of a group are
compared, unless they met in an earlier band or are joined already; in a group of a hundred thousand pages of one
template a page is compared with the latest 1,024 that resembled none before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepen.curate.duplicates.shingles import NUM_BANDS, similar
from deepen.curate.passes.corpus import PartFiles, Positions, StoredSets, open_stored, save_array
from deepen.engine.compiled import njit

SIMILARITY = 0.8
"""Jaccard similarity of 5-word shingles from which two documents count as the same text (Lee et al. 2022 use 0.8)."""
PAIR = np.dtype([("first", "<i8"), ("second", "<i8"), ("similarity", "<f8")])
"""Two documents (the lower number first) and their exact Jaccard similarity."""

_DOCUMENTS_PER_PART = 1_000_000
_BANDS_TOGETHER_UP_TO = 20_000  # documents: below, reading the files for each band would take longer than comparing
_DOCUMENTS_PER_BLOCK, _SHINGLES_PER_BLOCK = 16_384, 4_000_000
# Not above `_NUM_COMPARED`: a group that is not large fits into the ring as a whole, so in it every two meet.
_LARGE_GROUP = 1024
_NUM_COMPARED = 1024


@dataclass(frozen=True)
class PairPart:
    """A range of bands and the ``slice_number``-th of ``num_slices`` equal ranges of keys."""

    partial: str
    parts_file: str
    first_band: int
    last_band: int
    slice_number: int
    num_slices: int
    weakest: float
    """Least similarity of a pair that is written down."""
    strongest: float
    """Similarity from which documents count as joined and need not be compared again."""
    fingerprint: str

    @property
    def path(self) -> Path:
        """Where the pairs go."""
        return Path(self.partial) / f"pairs-{self.first_band:02d}-{self.slice_number:05d}.npy"


def pair_parts(num_documents: int, template: PairPart) -> list[PairPart]:
    """The parts of a corpus of this size: few documents are not worth a process per band."""
    num_slices = max(1, -(-num_documents // _DOCUMENTS_PER_PART))
    width = NUM_BANDS if num_documents <= _BANDS_TOGETHER_UP_TO else 1
    fields = dict(vars(template), num_slices=num_slices)
    return [
        PairPart(**{**fields, "first_band": band, "last_band": band + width, "slice_number": number})
        for band in range(0, NUM_BANDS, width)
        for number in range(num_slices)
    ]


def find_pairs(part: PairPart) -> dict[str, Any]:
    """Write the part's pairs to ``part.path``; returns how many there are."""
    names = Path(part.parts_file).read_text().split()
    stored = open_stored([PartFiles(Path(part.partial), name) for name in names])
    found = [
        pairs
        for band in range(part.first_band, part.last_band)
        for pairs in _pairs_of_band(stored, band, part)
        if len(pairs)
    ]
    save_array(part.path, np.concatenate([np.empty(0, dtype=PAIR), *found]))
    return {"pairs": sum(map(len, found))}


def _pairs_of_band(stored: StoredSets, band: int, part: PairPart) -> Iterator[npt.NDArray[np.void]]:
    documents, groups = _groups(stored, band, part.slice_number, part.num_slices)
    documents, groups = _without_known_pairs(stored, band, documents, groups)
    sizes = np.bincount(groups) if len(groups) else np.zeros(0, dtype=np.int64)
    limits = np.array([part.weakest, part.strongest])
    compared = np.zeros(0, dtype=np.int64)
    for begin, end in blocks(stored, documents):
        # A group may go on from one block to the next; what it is still to be compared with is carried over.
        if len(compared) and groups[begin] != groups[begin - 1]:
            compared = compared[:0]
        chosen = np.concatenate([compared, documents[begin:end]])
        own_groups = np.concatenate([np.full(len(compared), groups[begin]), groups[begin:end]])
        sets, keys = stored.sets(chosen), stored.bands(chosen, NUM_BANDS)
        pairs, ring = _compare_groups(
            own_groups, sizes[own_groups] > _LARGE_GROUP, len(compared), keys, band, sets.starts, sets.shingles, limits
        )
        compared = chosen[ring]
        result = np.empty(len(pairs), dtype=PAIR)
        one, other = chosen[pairs[:, 0].astype(np.int64)], chosen[pairs[:, 1].astype(np.int64)]
        result["first"], result["second"] = np.minimum(one, other), np.maximum(one, other)
        result["similarity"] = pairs[:, 2]
        yield result


def _without_known_pairs(
    stored: StoredSets, band: int, documents: Positions, groups: Positions
) -> tuple[Positions, Positions]:
    """Leave out groups of two that met in an earlier band, as most did, so that their sets are not read again."""
    if not len(groups):
        return documents, groups
    in_pair = (np.bincount(groups) == 2)[groups]
    firsts = np.flatnonzero(in_pair)[::2]  # the two of a group stand side by side
    known = np.zeros(len(documents), dtype=np.bool_)
    for begin in range(0, len(firsts), _DOCUMENTS_PER_BLOCK):
        own = firsts[begin : begin + _DOCUMENTS_PER_BLOCK]
        one, other = stored.bands(documents[own], NUM_BANDS), stored.bands(documents[own + 1], NUM_BANDS)
        met = np.any(one[:, :band] == other[:, :band], axis=1)
        known[own], known[own + 1] = met, met
    return documents[~known], groups[~known]


def blocks(stored: StoredSets, documents: Positions) -> Iterator[tuple[int, int]]:
    """Cut a list of documents into stretches whose shingles fit into little memory (always at least one document)."""
    sizes = stored.starts[documents + 1] - stored.starts[documents]
    ends = np.cumsum(sizes)
    begin = 0
    while begin < len(documents):
        before = ends[begin - 1] if begin else 0
        end = int(np.searchsorted(ends, before + _SHINGLES_PER_BLOCK, side="right"))
        end = min(max(end, begin + 1), begin + _DOCUMENTS_PER_BLOCK)
        yield begin, end
        begin = end


def _groups(stored: StoredSets, band: int, slice_number: int, num_slices: int) -> tuple[Positions, Positions]:
    """Documents that share their key with another, sorted by key and number, and the number of each one's group."""
    # Python numbers, since 2**64 does not fit an uint64: `high` is the last key of the slice, not the one after it.
    low, high = (2**64 * slice_number // num_slices, 2**64 * (slice_number + 1) // num_slices - 1)
    keys, documents = [], []
    for number, files in enumerate(stored.parts):
        # Keys are hashes, so equal ranges of them hold about equally many documents; only the slice is read.
        own = np.load(files.sorted_keys, mmap_mode="r")[band]
        begin, end = (
            np.searchsorted(own, np.array([low], np.uint64)),
            np.searchsorted(own, np.array([high], np.uint64), "right"),
        )
        chosen = slice(int(begin[0]), int(end[0]))
        keys.append(np.array(own[chosen]))
        rows = np.load(files.sorted_rows, mmap_mode="r")[band][chosen].astype(np.int64)
        documents.append(rows + stored.first_documents[number])
    all_keys = np.concatenate([np.empty(0, np.uint64), *keys])
    order = np.argsort(all_keys)
    ordered = all_keys[order]
    same_as_before = np.zeros(len(ordered), dtype=np.bool_)
    same_as_before[1:] = ordered[1:] == ordered[:-1]
    shared = same_as_before.copy()
    shared[:-1] |= same_as_before[1:]  # the first of a group equals the one after it
    groups = np.cumsum(~same_as_before[shared]) - 1
    found = np.concatenate([np.empty(0, np.int64), *documents])[order[shared]]
    return found[np.lexsort((found, groups))], groups  # `argsort` leaves equal keys in any order


@njit(cache=True)
def _compare_groups(groups, is_large, num_carried, keys, band, starts, shingles, limits):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Compare within groups; the first ``num_carried`` documents belong to the first group and were compared already.

    Returns rows of (document, document, similarity), and the documents that the rest of the last group, if it goes on,
    is to be compared with.
    """
    num_documents = len(groups)
    pairs = np.empty((256, 3), dtype=np.float64)
    num_pairs = 0
    # Of this call's documents: what was joined before is compared again, which changes nothing.
    parents = np.arange(num_documents)
    ring = np.empty(_NUM_COMPARED, dtype=np.int64)
    num_in_ring = 0
    for document in range(num_documents):
        if document == 0 or groups[document] != groups[document - 1]:
            num_in_ring = 0
        if document >= num_carried:
            own = shingles[starts[document] : starts[document + 1]]
            for place in range(min(num_in_ring, _NUM_COMPARED)):
                other = ring[place]
                # What a chain of strong pairs joins is one cluster at every similarity asked for: no need to compare.
                if _met_before(keys[document], keys[other], band) or root(parents, document) == root(parents, other):
                    continue
                similarity = similar(own, shingles[starts[other] : starts[other + 1]], limits[0])
                if similarity == 0.0:
                    continue
                if num_pairs == len(pairs):  # twice as long each time: a constant cost per pair
                    larger = np.empty((2 * num_pairs, 3), dtype=np.float64)
                    larger[:num_pairs] = pairs
                    pairs = larger
                pairs[num_pairs, 0], pairs[num_pairs, 1], pairs[num_pairs, 2] = other, document, similarity
                num_pairs += 1
                if similarity >= limits[1]:
                    # Later root below earlier root: a document that is still its own root resembled none before it.
                    parents[root(parents, document)] = root(parents, other)
        # In a large group the earlier one stands for those that resemble it: the ring has room for others.
        if document < num_carried or not is_large[document] or root(parents, document) == document:
            ring[num_in_ring % _NUM_COMPARED] = document
            num_in_ring += 1
    return pairs[:num_pairs], ring[: min(num_in_ring, _NUM_COMPARED)].copy()


@njit(cache=True)
def _met_before(first, second, band):  # type: ignore[no-untyped-def]
    """Whether two documents shared a key in an earlier band, where they were compared."""
    for number in range(band):  # noqa: SIM110 - numba has no `any` over a generator
        if first[number] == second[number]:
            return True
    return False


@njit(cache=True)
def root(parents, document):  # type: ignore[no-untyped-def]
    """The document that a cluster is named after; the ways to it become shorter."""
    while parents[document] != document:
        # Path halving: each look leaves the way to the root half as long, so roots stay a few steps away.
        parents[document] = parents[parents[document]]
        document = parents[document]
    return document
