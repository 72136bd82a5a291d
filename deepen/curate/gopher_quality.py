"""The quality rules of Gopher (Rae et al. 2021, table A1), with their thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from deepen.curate.step import DocumentStep, Drop
from deepen.formats.documents import Document
from deepen.settings import Count, Many, Share

if TYPE_CHECKING:
    from deepen.curate.text_facts import Lines, Words

Ratio = Annotated[float, Field(ge=0)]


class GopherQuality(DocumentStep):
    """Drop what is no running text: lists, tables, menus, fragments. Made for prose; leave it out for code, tables and
    poems, and look at the removal counts of every new corpus."""

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

    def apply(self, document: Document) -> Document | Drop:
        """The document with all measures among its scores, or the first rule that it breaks."""
        from deepen.curate.text_facts import lines_of, words_of  # loads numba

        scores = dict(document.scores)
        for reason, name, value, broken in self.judge(
            words_of(document.text), lines_of(document.text), document.language
        ):
            if broken:
                return Drop(reason, value)
            scores[f"gopher_quality.{name}"] = value
        return replace(document, scores=scores)

    def judge(self, words: Words, lines: Lines, language: str | None) -> Iterator[tuple[str, str, float, bool]]:
        """Every rule on any splitting into words: reason, name of the measure, its value, whether it is broken."""
        from deepen.curate.lines_kernel import count_lines

        _, _, _, ellipsis_lines, bullet_lines = count_lines(lines.lengths, lines.flags, 0)
        plain = words.num_plain
        yield "too_few_words", "words", plain, plain < self.min_words
        yield "too_many_words", "words", plain, plain > self.max_words
        length = words.plain_characters / max(1, plain)
        short = length < self.min_mean_word_length and 2 * words.num_alone <= words.count
        yield "words_too_short", "mean_word_length", length, short
        yield "words_too_long", "mean_word_length", length, length > self.max_mean_word_length
        num_words, num_lines = max(1, words.count), max(1, lines.num_lines)
        for reason, value, most in (
            ("hash_signs", lines.num_hash_signs / num_words, self.max_hash_signs),
            ("ellipses", lines.num_ellipses / num_words, self.max_ellipses),
            ("bullet_lines", bullet_lines / num_lines, self.max_bullet_lines),
            ("ellipsis_lines", ellipsis_lines / num_lines, self.max_ellipsis_lines),
        ):
            yield reason, reason, value, value > most
        share = words.num_alphabetic / (num_words if self.symbols_are_words else max(1, plain))
        yield "words_without_letter", "words_with_letter", share, share < self.min_words_with_letter
        found = self._stop_words(words, language or self.language)
        if found is not None:
            yield "few_stop_words", "stop_words", found, found < self.min_stop_words

    def _stop_words(self, words: Words, language: str | None) -> int | None:
        """Different stop words of the language, or of whichever has most; None where no list fits."""
        from deepen.curate.stop_words import STOP_WORDS, count_stop_words

        lists = {**STOP_WORDS, **self.stop_words}
        if language is not None:
            code = language if language in lists else language.lower().replace("_", "-").split("-")[0]
            lists = {code: lists[code]} if code in lists else {}
        return max(count_stop_words(words, tuple(lists.items())).values(), default=None)
