"""Dropping documents that are too short to teach anything or too long to be text."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer, model_validator

from deepen.curate.step import DocumentStep, Drop
from deepen.formats.documents import Document
from deepen.settings import parse_count

BYTES_PER_TOKEN = 4
"""English text in common vocabularies has 3.5 to 4.5 bytes per token; curation runs before any tokenizer is known."""


@dataclass(frozen=True)
class Length:
    """A length of text in ``characters``, ``words`` (between white space) or ``tokens`` (UTF-8 bytes / 4)."""

    value: int
    unit: str

    def __str__(self) -> str:
        return f"{self.value} {self.unit}"

    def of(self, text: str) -> int:
        """How long ``text`` is in this unit (tokens rounded up)."""
        if self.unit == "characters":
            return len(text)
        if self.unit == "words":
            return len(text.split())
        return -(-len(text.encode()) // BYTES_PER_TOKEN)


def parse_length(value: Any) -> Length:
    """Read ``"200 characters"``, ``"50 words"``, ``"100k tokens"``; a bare number means characters."""
    if isinstance(value, Length):
        return value
    match = re.fullmatch(r"\s*(?P<number>[\d.]+\s*[kmb]?)\s*(?P<unit>character|word|token)s?\s*", str(value).lower())
    if match is not None:
        return Length(int(parse_count(match["number"])), match["unit"] + "s")
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Length(value, "characters")
    raise ValueError("expected a length such as `200 characters`, `50 words` or `100k tokens`")


LengthSetting = Annotated[Length, BeforeValidator(parse_length), PlainSerializer(str)]


class LengthStep(DocumentStep):
    """Drop documents shorter than ``min`` (``too_short``) or longer than ``max`` (``too_long``)."""

    use: Literal["length"] = "length"
    min: LengthSetting | None = Length(200, "characters")
    """Shortest text that is kept. Our choice, a little under Gopher's 50 words (about 300 characters; Rae et al. 2021,
    table A1), so that short notes of a domain survive. Set it lower, or null, for poems or queries."""
    max: LengthSetting | None = None
    """Longest text that is kept; none by default, since packing cuts long documents without losing a token."""

    @model_validator(mode="after")
    def _in_order(self) -> LengthStep:
        if self.min and self.max and self.min.unit == self.max.unit and self.min.value > self.max.value:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        return self

    def apply(self, document: Document) -> Document | Drop:
        """The document with its length among the scores, or why it goes."""
        scores = dict(document.scores)
        for limit in (self.min, self.max):
            if limit is not None:
                scores[f"length.{limit.unit}"] = float(limit.of(document.text))
        if self.min is not None and scores[f"length.{self.min.unit}"] < self.min.value:
            return Drop("too_short", scores[f"length.{self.min.unit}"])
        if self.max is not None and scores[f"length.{self.max.unit}"] > self.max.value:
            return Drop("too_long", scores[f"length.{self.max.unit}"])
        return replace(document, scores=scores)
