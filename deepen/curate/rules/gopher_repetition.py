"""The repetition rules of Gopher (Rae et al. 2021, table A1), with their thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from deepen.curate.batch.columns import Batch
from deepen.curate.step import BatchStep, Judgement, Rule, judged
from deepen.settings import Many, Share

if TYPE_CHECKING:
    from deepen.curate.batch.text_facts import Lines, Words


class GopherRepetition(BatchStep):
    """Drop text that mostly repeats itself: lists of links, logs, spam. Made for prose; leave it out for code, tables
    and poems, and look at the removal counts of every new corpus."""

    version: ClassVar[int] = 3

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
    as_datatrove: bool = False
    """Count exactly as datatrove: lines of white space only are lines too (so text with spaced-out lines is dropped for
    repeating them), and the most frequent n-gram counts even if it occurs once (so some short texts are)."""

    def judge(self, batch: Batch) -> Judgement:
        """All thirteen shares, and the first rule that is broken."""
        return judged("gopher_repetition", self.rules(batch.words, batch.lines))

    def rules(self, words: Words, lines: Lines) -> list[Rule]:
        """Every rule, for texts split into words in whatever way."""
        from deepen.curate.kernels.repetition import QUANTITIES, measure_words

        shares = measure_words(words, lines, as_datatrove=self.as_datatrove)
        limits = (
            self.max_duplicate_lines,
            self.max_duplicate_line_characters,
            self.max_duplicate_paragraphs,
            self.max_duplicate_paragraph_characters,
            *self.max_top_n_gram_characters,
            *self.max_duplicate_n_gram_characters,
        )
        rules = zip(QUANTITIES, shares.T, limits, strict=True)
        return [(name, name, share, share > limit) for name, share, limit in rules]
