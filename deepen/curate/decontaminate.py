"""Keeping test items out of training: documents that hold an item of a probe are set apart, with the item shown.

A probe that the model has trained on measures memory. The two usual measures are made of every text of an item: any
run of 13 words that a document has too (GPT-3, Brown et al. 2020), and at least 70 % of its runs of 8 words (PaLM,
Chowdhery et al. 2022). Short items are looked for whole.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deepen.curate.step import DocumentStep, Drop
from deepen.errors import SourceError
from deepen.formats.documents import Document
from deepen.settings import Many, Share

LONG, SHORT = 13, 8
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
    files of all probes of the evaluation."""
    any_13_gram: bool = True
    """Drop a document with any run of 13 words of an item (``contaminated_13_gram``; the value is how many)."""
    min_share_8_grams: Share = 0.7
    """Drop a document with at least this share of the runs of 8 words of one text of an item
    (``contaminated_8_grams``)."""
    phrase_words: Annotated[int, Field(ge=1)] = 5
    """An item whose longest text is shorter than 8 words but has so many is looked for whole
    (``contaminated_phrase``); shorter ones cannot be told from chance and are not looked for."""

    def apply(self, document: Document) -> Document | Drop:
        """The document with the largest share of 8-grams among its scores, or what it is contaminated with."""
        from deepen.curate.decontaminate_kernel import word_hashes  # loads numba

        index = _index(self.against, self.phrase_words)
        words = word_hashes(document.text)
        if self.any_13_gram and LONG in index.grams:
            owners = index.grams[LONG].first_owners(words)
            if len(owners):
                return Drop("contaminated_13_gram", len(owners), index.shown(int(owners[0])))
        share, text = index.largest_share(words)
        if text >= 0 and share >= self.min_share_8_grams:
            return Drop("contaminated_8_grams", share, index.shown(text))
        for n in range(self.phrase_words, SHORT):
            if n in index.grams:
                owners = index.grams[n].first_owners(words)
                if len(owners):
                    return Drop("contaminated_phrase", n, index.shown(int(owners[0])))
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
class Grams:
    """All n-grams of one length in the items: ``known`` ascending, and for each place the texts that have it (CSR)."""

    n: int
    known: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]
    bitmap: npt.NDArray[np.uint64]

    def places(self, words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Where in ``known`` the n-grams of ``words`` are, each once, ascending."""
        from deepen.curate.decontaminate_kernel import find_n_grams

        return np.unique(find_n_grams(words, self.n, self.bitmap, self.known))

    def first_owners(self, words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """For each known n-gram among ``words`` the first text that has it, ascending."""
        return np.sort(self.owners[self.starts[self.places(words)]])


@dataclass(frozen=True)
class _Index:
    """The texts of all items with their n-grams."""

    names: tuple[str, ...]
    """``FILE:LINE: beginning`` of the item of each text."""
    grams: dict[int, Grams]
    num_short: npt.NDArray[np.int64]
    """Different 8-grams of each text."""

    def shown(self, text: int) -> str:
        return self.names[text]

    def largest_share(self, words: npt.NDArray[np.uint64]) -> tuple[float, int]:
        """The largest share of a text's 8-grams that are among ``words``, and the text (-1: none has any)."""
        if SHORT not in self.grams:
            return 0.0, -1
        grams = self.grams[SHORT]
        places = grams.places(words)
        if len(places) == 0:
            return 0.0, -1
        owners = np.concatenate([grams.owners[grams.starts[place] : grams.starts[place + 1]] for place in places])
        texts, counts = np.unique(owners, return_counts=True)
        shares = counts / self.num_short[texts]
        best = int(np.argmax(shares))
        return float(shares[best]), int(texts[best])


@lru_cache(maxsize=4)
def _index(against: tuple[str, ...], phrase_words: int) -> _Index:
    from deepen.curate.decontaminate_kernel import n_grams, word_hashes

    names: list[str] = []
    found: dict[int, list[tuple[int, npt.NDArray[np.uint64]]]] = {}
    num_short = []
    for name, item in _items(probe_files(against)):
        texts = [word_hashes(text) for text in _strings(item)]
        longest = max((len(words) for words in texts), default=0)
        for words in texts:
            lengths = [n for n in (LONG, SHORT) if len(words) >= n]
            if len(words) == longest < SHORT and longest >= phrase_words:
                lengths = [longest]
            for n in lengths:
                found.setdefault(n, []).append((len(names), np.unique(n_grams(words, n))))
            if lengths:
                num_short.append(len(found[SHORT][-1][1]) if SHORT in lengths else 0)
                names.append(name)
    grams = {n: _grams(n, texts) for n, texts in found.items()}
    return _Index(tuple(names), grams, np.array(num_short, dtype=np.int64))


def _grams(n: int, texts: list[tuple[int, npt.NDArray[np.uint64]]]) -> Grams:
    from deepen.curate.decontaminate_kernel import bitmap_of

    every = np.concatenate([grams for _, grams in texts])
    owners = np.repeat([text for text, _ in texts], [len(grams) for _, grams in texts])
    order = np.argsort(every, kind="stable")
    known, starts = np.unique(every[order], return_index=True)
    return Grams(n, known, np.append(starts, len(every)), owners[order], bitmap_of(known))


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
                shown = " ".join(" / ".join(_strings(item)).split())[:_SHOWN_CHARACTERS]
                yield f"{path.name}:{number}: {shown}", item


def _strings(value: Any) -> list[str]:
    """All strings in a JSON value, in order, keys aside."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in _strings(item)] if isinstance(value, list) else []
