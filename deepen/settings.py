"""Strict settings, and the quantities that users write with units.

Every configuration class of deepen is a frozen ``Settings``: unknown keys are errors, nothing is coerced behind the
user's back, and the docstring under a field is its documentation (``deepen explain`` prints it). Quantities accept
a unit in text (``50B tokens``, ``2%``, ``500 steps or 30min``) and are written back in the same notation.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

VERSION = "0.1.0"

T = TypeVar("T")
Many = Annotated[tuple[T, ...], Field(strict=False)]
"""A list in YAML, a tuple in Python: ``Many[str]``."""

_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_BYTE_SCALES = {"byte": 1, "bytes": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SECONDS = {"s": 1, "sec": 1, "seconds": 1, "min": 60, "h": 3600, "d": 86400}
BYTES_PER_TOKEN = 4
"""UTF-8 bytes of text counted as one token before any tokenizer is known: English in common vocabularies has 3.5 to
4.5."""
_NUMBER = r"(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


class Settings(BaseModel):
    """Base of all configuration: strict, frozen, documented by the docstrings under its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


@dataclass(frozen=True)
class Amount:
    """How much of something: an absolute number of ``tokens``, ``steps`` or ``seconds``, or a ``share`` of the run."""

    value: float
    unit: str

    def __str__(self) -> str:
        if self.unit == "share":
            return f"{_plain(self.value * 100)}%"
        return f"{_plain(self.value)} {self.unit}"

    def in_steps(self, *, total_steps: int, tokens_per_step: int) -> int:
        """The amount as a whole number of optimizer steps (rounded to the nearest; seconds cannot be converted)."""
        assert self.unit != "seconds", "seconds have no fixed number of steps"
        scale = {"steps": 1.0, "share": float(total_steps), "tokens": 1 / tokens_per_step}[self.unit]
        return round(self.value * scale)


_NOTABLE_ROUNDING = 0.2


def rounding_note(amount: Amount, *, total_steps: int, tokens_per_step: int, least: int = 0) -> str | None:
    """What an amount becomes as whole steps (at least ``least``), where that is another amount than was asked.

    None where rounding moves it by at most a fifth, and for times, which are no number of steps.
    """
    if amount.unit == "seconds" or amount.value <= 0:
        return None
    scale = {"steps": 1.0, "share": float(total_steps), "tokens": 1 / tokens_per_step}[amount.unit]
    exact = amount.value * scale
    steps = max(least, amount.in_steps(total_steps=total_steps, tokens_per_step=tokens_per_step))
    if abs(steps - exact) <= _NOTABLE_ROUNDING * exact:
        return None
    became = "1 step" if steps == 1 else f"{steps} steps"
    return f"{amount} of a run of {total_steps} steps is {exact:.2g} steps and becomes {became}"


@dataclass(frozen=True)
class Interval:
    """When something recurs: every one of its ``amounts``, whichever comes first (``500 steps or 30min``)."""

    amounts: tuple[Amount, ...]

    def __str__(self) -> str:
        return " or ".join(str(amount) for amount in self.amounts)

    def every_steps(self, *, total_steps: int, tokens_per_step: int) -> int | None:
        """The shortest of the step-like amounts in steps (at least 1), or None when only times are given."""
        steps = [
            max(1, amount.in_steps(total_steps=total_steps, tokens_per_step=tokens_per_step))
            for amount in self.amounts
            if amount.unit != "seconds"
        ]
        return min(steps, default=None)

    @property
    def every_seconds(self) -> float | None:
        """The shortest of the times in seconds, or None when none is given."""
        return min((amount.value for amount in self.amounts if amount.unit == "seconds"), default=None)


def _plain(value: float) -> str:
    """A number without needless digits: 5000000, 0.25."""
    return str(round(value)) if math.isclose(value, round(value)) else f"{value:.12g}"


def parse_amount(value: Any) -> Amount:
    """Read ``"2%"``, ``"500 steps"``, ``"1M tokens"``, ``"30min"``; a bare number means steps."""
    if isinstance(value, Amount):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"{value} steps"
    match = re.fullmatch(rf"\s*{_NUMBER}\s*(?P<unit>%|[a-z]+)\s*(?P<noun>tokens?|steps?)?\s*", str(value).lower())
    if not match:
        raise ValueError("expected an amount such as `2%`, `500 steps`, `1M tokens` or `30min`")
    number, unit, noun = float(match["number"]), match["unit"], match["noun"]
    if unit == "%" and noun is None:
        return Amount(number / 100, "share")
    if unit in _SECONDS and noun is None:
        return Amount(number * _SECONDS[unit], "seconds")
    if unit in ("token", "tokens", "step", "steps") and noun is None:
        return Amount(number, unit.rstrip("s") + "s")
    if unit in _SCALES and noun is not None:
        return Amount(number * _SCALES[unit], noun.rstrip("s") + "s")
    raise ValueError("expected an amount such as `2%`, `500 steps`, `1M tokens` or `30min`")


def parse_interval(value: Any) -> Interval:
    """Read ``"500 steps or 30min"``: amounts joined by ``or``."""
    if isinstance(value, Interval):
        return value
    parts = re.split(r"\s+or\s+", value) if isinstance(value, str) else [value]
    return Interval(tuple(parse_amount(part) for part in parts))


def parse_count(value: Any) -> Any:
    """Read ``"50B tokens"``, ``"100 documents"``, ``"2k"`` or a whole number as an integer."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(
        rf"\s*{_NUMBER}\s*(?P<scale>[kmbgt]?)\s*(?:tokens?|documents?|characters?|steps?)?\s*", value.lower()
    )
    if not match:
        raise ValueError("expected a number such as `100`, `2M tokens` or `50B tokens`")
    number = float(match["number"]) * _SCALES[match["scale"]]
    if number != int(number):
        raise ValueError("expected a whole number")
    return int(number)


def parse_extent(value: Any) -> Amount:
    """Read how much text: ``500``, ``"500 documents"``, ``"20 MB"``, ``"2B tokens"``; a bare number means documents.

    Returns a whole ``Amount`` of ``documents``, ``bytes`` (powers of ten) or ``tokens``.
    """
    if isinstance(value, Amount):
        return value
    nouns = "|".join((*_BYTE_SCALES, "documents?", "tokens?"))
    match = re.fullmatch(rf"\s*{_NUMBER}\s*(?P<scale>[kmbgt]??)\s*(?P<noun>{nouns})?\s*", str(value).lower())
    if isinstance(value, bool) or not match:
        raise ValueError("expected so many documents, bytes or tokens: `500 documents`, `20 MB` or `2B tokens`")
    noun = match["noun"] or "documents"
    number = float(match["number"]) * _SCALES[match["scale"]] * _BYTE_SCALES.get(noun, 1)
    if number != int(number) or number < 1:
        raise ValueError("expected a whole number, at least 1")
    return Amount(int(number), "bytes" if noun in _BYTE_SCALES else noun.rstrip("s") + "s")


def parse_share(value: Any) -> Any:
    """Read ``"5%"`` or ``0.05`` as the fraction 0.05."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(rf"\s*{_NUMBER}\s*%\s*", value.lower())
    if not match:
        raise ValueError("expected a share such as `0.05` or `5%`")
    return float(match["number"]) / 100


AmountSetting = Annotated[Amount, BeforeValidator(parse_amount), PlainSerializer(str)]
IntervalSetting = Annotated[Interval, BeforeValidator(parse_interval), PlainSerializer(str)]
ExtentSetting = Annotated[Amount, BeforeValidator(parse_extent), PlainSerializer(str)]
"""So much text: ``500 documents``, ``20 MB`` or ``2B tokens``."""
Count = Annotated[int, BeforeValidator(parse_count)]
"""A whole number, with an optional scale and noun: ``2M tokens``."""
Share = Annotated[float, BeforeValidator(parse_share), Field(ge=0, le=1)]
"""A fraction between 0 and 1, also written as a percentage."""
