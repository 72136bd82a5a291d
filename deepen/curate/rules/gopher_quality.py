"""The quality rules of Gopher (Rae et al. 2021, table A1), with their thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from deepen.curate.batch.columns import Batch
from deepen.curate.step import BatchStep, Judgement, Rule, judged
from deepen.settings import Count, Many, Share

if TYPE_CHECKING:
    from deepen.curate.batch.text_facts import Lines, Words

Ratio = Annotated[float, Field(ge=0)]


class GopherQuality(BatchStep):
    """Drop what is no running text: lists, tables, menus, fragments. Made for prose; leave it out for code, tables and
    poems, and look at the removal counts of every new corpus."""

    version: ClassVar[int] = 2

    use: Literal["gopher_quality"] = "gopher_quality"
    min_words: Annotated[Count, Field(ge=0)] = 50
    """Fewest words, punctuation not counted (``too_few_words``)."""
    max_words: Annotated[Count, Field(ge=1)] = 100_000
    """Most words (``too_many_words``): about 500 kB of English. Books are longer; raise it for them."""
    min_mean_word_length: Ratio = 3.0
    """Shortest mean length of words in characters (``words_too_short``). Not applied to text mostly in a script without
    spaces, where every character counts as a word."""
    max_mean_word_length: Ratio = 10.0
    """Longest mean length of words (``words_too_long``)."""
    max_hash_signs: Ratio = 0.1
    """Most ``#`` per word (``hash_signs``)."""
    max_ellipses: Ratio = 0.1
    """Most ellipses per word (``ellipses``)."""
    max_bullet_lines: Share = 0.9
    """Largest share of lines that begin with a bullet or dash (``bullet_lines``)."""
    max_ellipsis_lines: Share = 0.3
    """Largest share of lines that end in an ellipsis (``ellipsis_lines``)."""
    min_words_with_letter: Share = 0.8
    """Smallest share of words that have a letter (``words_without_letter``)."""
    symbols_are_words: bool = True
    """Count punctuation marks as words without a letter, as datatrove does: strict, for a mark in seven words is normal
    English, so citations or numbers bring good text below 0.8. False counts words only, as the paper reads."""
    min_stop_words: Annotated[int, Field(ge=0)] = 2
    """Fewest different stop words (``few_stop_words``)."""
    language: str | None = None
    """Language whose stop words are asked of documents that name no language; None: those of any one list will do.
    Documents in a language without a list are not asked."""
    stop_words: dict[str, Many[str]] = {}
    """Lists of your own by language, in place of the built-in ones (31 languages)."""

    @field_validator("stop_words", mode="after")
    @classmethod
    def _are_words(cls, lists: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        bad = sorted({word for words in lists.values() for word in words if not word or word.split() != [word]})
        if bad:
            raise ValueError(f"not one word each: {', '.join(map(repr, bad))}")
        return lists

    def judge(self, batch: Batch) -> Judgement:
        """All measures, and the first rule that is broken."""
        return judged("gopher_quality", self.rules(batch.words, batch.lines, batch.languages))

    def rules(self, words: Words, lines: Lines, languages: Sequence[str | None]) -> list[Rule]:
        """Every rule, for texts split into words in whatever way."""
        ellipsis_lines, bullet_lines = lines.counts(0)[:, 3:].T
        plain, plain_characters, with_letter, alone = words.counts.T.astype(np.float64)
        length = plain_characters / np.maximum(1, plain)
        short = (length < self.min_mean_word_length) & (2 * alone <= words.num_words)
        num_words, num_lines = np.maximum(1, words.num_words), np.maximum(1, lines.num_lines)
        rules = [
            ("too_few_words", "words", plain, plain < self.min_words),
            ("too_many_words", "words", plain, plain > self.max_words),
            ("words_too_short", "mean_word_length", length, short),
            ("words_too_long", "mean_word_length", length, length > self.max_mean_word_length),
        ]
        for reason, value, most in (
            ("hash_signs", lines.num_hash_signs / num_words, self.max_hash_signs),
            ("ellipses", lines.num_ellipses / num_words, self.max_ellipses),
            ("bullet_lines", bullet_lines / num_lines, self.max_bullet_lines),
            ("ellipsis_lines", ellipsis_lines / num_lines, self.max_ellipsis_lines),
        ):
            rules.append((reason, reason, value, value > most))
        share = with_letter / (num_words if self.symbols_are_words else np.maximum(1, plain))
        rules.append(("words_without_letter", "words_with_letter", share, share < self.min_words_with_letter))
        found = self._stop_words(words, languages)
        rules.append(("few_stop_words", "stop_words", found, found < self.min_stop_words))
        return rules

    def _stop_words(self, words: Words, languages: Sequence[str | None]) -> npt.NDArray[np.float64]:
        """Different stop words of each text's language, or of whichever has most; NaN where no list fits."""
        from deepen.curate.rules.stop_words import STOP_WORDS, count_stop_words

        lists = {**STOP_WORDS, **self.stop_words}
        counts = count_stop_words(words, tuple(lists.items()))
        found = np.empty(len(counts))
        own = np.array([language or self.language or "" for language in languages], dtype=np.str_)
        for language in np.unique(own).tolist():
            code = language if language in lists else language.lower().replace("_", "-").split("-")[0]
            chosen = own == language
            if not language:
                found[chosen] = counts[chosen].max(axis=1)
            else:
                found[chosen] = counts[chosen, list(lists).index(code)] if code in lists else np.nan
        return found
