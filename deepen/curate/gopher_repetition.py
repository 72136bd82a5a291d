"""The repetition rules of Gopher (Rae et al. 2021, table A1), with their thresholds."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from deepen.curate.step import DocumentStep, Drop
from deepen.formats.documents import Document
from deepen.settings import Many, Share


class GopherRepetition(DocumentStep):
    """Drop text that mostly repeats itself: lists of links, logs, spam. Made for prose; leave it out for code, tables
    and poems, and look at the removal counts of every new corpus."""

    use: Literal["gopher_repetition"] = "gopher_repetition"
    max_duplicate_lines: Share = 0.30
    """Share of lines that occurred before."""
    max_duplicate_line_characters: Share = 0.20
    """Share of characters in such lines."""
    max_duplicate_paragraphs: Share = 0.30
    """Share of paragraphs (between blank lines) that occurred before."""
    max_duplicate_paragraph_characters: Share = 0.20
    """Share of characters in such paragraphs."""
    max_top_n_gram_characters: Annotated[Many[Share], Field(min_length=3, max_length=3)] = (0.20, 0.18, 0.16)
    """Share of characters in the most frequent 2-, 3- and 4-gram of words, if it occurs more than once."""
    max_duplicate_n_gram_characters: Annotated[Many[Share], Field(min_length=6, max_length=6)] = (
        0.15, 0.14, 0.13, 0.12, 0.11, 0.10,
    )  # fmt: skip
    """Share of characters in 5- to 10-grams of words that occurred before; no character counts twice."""

    def apply(self, document: Document) -> Document | Drop:
        """The document with all thirteen shares among its scores, or the first rule that it breaks."""
        from deepen.curate.repetition_kernel import QUANTITIES, measure  # loads numba

        shares = measure(document.text).tolist()
        limits = (
            self.max_duplicate_lines,
            self.max_duplicate_line_characters,
            self.max_duplicate_paragraphs,
            self.max_duplicate_paragraph_characters,
            *self.max_top_n_gram_characters,
            *self.max_duplicate_n_gram_characters,
        )
        scores = dict(document.scores)
        for name, share, limit in zip(QUANTITIES, shares, limits, strict=True):
            if share > limit:
                return Drop(name, share)
            scores[f"gopher_repetition.{name}"] = share
        return replace(document, scores=scores)
