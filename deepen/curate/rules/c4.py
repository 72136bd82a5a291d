"""The rules of C4 (Raffel et al. 2020): lines that are no sentences go, and documents with too few sentences left."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deepen.curate.batch.columns import Batch
from deepen.curate.batch.spans import Piece, of_pieces
from deepen.curate.batch.texts import Texts
from deepen.curate.step import BatchStep, Drop, Judgement, judged
from deepen.formats.documents.documents import Document

_REFERENCE = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]", re.ASCII)


class C4(BatchStep):
    """Keep the lines that are sentences. It takes headings, lists, tables and code out of a text, so it is for raw web
    pages only."""

    version: ClassVar[int] = 2
    edits: ClassVar[bool] = True

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
        from deepen.curate.kernels import c4 as kernel  # loads numba

        text = document.text.encode()
        most = text.count(b"\n") + 1
        spans, verdicts = np.empty((most, 2), dtype=np.int64), np.empty(most, dtype=np.uint8)
        brackets = np.empty(most, dtype=np.bool_)
        array, limits = np.frombuffer(text, dtype=np.uint8), self._limits()
        count, sentences = kernel.judge_lines(array, self._phrases(), limits, spans, verdicts, brackets)
        verdicts = verdicts[:count]
        numbers = [sentences]
        numbers += [int((verdicts != kernel.BLANK).sum())]
        numbers += [int((verdicts == verdict).sum()) for verdict in (kernel.KEPT, kernel.LOREM_IPSUM, kernel.BRACE)]
        scores, drop = self._judged(np.array([numbers])).of_one()
        if drop is not None:
            return drop
        pieces = self._pieces(text, spans[:count].tolist(), verdicts.tolist())
        return of_pieces(replace(document, scores={**document.scores, **scores}), text, pieces)

    def judge(self, batch: Batch) -> Judgement:
        """The same for documents without spans."""
        from deepen.curate.kernels.c4 import filter_texts  # loads numba

        texts = batch.texts.only(batch.alive & ~batch.has_spans)
        out, ends = np.empty(int(texts.sizes.sum()) + 2, dtype=np.uint8), np.empty(len(texts), dtype=np.int64)
        counts = np.empty((len(texts), 5), dtype=np.int64)
        filter_texts(
            texts.buffer, texts.starts, texts.ends, self._phrases(), self._limits(), self.references, out, ends, counts
        )
        return replace(self._judged(counts), texts=Texts(out, np.append(0, ends[:-1]), ends))

    def _judged(self, counts: npt.NDArray[np.int64]) -> Judgement:
        """What follows from sentences, lines, kept ones, those of lorem ipsum and with a brace, int64 [n, 5]."""
        sentences, visible, kept, lorem_ipsum, braces = counts.T.astype(np.float64)
        few = (sentences < self.min_sentences) | (kept == 0)
        rules = [
            ("lorem_ipsum", "lorem_ipsum", lorem_ipsum, lorem_ipsum > 0),
            ("curly_brace", "braces", braces, braces > 0),
            ("too_few_sentences", "sentences", sentences, few),
        ]
        judgement = judged("c4", rules)
        scores = {"c4.sentences": sentences, "c4.kept_lines": kept / np.maximum(1, visible)}
        return replace(judgement, scores=scores)

    def _phrases(self) -> int:
        """Bits of the phrases that are not wanted."""
        from deepen.curate.kernels import c4 as kernel

        bits = kernel.JAVASCRIPT_BIT * self.javascript + kernel.POLICY_BIT * self.policy
        return bits + kernel.LOREM_BIT * self.lorem_ipsum + kernel.BRACE_BIT * self.braces

    def _limits(self) -> npt.NDArray[np.int64]:
        """Characters of the longest word, fewest words of a line, whether it must end in terminal punctuation."""
        return np.array([self.max_word_length, self.min_words_per_line, self.terminal_punctuation], dtype=np.int64)

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
