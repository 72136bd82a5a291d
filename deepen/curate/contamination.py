"""Looking for test items in documents that are trained already: what `decontaminate` would have dropped, and for what.

Nothing is taken out any more; the scores of the items that are found are told apart. A document file is a part; of each
only numbers come back, so memory does not grow with the documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from deepen.curate.decontaminate import Decontaminate
from deepen.curate.item_index import MEASURES, Index, index_of
from deepen.engine.map_parts import map_parts
from deepen.formats.atomic import write_bytes
from deepen.formats.contamination import Found, Hit, ProbeItem
from deepen.formats.documents import document_files, num_documents_in, read_tables
from deepen.formats.workers import Workers

SCAN_FORMAT = 1
"""Raised when the same items and documents would give other hits."""
_FIRST_DOCUMENTS = 5
_ITEMS = "items.json"
_DEFAULTS = Decontaminate(against=("",))


@dataclass(frozen=True)
class TrainedDocuments:
    """The documents that are looked through."""

    directory: Path
    """The document files of ``curate``: of all sources but those that are only watched."""
    fingerprint: str
    """Of ``curate``."""


@dataclass(frozen=True)
class ScanPart:
    """One document file."""

    documents: str
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
    entry = write_bytes(scratch / _ITEMS, texts.encode())
    files = document_files(documents.directory)
    parts = [ScanPart(str(path), str(scratch / _ITEMS), entry.hash, documents.fingerprint) for path in files]
    results = map_parts(
        scan_part,
        parts,
        workers=workers,
        ledger=scratch / "ledger",
        what="contamination scan",
        unit="documents",
        sizes=[float(num_documents_in(path)) for path in files],
    )
    total = _Total()
    for result in results:
        total.add(result["hits"])
    return Found(tuple(total.hits(items)), _too_short(items, _index_of(str(scratch / _ITEMS), entry.hash)))


def scan_part(part: ScanPart) -> dict[str, Any]:
    """The hits of one file: by item the measures with their largest values, documents, and the first of their ids."""
    from deepen.curate.decontaminate_kernel import word_hashes  # loads numba

    index, total = _index_of(part.items, part.items_hash), _Total()
    for table in read_tables(Path(part.documents), ["id", "text"]):
        for name, text in zip(table["id"].to_pylist(), table["text"], strict=True):
            found = index.found_in(word_hashes(text.as_py()), _DEFAULTS.min_share_8_grams)
            total.add((item, {str(measure): value}, 1, [name]) for item, (measure, value) in found.items())
    return {"hits": [[item, *hit.as_list()] for item, hit in sorted(total.by_item.items())]}


@lru_cache(maxsize=1)
def _index_of(items: str, items_hash: str) -> Index:
    return index_of(json.loads(Path(items).read_text()), _DEFAULTS.phrase_words)


@dataclass
class _ItemTotal:
    values: dict[str, float] = field(default_factory=dict)
    """By place of the measure in ``MEASURES``."""
    documents: int = 0
    first: list[str] = field(default_factory=list)

    def as_list(self) -> list[Any]:
        return [self.values, self.documents, self.first]


@dataclass
class _Total:
    """What was found so far, in the order of the documents."""

    by_item: dict[int, _ItemTotal] = field(default_factory=dict)

    def add(self, hits: Iterable[Sequence[Any]]) -> None:
        for item, values, documents, first in hits:
            own = self.by_item.setdefault(int(item), _ItemTotal())
            for measure, value in values.items():
                own.values[measure] = max(value, own.values.get(measure, value))
            own.documents += documents
            own.first = [*own.first, *first][:_FIRST_DOCUMENTS]

    def hits(self, items: Sequence[ProbeItem]) -> Iterator[Hit]:
        for number, own in sorted(self.by_item.items()):
            item, strongest = items[number], min(own.values)
            yield Hit(
                probe=item.probe, task=item.task, id=item.id, measure=MEASURES[int(strongest)],
                value=own.values[strongest], documents=own.documents, first=tuple(own.first),
            )  # fmt: skip


def _too_short(items: Sequence[ProbeItem], index: Index) -> dict[str, int]:
    """By probe, the items that no text of which can be looked for."""
    found, known = dict[str, int](), set(index.items.tolist())
    for number, item in enumerate(items):
        if number not in known:
            found[item.probe] = found.get(item.probe, 0) + 1
    return found
