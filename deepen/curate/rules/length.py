"""Dropping documents that are too short to teach anything or too long to be text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, PlainSerializer, model_validator

from deepen.curate.batch.columns import Batch
from deepen.curate.step import BatchStep, Judgement, judged
from deepen.settings import BYTES_PER_TOKEN, parse_count


@dataclass(frozen=True)
class Length:
    """A length of text in ``characters``, ``words`` (between white space) or ``tokens`` (bytes / 4, rounded up)."""

    value: int
    unit: str

    def __str__(self) -> str:
        return f"{self.value} {self.unit}"


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


class LengthStep(BatchStep):
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

    def judge(self, batch: Batch) -> Judgement:
        """The length among the scores, and whether it is outside the limits."""
        from deepen.curate.kernels.length import measure_lengths  # loads numba

        lengths = measure_lengths(batch.texts.buffer, batch.texts.starts, batch.texts.ends).T.astype(np.float64)
        measured = {"characters": lengths[0], "words": lengths[1], "tokens": -(-batch.texts.sizes // BYTES_PER_TOKEN)}
        rules = []
        for reason, limit in (("too_short", self.min), ("too_long", self.max)):
            if limit is not None:
                own = measured[limit.unit].astype(np.float64)
                rules.append(
                    (reason, limit.unit, own, own < limit.value if reason == "too_short" else own > limit.value)
                )
        return judged("length", rules)
