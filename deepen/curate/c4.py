"""The rules of C4 (Raffel et al. 2020): lines that are no sentences go, and documents with too few sentences left."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deepen.curate.spans import Piece, of_pieces
from deepen.curate.step import DocumentStep, Drop
from deepen.formats.documents import Document

_REFERENCE = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_JAVASCRIPT, _POLICY, _LOREM_IPSUM, _BRACE = 1, 2, 4, 8  # as in c4_kernel, which loads numba
_PHRASES = (
    (b"javascript", b"javascript", _JAVASCRIPT),
    (b"lorem ipsum", b"lorem ipsum", _LOREM_IPSUM),
    (b"{", b"{", _BRACE),
    (b"terms of use", b"terms of use", _POLICY),
    (b"privacy policy", b"privacy policy", _POLICY),
    (b"cookie", b"cookie policy", _POLICY),
    (b"cookie", b"uses cookies", _POLICY),
    (b"cookie", b"use of cookies", _POLICY),
    (b"cookie", b"use cookies", _POLICY),
)
"""A word that must be there, the phrase, and its bit."""


class C4(DocumentStep):
    """Keep the lines that are sentences. It takes headings, lists, tables and code out of a text, so it is for raw web
    pages only."""

    use: Literal["c4"] = "c4"
    terminal_punctuation: bool = True
    """Remove lines that do not end in terminal punctuation or a quotation mark. FineWeb found that this rule costs more
    than it gives, and runs C4 without it."""
    min_words_per_line: Annotated[int, Field(ge=0)] = 3
    """Remove lines of fewer words."""
    max_word_length: Annotated[int, Field(ge=1)] = 1000
    """Remove lines with a longer word, in characters."""
    javascript: bool = True
    """Remove lines with the word JavaScript."""
    policy: bool = True
    """Remove lines about cookies, privacy policies and terms of use."""
    references: bool = True
    """Remove the reference marks of Wikipedia: ``[12]``, ``[edit]``, ``[citation needed]``."""
    lorem_ipsum: bool = True
    """Drop documents with this phrase (``lorem_ipsum``)."""
    braces: bool = True
    """Drop documents with a curly brace in a line that would stay (``curly_brace``): it is likely code."""
    min_sentences: Annotated[int, Field(ge=0)] = 5
    """Fewest sentences left (``too_few_sentences``)."""

    def apply(self, document: Document) -> Document | Drop:
        """The document with the lines that stay, or why it is dropped."""
        from deepen.curate import c4_kernel as kernel  # loads numba

        text = document.text.encode()
        array = np.frombuffer(text, dtype=np.uint8)
        most = text.count(b"\n") + 1
        spans, verdicts = np.empty((most, 2), dtype=np.int64), np.empty(most, dtype=np.uint8)
        limits = kernel.limits_of(self.max_word_length, self.min_words_per_line, self.terminal_punctuation)
        count, sentences = kernel.judge_lines(array, *self._phrases(text), limits, spans, verdicts)
        verdicts = verdicts[:count]
        for verdict, reason in ((kernel.LOREM_IPSUM, "lorem_ipsum"), (kernel.BRACE, "curly_brace")):
            number = int((verdicts == verdict).sum())
            if number:
                return Drop(reason, number)
        kept = int((verdicts == kernel.KEPT).sum())
        if sentences < self.min_sentences or kept == 0:
            return Drop("too_few_sentences", sentences)
        scores = document.scores | {
            "c4.sentences": float(sentences),
            "c4.kept_lines": kept / int((verdicts != kernel.BLANK).sum()),
        }
        pieces = self._pieces(text, spans[:count].tolist(), verdicts.tolist())
        return of_pieces(replace(document, scores=scores), text, pieces)

    def _phrases(self, text: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where unwanted phrases begin (int64, ascending) and their bits."""
        wanted = _JAVASCRIPT * self.javascript + _POLICY * self.policy
        wanted += _LOREM_IPSUM * self.lorem_ipsum + _BRACE * self.braces
        lowered = text.lower()
        present = {needle: needle in lowered for needle in {needle for needle, _, _ in _PHRASES}}
        found = sorted(
            (match.start(), bit)
            for needle, phrase, bit in _PHRASES
            if bit & wanted and present[needle]
            for match in re.finditer(re.escape(phrase), lowered)
        )
        table = np.array(found, dtype=np.int64).reshape(-1, 2)
        return table[:, 0].copy(), table[:, 1].copy()

    def _pieces(self, text: bytes, spans: list[list[int]], verdicts: list[int]) -> list[Piece]:
        """The lines that stay, without references; where blank lines were between them, one is left."""
        pieces: list[Piece] = []
        blank = False
        for (first, last), verdict in zip(spans, verdicts, strict=True):
            if verdict == 0:
                blank = True
            elif verdict == 1:
                separator = ("\n\n" if blank else "\n") if pieces else ""
                if self.references and b"[" in text[first:last]:
                    for begin, end in _references(text[first:last].decode(), first):
                        pieces.append((separator, first, begin))
                        first, separator = end, ""
                pieces.append((separator, first, last))
                blank = False
        return pieces


def _references(line: str, first: int) -> list[tuple[int, int]]:
    """First byte and the byte after of each reference mark in a line that begins at byte ``first``."""
    places = [found.span() for found in _REFERENCE.finditer(line)]
    return [(first + len(line[:begin].encode()), first + len(line[:end].encode())) for begin, end in places]
