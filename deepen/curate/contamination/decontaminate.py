"""Keeping test items out of training: documents that hold an item of a probe are set apart, with the item shown.

A probe that the model has trained on measures memory. The two usual measures are made of every text of an item: any
run of 13 words that a document has too (GPT-3, Brown et al. 2020), and at least 70 % of its runs of 8 words (PaLM,
Chowdhery et al. 2022). Short items are looked for whole.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from deepen.curate.contamination.item_index import LONG, LONG_RUN, PHRASE, SHORT, SHORT_RUNS, Index, index_of
from deepen.curate.step import DocumentStep, Drop
from deepen.errors import Problem, SourceError
from deepen.formats.documents.documents import Document
from deepen.formats.documents.found_items import strings_in
from deepen.settings import Many, Share

_SHOWN_CHARACTERS = 160
PROBES = "probes"
"""In ``against``: the item files of the recipe's probes."""


class Decontaminate(DocumentStep):
    """Drop documents that hold an item of one of the probes; the dropped row shows which. What is dropped is never
    deleted: it stays in ``dropped/`` with its reason."""

    use: Literal["decontaminate"] = "decontaminate"
    against: Annotated[Many[str], Field(min_length=1)]
    """JSON lines files (``.jsonl``, also with ``.gz``) with one test item per line, or globs. All strings in an item,
    however deep, are its texts. Their contents are part of the fingerprint. The word ``probes`` stands for the item
    files of all probes that are measured during training."""
    any_13_gram: bool = True
    """Drop a document with any run of 13 words of an item (``contaminated_13_gram``; the value is how many)."""
    min_share_8_grams: Share = 0.7
    """Drop a document with at least this share of the runs of 8 words of one text of an item
    (``contaminated_8_grams``)."""
    phrase_words: Annotated[int, Field(ge=1)] = 5
    """An item whose longest text is shorter than 8 words but has so many is looked for whole
    (``contaminated_phrase``); shorter ones cannot be told from chance and are not looked for."""

    def problems(self, sources: Collection[str] | None) -> Iterator[Problem]:
        """No test items where they are looked for."""
        try:
            probe_files(tuple(path for path in self.against if path != PROBES))
        except SourceError as error:
            yield Problem("against", error.message, error.hint or "")

    def apply(self, document: Document) -> Document | Drop:
        """The document with the largest share of 8-grams among its scores, or what it is contaminated with."""
        from deepen.curate.contamination.kernel import word_hashes  # loads numba

        named = _index(self.against, self.phrase_words)
        index, words = named.index, word_hashes(document.text)
        if self.any_13_gram and LONG in index.grams:
            owners = index.grams[LONG].first_owners(words)
            if len(owners):
                return Drop(f"contaminated_{LONG_RUN}", len(owners), named.shown(int(owners[0])))
        share, text = index.largest_share(words)  # measured in any case: a kept document's share is among its scores
        if text >= 0 and share >= self.min_share_8_grams:
            return Drop(f"contaminated_{SHORT_RUNS}", share, named.shown(text))
        for n in range(self.phrase_words, SHORT):
            if n in index.grams:
                owners = index.grams[n].first_owners(words)
                if len(owners):
                    return Drop(f"contaminated_{PHRASE}", n, named.shown(int(owners[0])))
        return replace(document, scores=document.scores | {"decontaminate.share_8_grams": share})


def probe_files(patterns: tuple[str, ...]) -> list[Path]:
    """The files that ``against`` names, in order; raises ``SourceError`` for what names none."""
    files = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        found = [path] if path.is_file() else []
        if not found and any(mark in pattern for mark in "*?["):
            found = sorted(
                item for item in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if item.is_file()
            )
        if not found:
            raise SourceError(
                f"`decontaminate.against`: no file `{pattern}`", hint="give JSON lines files of test items"
            )
        files.extend(found)
    return list(dict.fromkeys(files))


@dataclass(frozen=True)
class _Named:
    """The items of files as an index, with what they are called."""

    names: tuple[str, ...]
    """``FILE:LINE: beginning`` of each item."""
    index: Index

    def shown(self, text: int) -> str:
        return self.names[int(self.index.items[text])]


@lru_cache(maxsize=4)
def _index(against: tuple[str, ...], phrase_words: int) -> _Named:
    names: list[str] = []

    def texts() -> Iterator[list[str]]:
        for name, item in _items(probe_files(against)):
            names.append(name)
            yield strings_in(item)

    index = index_of(texts(), phrase_words)
    return _Named(tuple(names), index)


def _items(files: list[Path]) -> Iterator[tuple[str, Any]]:
    for path in files:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    item = json.loads(line)
                except ValueError as error:
                    raise SourceError(
                        f"`{path}` line {number} is no JSON: {error}", hint="one test item per line, as JSON"
                    ) from error
                shown = " ".join(" / ".join(strings_in(item)).split())[:_SHOWN_CHARACTERS]
                yield f"{path.name}:{number}: {shown}", item
