"""The held-out material: which documents are scored, for which ability, with which tokenizer.

Domain sources measure what is new; replay and watch sources measure what must be kept. When the run's vocabulary grew,
the base is read through its own tokenizer and checkpoints through theirs; both are scored on the same bytes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from deepen.formats.documents.documents import read_tables
from deepen.formats.manifest import Artifact
from deepen.formats.tokens.extension import read_extension
from deepen.formats.training.scores import Ability
from deepen.model.config import ResolvedBase

_ABILITIES: dict[str, Ability] = {"domain": "new", "replay": "kept", "watch": "kept"}


@dataclass(frozen=True)
class HeldOutSource:
    """One source's held-out documents."""

    name: str
    role: str
    path: Path
    """A document file; absent when the source has no held-out documents."""

    @property
    def ability(self) -> Ability:
        """What this source's documents measure."""
        return _ABILITIES[self.role]


@dataclass(frozen=True)
class Material:
    """What probes work on."""

    sources: tuple[HeldOutSource, ...]
    """In recipe order."""
    tokenizer: Path
    """Folder of the tokenizer of the model that is scored: the run's, or the base's own."""
    begin_of_document_id: int | None
    """Token put before every document, if the base's tokenizer does so."""
    compared: Path | None = None
    """Folder of the tokenizer of the models that this one is compared with, when it is another one."""
    only: frozenset[str] | None = None
    """Ids to which the documents are restricted; None for all."""

    def texts(self, source: HeldOutSource) -> Iterator[tuple[str, str]]:
        """Stream ``(id, text)`` of one source's documents in file order."""
        for row in _rows(source, ["id", "text"]):
            if self.only is None or row["id"] in self.only:
                yield row["id"], row["text"]

    def columns(self, source: HeldOutSource, names: list[str]) -> Iterator[dict[str, str]]:
        """Stream columns of one source's documents in file order."""
        yield from _rows(source, names)

    @property
    def abilities(self) -> dict[str, Ability]:
        """Ability of every source by name."""
        return {source.name: source.ability for source in self.sources}


def material_of(curate: Artifact, tokenize: Artifact, base: ResolvedBase) -> Material:
    """The held-out documents of a curated corpus with the tokenizer that checkpoints are scored with."""
    sources = tuple(
        HeldOutSource(name, counts["role"], curate.path / "held_out" / f"{name}.parquet")
        for name, counts in curate.counts["sources"].items()
    )
    compared = None if read_extension(tokenize.path) is None else base.path
    return Material(sources, tokenize.path / "tokenizer", tokenize.counts["begin_of_document_id"], compared)


def for_the_base(material: Material) -> Material:
    """The same documents as the untouched base is scored on them: with its own tokenizer."""
    if material.compared is None:
        return material
    return replace(material, tokenizer=material.compared, compared=material.tokenizer)


def smallest_hashes(material: Material, baseline: pa.Table, *, tokens_per_source: int) -> dict[str, list[str]]:
    """By source, ids of the scored documents with the smallest content hashes, until ``tokens_per_source`` is reached.

    The choice depends on contents alone, so it stays the same when other documents or sources come or go.
    """
    scored = {row["id"]: row["tokens"] for row in baseline.to_pylist() if row["nll"] is not None}
    chosen: dict[str, list[str]] = {}
    for source in material.sources:
        ids, tokens = chosen.setdefault(source.name, []), 0
        for row in sorted(_rows(source, ["id", "content_hash"]), key=lambda row: (row["content_hash"], row["id"])):
            if tokens >= tokens_per_source:
                break
            # What the base could not score would be left out of every comparison.
            if row["id"] in scored:
                ids.append(row["id"])
                tokens += scored[row["id"]]
    return chosen


def smallest_hash_texts(source: HeldOutSource, count: int) -> list[str]:
    """Texts of the ``count`` documents of a source with the smallest content hashes."""
    chosen = heapq.nsmallest(count, ((row["content_hash"], row["id"]) for row in _rows(source, ["id", "content_hash"])))
    texts = {
        row["id"]: row["text"] for row in _rows(source, ["id", "text"]) if row["id"] in {name for _, name in chosen}
    }
    return [texts[name] for _, name in chosen]


def _rows(source: HeldOutSource, columns: list[str]) -> Iterator[dict[str, str]]:
    if source.path.is_file():
        for table in read_tables(source.path, columns):
            yield from table.to_pylist()
