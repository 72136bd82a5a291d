"""One source becomes packed rows: its documents are divided by category and length of rows, each part packed by itself.

All parts of a source lie one after another in one pair of arrays, so an id of the order needs no more than source and
row. Memory: about 60 bytes per piece of the part being packed, and 6 bytes per document for the division.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepen.engine.compiled import njit
from deepen.errors import DamageError, SourceError
from deepen.formats.documents.document_ids import pack_ids, read_document_ids
from deepen.formats.documents.documents import read_tables
from deepen.formats.files.arrays import Array
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.formats.tokens.packs import write_packs
from deepen.mix.order.permutation import mixed_all, source_key
from deepen.mix.packing.pack import pack

NO_CATEGORY = "none"
MOST_CATEGORIES = 1000


@dataclass(frozen=True)
class PackPart:
    """One source to pack."""

    shard: Path
    out: Path
    source: str
    packing: str
    lengths: tuple[int, ...]
    """Lengths of rows, in the order of the run."""
    parts: tuple[float, ...]
    """Part of the documents' tokens that goes to each length."""
    seed: int
    ids: Path
    """``documents/SOURCE.npy`` beside the shard."""
    documents: tuple[Path, ...] = ()
    """The source's curated documents, when its categories matter."""


def pack_source(part: PackPart) -> dict[str, Any]:
    """Pack one source and write its arrays; returns its file entries, counts, and the supplies in it."""
    lengths = np.asarray(IndexedDataset.open(part.shard).lengths)
    names, categories = _categories(part, len(lengths))
    of_length = _division(lengths, categories, part)
    all_rows, all_segments, supplies = [np.zeros(1, np.int64)], [], []
    first_row = 0
    for category, name in enumerate(names):
        for number, sequence_length in enumerate(part.lengths):
            members = np.flatnonzero((categories == category) & (of_length == number) & (lengths > 0))
            rows, segments = pack(lengths[members], sequence_length, part.packing)
            if len(lengths) >= 2**31:
                segments = segments.astype(np.int64)
            # The packer numbers what it was given; rows name documents of the shard.
            segments[:, 0] = members[segments[:, 0]]
            all_rows.append(rows[1:] + all_rows[-1][-1])  # one CSR over all parts, see `formats/tokens/packs.py`
            all_segments.append(segments)
            supplies.append(
                {
                    "category": name,
                    "sequence_length": sequence_length,
                    "first_row": first_row,
                    "rows": len(rows) - 1,
                    "tokens": int(segments[:, 2].sum(dtype=np.int64)),
                    "documents": len(members),
                    "pieces": len(segments),
                }
            )
            first_row += len(rows) - 1
    files = write_packs(part.out, part.source, np.concatenate(all_rows), np.concatenate(all_segments))
    return {
        "files": [file.model_dump() for file in files],
        "shard_tokens": int(lengths.sum(dtype=np.int64)),
        "supplies": supplies,
    }


def _division(lengths: Array, categories: Array, part: PackPart) -> Array:
    """int16[documents]: which length's rows a document goes to, by number.

    Documents are drawn without looking at them, by a hash of their id and the seed, so each length gets a random sample
    of every category; it ends where its part of the category's tokens is reached.
    """
    chosen = np.zeros(len(lengths), dtype=np.int16)
    if len(part.lengths) == 1:
        return chosen
    hashes = mixed_all(read_document_ids(part.ids).halves[:, 1] ^ source_key(part.seed, f"lengths of {part.source}"))
    for category in np.unique(categories):
        members = np.flatnonzero(categories == category)
        members = members[np.argsort(hashes[members], kind="stable")]
        ends = np.cumsum(lengths[members], dtype=np.int64)
        limits = np.cumsum(part.parts) * (ends[-1] if len(ends) else 0)
        middles = ends - lengths[members] / 2  # a document belongs where most of it lies
        # Rounding may put the last limit below the last middle.
        chosen[members] = np.minimum(np.searchsorted(limits, middles), len(part.lengths) - 1)
    return chosen


def _categories(part: PackPart, num_documents: int) -> tuple[list[str | None], Array]:
    """The categories of a source, sorted, and int32[documents]: which each document of the shard has, by number."""
    found = np.zeros(num_documents, dtype=np.int32)
    if not part.documents:
        return [None], found
    ids, numbers, at = read_document_ids(part.ids).halves, dict[str, int](), 0
    for halves, categories in _read_categories(part.documents):
        # The shard may lack documents that could not be encoded; the others stand in the same order.
        places = _places_in(ids, halves, at)
        found[at : at + len(places)] = [numbers.setdefault(categories[place], len(numbers)) for place in places]
        at += len(places)
    if at < num_documents:
        raise DamageError(
            f"the documents of `{part.source}` are not those that its shard was made from (document {at} is missing)",
            hint="run `deepen tokenize` again with --redo",
        )
    if len(numbers) > MOST_CATEGORIES:
        raise SourceError(
            f"mix.balance: source `{part.source}` has {len(numbers):,} categories, at most {MOST_CATEGORIES:,} can be "
            "balanced",
            hint="take another field as `category`, or leave `mix.balance` out",
        )
    names = sorted(numbers)
    if not names:
        return [None], found
    # Numbers were given as names were met; those of the sorted names do not depend on the order of the documents.
    return list(names), np.argsort([list(numbers).index(name) for name in names]).astype(np.int32)[found]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _places_in(ids: Array, halves: Array, first: int) -> Array:
    """Which rows of ``halves`` are the ids from ``first`` on, in their order."""
    places = np.empty(len(halves), np.int64)
    number = 0
    for place in range(len(halves)):
        at = first + number
        if at < len(ids) and ids[at, 0] == halves[place, 0] and ids[at, 1] == halves[place, 1]:
            places[number] = place
            number += 1
    return places[:number]


def _read_categories(paths: Sequence[Path]) -> Iterator[tuple[Array, list[str]]]:
    for path in paths:
        for table in read_tables(path, ["id", "category"]):
            names = [name or NO_CATEGORY for name in table["category"].to_pylist()]
            yield pack_ids(table["id"].to_pylist()), names
