"""The peak learning rate: an absolute number, or a multiple of the peak that the base was pretrained with.

Forgetting grows and adaptation gains with the peak; what matters is its ratio to the base's own (Ibrahim et al., arXiv
2403.08763, table 1; Gupta et al., 2308.04014). Bases whose authors published the peak are in ``BASE_PEAKS``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

BASE_PEAKS: dict[str, tuple[float, str]] = {
    r"meta-llama/(Meta-)?Llama-3(\.1)?-8B": (3e-4, "arXiv 2407.21783, table 3"),
    r"meta-llama/(Meta-)?Llama-3(\.1)?-70B": (1.5e-4, "arXiv 2407.21783, table 3"),
    r"meta-llama/(Meta-)?Llama-3\.1-405B": (8e-5, "arXiv 2407.21783, table 3"),
    r"meta-llama/Llama-2-(7|13)b(-hf)?": (3e-4, "arXiv 2307.09288, table 1"),
    r"meta-llama/Llama-2-70b(-hf)?": (1.5e-4, "arXiv 2307.09288, table 1"),
    r"allenai/OLMo-2-\d+-7B": (3e-4, "arXiv 2501.00656"),
    r"allenai/OLMo-2-\d+-13B": (9e-4, "arXiv 2501.00656"),
    r"TinyLlama/TinyLlama-1\.1B-.*": (4e-4, "arXiv 2401.02385"),
    r"EleutherAI/pythia-70m(-deduped)?": (1e-3, "arXiv 2304.01373, table 6"),
    r"EleutherAI/pythia-160m(-deduped)?": (6e-4, "arXiv 2304.01373, table 6"),
    r"EleutherAI/pythia-(410m|1b)(-deduped)?": (3e-4, "arXiv 2304.01373, table 6"),
    r"EleutherAI/pythia-1\.4b(-deduped)?": (2e-4, "arXiv 2304.01373, table 6"),
    r"EleutherAI/pythia-2\.8b(-deduped)?": (1.6e-4, "arXiv 2304.01373, table 6"),
    r"EleutherAI/pythia-(6\.9b|12b)(-deduped)?": (1.2e-4, "arXiv 2304.01373, table 6"),
}
"""Published peak learning rate and its source, by a pattern for the hub id."""


@dataclass(frozen=True)
class PeakRate:
    """A peak learning rate as written: absolute, or a multiple of the base's own peak."""

    value: float
    of_base: bool = False

    def __str__(self) -> str:
        return f"{self.value:g}x base" if self.of_base else f"{self.value:g}"


def parse_rate(value: Any) -> PeakRate:
    """Read ``5e-5`` or ``"0.1x base"``; raises ``ValueError`` for anything else, and for what is not above 0."""
    if isinstance(value, PeakRate):
        return value
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(x\s*base)?\s*", str(value))
    try:
        rate = PeakRate(float(match[1]), match[2] is not None) if match and not isinstance(value, bool) else None
    except ValueError:
        rate = None
    if rate is None or not 0 < rate.value < float("inf"):
        raise ValueError("expected a learning rate above 0 such as `3e-5`, or `0.1x base`")
    return rate


RateSetting = Annotated[PeakRate, BeforeValidator(parse_rate), PlainSerializer(str)]


def published_peak(base_name: str) -> tuple[float, str] | None:
    """Peak learning rate of a base's pretraining and where it was published, or None when we know of none."""
    return next((found for pattern, found in BASE_PEAKS.items() if re.fullmatch(pattern, base_name)), None)


def resolve_peak(rate: PeakRate, base_peak: float | None, base_name: str | None) -> float | None:
    """The peak in absolute terms; None when it is relative to a base whose peak nobody told us.

    ``base_peak`` is the recipe's ``base_peak_learning_rate``, which goes before our table.
    """
    if not rate.of_base:
        return rate.value
    known = published_peak(base_name) if base_name else None
    peak = base_peak if base_peak is not None else (known[0] if known else None)
    return None if peak is None else rate.value * peak
