"""The quality rules of FineWeb (Penedo et al. 2024), with their thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from deepen.curate.step import DocumentStep, Drop
from deepen.formats.documents import Document
from deepen.settings import Share

if TYPE_CHECKING:
    from deepen.curate.text_facts import Lines, Words


class FineWeb(DocumentStep):
    """Drop web pages that are lists, menus and tables rather than text, by what their lines look like. Made for web
    prose with one paragraph per line: text with hard line breaks, poems, code and Thai fail it."""

    use: Literal["fineweb"] = "fineweb"
    min_terminal_lines: Share = 0.12
    """Smallest share of lines whose last character ends a sentence, in any script (``few_terminal_lines``)."""
    max_short_lines: Share = 0.67
    """Largest share of short lines (``many_short_lines``)."""
    short_line_characters: Annotated[int, Field(ge=0)] = 30
    """A line of so many characters or fewer is short."""
    max_duplicate_line_characters: Share = 0.01
    """Largest share of characters in lines that occurred before (``many_duplicate_line_characters``). As in the code
    that made the data set; the paper says 0.1."""
    max_newlines: Annotated[float, Field(ge=0)] = 0.3
    """Most line feeds per word (``many_newlines``)."""

    def apply(self, document: Document) -> Document | Drop:
        """The document with all measures among its scores, or the first rule that it breaks."""
        from deepen.curate.text_facts import lines_of, words_of  # loads numba

        scores = dict(document.scores)
        for reason, name, value, broken in self.judge(words_of(document.text), lines_of(document.text)):
            if broken:
                return Drop(reason, value)
            scores[f"fineweb.{name}"] = value
        return replace(document, scores=scores)

    def judge(self, words: Words, lines: Lines) -> Iterator[tuple[str, str, float, bool]]:
        """Every rule on any splitting into words: reason, name of the measure, its value, whether it is broken."""
        from deepen.curate.lines_kernel import VISIBLE, count_lines
        from deepen.curate.repetition_kernel import duplicate_lines

        visible, terminal, short, _, _ = count_lines(lines.lengths, lines.flags, self.short_line_characters)
        share = terminal / max(1, visible)
        yield "few_terminal_lines", "terminal_lines", share, share < self.min_terminal_lines
        share = short / max(1, visible)
        yield "many_short_lines", "short_lines", share, share > self.max_short_lines
        _, _, characters = duplicate_lines(lines.hashes, lines.lengths, lines.flags, VISIBLE)
        share = characters / max(1, lines.num_characters - lines.num_newlines)
        reason = "many_duplicate_line_characters"
        yield reason, "duplicate_line_characters", share, share > self.max_duplicate_line_characters
        ratio = lines.num_newlines / max(1, words.count)
        yield "many_newlines", "newlines", ratio, ratio > self.max_newlines
