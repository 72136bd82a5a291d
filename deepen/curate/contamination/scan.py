"""Looking for test items in documents that are trained already: what `decontaminate` would have dropped, and for what.

Nothing is taken out any more; the scores of the items that are found are told apart. A document file is a part; of each
only its hits come back, so memory does not grow with the documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deepen.curate.contamination.decontaminate import Decontaminate
from deepen.curate.contamination.item_index import MEASURES, Index, index_of
from deepen.engine.map_parts import map_parts
from deepen.formats.documents.document_ids import DocumentIds, pack_ids
from deepen.formats.documents.documents import document_files, num_documents_in, read_tables
from deepen.formats.documents.found_items import Found, Hit, ProbeItem
from deepen.formats.files.arrays import Array, open_array, write_array
from deepen.formats.files.atomic import write_bytes
from deepen.formats.workers import Workers

SCAN_FORMAT = 1
"""Raised when the same items and documents would give other hits."""
_FIRST_DOCUMENTS = 5
_ITEMS = "items.json"
_DEFAULTS = Decontaminate(against=("",))


HIT = np.dtype([("item", "<u4"), ("measure", "u1"), ("value", "<f8"), ("document", "<u8", (2,))])
"""An item in a document: the place of the strongest measure in ``MEASURES``, its value, the halves of the id."""


@dataclass(frozen=True)
class TrainedDocuments:
    """The documents that are looked through."""

    directory: Path
    """The document files of ``curate``: of all sources but those that are only watched."""
    fingerprint: str
    """Of ``curate``."""
    trained: Callable[[Array], Array] | None = None
    """Which of some documents, ids as uint64[n, 2], were in a batch, bool[n]; None: all."""


@dataclass(frozen=True)
class ScanPart:
    """One document file."""

    documents: str
    out: str
    """File of its hits."""
    items: str
    """File of the items' texts."""
    items_hash: str
    fingerprint: str


def scan_documents(
    items: Sequence[ProbeItem], scratch: Path, *, documents: TrainedDocuments, workers: Workers
) -> Found:
    """Look for items by the measures of ``decontaminate`` with its default settings.

    ``scratch`` keeps what is done, so that the same search goes on where it was interrupted; the caller removes it.
    """
    texts = json.dumps([item.texts for item in items], ensure_ascii=False)
    entry, files = write_bytes(scratch / _ITEMS, texts.encode()), document_files(documents.directory)
    parts = [
        ScanPart(str(path), str(scratch / f"{path.stem}.npy"), str(scratch / _ITEMS), entry.hash, documents.fingerprint)
        for path in files
    ]
    map_parts(
        scan_part,
        parts,
        workers=workers,
        ledger=scratch / "ledger",
        what="contamination scan",
        unit="documents",
        sizes=[float(num_documents_in(path)) for path in files],
    )
    hits = np.concatenate([np.empty(0, HIT), *(open_array(Path(part.out)) for part in parts)])
    if documents.trained is not None and len(hits):
        hits = hits[documents.trained(hits["document"])]
    return Found(tuple(_told(items, hits)), _too_short(items, _index_of(str(scratch / _ITEMS), entry.hash)))


def scan_part(part: ScanPart) -> dict[str, Any]:
    """Write the hits of one file, in the order of its documents; returns how many there are."""
    from deepen.curate.contamination.kernel import word_hashes  # loads numba

    index, hits = _index_of(part.items, part.items_hash), list[Array]()
    for table in read_tables(Path(part.documents), ["id", "text"]):
        for name, text in zip(table["id"].to_pylist(), table["text"], strict=True):
            found = index.found_in(word_hashes(text.as_py()), _DEFAULTS.min_share_8_grams)
            if found:
                halves = pack_ids([name])[0]
                rows = [(item, measure, value, halves) for item, (measure, value) in sorted(found.items())]
                hits.append(np.array(rows, HIT))
    count, out = sum(map(len, hits)), Path(part.out)
    write_array(out, hits, shape=(count,), dtype=HIT, root=out.parent)
    return {"hits": count}


# The hash is not looked at: it is here so that another file under the same name is another entry of the cache.
@lru_cache(maxsize=1)
def _index_of(items: str, items_hash: str) -> Index:
    return index_of(json.loads(Path(items).read_text()), _DEFAULTS.phrase_words)


def _told(items: Sequence[ProbeItem], hits: Array) -> Iterator[Hit]:
    """What was found of every item, from hits in the order of the documents."""
    hits = hits[np.argsort(hits["item"], kind="stable")]  # stable: the first documents of an item stay the first
    cuts = np.flatnonzero(np.diff(hits["item"])) + 1
    for own in np.split(hits, cuts) if len(hits) else ():
        item, strongest = items[int(own["item"][0])], int(own["measure"].min())
        yield Hit(
            probe=item.probe,
            task=item.task,
            id=item.id,
            measure=MEASURES[strongest],
            value=float(own["value"][own["measure"] == strongest].max()),
            documents=len(own),
            first=tuple(DocumentIds(own["document"])[:_FIRST_DOCUMENTS]),
        )


def _too_short(items: Sequence[ProbeItem], index: Index) -> dict[str, int]:
    """By probe, the items that no text of which can be looked for."""
    found, known = dict[str, int](), set(index.items.tolist())
    for number, item in enumerate(items):
        if number not in known:
            found[item.probe] = found.get(item.probe, 0) + 1
    return found
