"""The quality rules of FineWeb (Penedo et al. 2024), with their thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from deepen.curate.batch.columns import Batch
from deepen.curate.step import BatchStep, Judgement, Rule, judged
from deepen.settings import Share

if TYPE_CHECKING:
    from deepen.curate.batch.text_facts import Lines, Words


class FineWeb(BatchStep):
    """Drop web pages that are lists, menus and tables rather than text, by what their lines look like. Made for web
    prose with one paragraph per line: text with hard line breaks, poems, code and Thai fail it."""

    version: ClassVar[int] = 2

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

    def judge(self, batch: Batch) -> Judgement:
        """All measures, and the first rule that is broken."""
        return judged("fineweb", self.rules(batch.words, batch.lines))

    def rules(self, words: Words, lines: Lines) -> list[Rule]:
        """Every rule, for texts split into words in whatever way."""
        from deepen.curate.kernels.lines import VISIBLE
        from deepen.curate.kernels.repetition import count_duplicate_characters

        visible, terminal, short = lines.counts(self.short_line_characters)[:, :3].T
        num_lines = np.maximum(1, visible)
        repeated = count_duplicate_characters(lines.hashes, lines.lengths, lines.flags, lines.offsets, VISIBLE)
        ends, brief = terminal / num_lines, short / num_lines
        duplicate = repeated / np.maximum(1, lines.num_characters - lines.num_newlines)
        newlines = lines.num_newlines / np.maximum(1, words.num_words)
        many = "many_duplicate_line_characters"
        return [
            ("few_terminal_lines", "terminal_lines", ends, ends < self.min_terminal_lines),
            ("many_short_lines", "short_lines", brief, brief > self.max_short_lines),
            (many, "duplicate_line_characters", duplicate, duplicate > self.max_duplicate_line_characters),
            ("many_newlines", "newlines", newlines, newlines > self.max_newlines),
        ]
