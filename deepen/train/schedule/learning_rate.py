"""The peak learning rate: an absolute number, or a multiple of the peak or final rate of the base's pretraining.

Forgetting grows and adaptation gains with the peak; what matters is its ratio to the base's own (Ibrahim et al., arXiv
2403.08763, table 1; Gupta et al., 2308.04014). A base trained far past its optimum may do best from its own final rate
(Parmar et al., arXiv 2407.07263). Bases whose authors published them are in ``BASE_PEAKS`` and ``BASE_FINALS``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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

BASE_FINALS: dict[str, tuple[float, str]] = {
    r"meta-llama/Llama-2-(7|13)b(-hf)?": (3e-5, "arXiv 2307.09288, section 2.2: 10 % of the peak"),
    r"meta-llama/Llama-2-70b(-hf)?": (1.5e-5, "arXiv 2307.09288, section 2.2: 10 % of the peak"),
    r"TinyLlama/TinyLlama-1\.1B-.*": (4e-5, "arXiv 2401.02385"),
    r"EleutherAI/pythia-70m(-deduped)?": (1e-4, "arXiv 2304.01373: 10 % of the peak"),
    r"EleutherAI/pythia-160m(-deduped)?": (6e-5, "arXiv 2304.01373: 10 % of the peak"),
    r"EleutherAI/pythia-(410m|1b)(-deduped)?": (3e-5, "arXiv 2304.01373: 10 % of the peak"),
    r"EleutherAI/pythia-1\.4b(-deduped)?": (2e-5, "arXiv 2304.01373: 10 % of the peak"),
    r"EleutherAI/pythia-2\.8b(-deduped)?": (1.6e-5, "arXiv 2304.01373: 10 % of the peak"),
    r"EleutherAI/pythia-(6\.9b|12b)(-deduped)?": (1.2e-5, "arXiv 2304.01373: 10 % of the peak"),
}
"""Published final learning rate; bases that were annealed to zero have none that could be started from."""


@dataclass(frozen=True)
class PeakRate:
    """A peak learning rate as written: absolute, or a multiple of one of the base's own."""

    value: float
    of_base: Literal["peak", "final"] | None = None

    def __str__(self) -> str:
        return f"{self.value:g}" + {None: "", "peak": "x base", "final": "x base final"}[self.of_base]


def parse_rate(value: Any) -> PeakRate:
    """Read ``5e-5``, ``"0.1x base"`` or ``"1x base final"``.

    Raises ``ValueError`` for anything else, and for what is not above 0.
    """
    if isinstance(value, PeakRate):
        return value
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(x\s*base(\s+final)?)?\s*", str(value))
    try:
        rate = PeakRate(float(match[1]), _of_base(match)) if match and not isinstance(value, bool) else None
    except ValueError:
        rate = None
    if rate is None or not 0 < rate.value < float("inf"):
        raise ValueError("expected a learning rate above 0 such as `3e-5`, `0.1x base` or `1x base final`")
    return rate


def _of_base(match: re.Match[str]) -> Literal["peak", "final"] | None:
    if match[2] is None:
        return None
    return "peak" if match[3] is None else "final"


RateSetting = Annotated[PeakRate, BeforeValidator(parse_rate), PlainSerializer(str)]


@dataclass(frozen=True)
class BaseRates:
    """What is known of the base's own schedule: hub id or folder, and what the recipe says goes before our tables."""

    name: str | None
    peak: float | None = None
    final: float | None = None

    def known(self, which: Literal["peak", "final"]) -> float | None:
        """The base's peak or final rate, or None when nobody told us."""
        told = self.peak if which == "peak" else self.final
        if told is not None or self.name is None:
            return told
        found = published(BASE_PEAKS if which == "peak" else BASE_FINALS, self.name)
        return found[0] if found else None


def published(table: Mapping[str, tuple[float, str]], base_name: str) -> tuple[float, str] | None:
    """A base's rate and where it was published, or None when we know of none."""
    return next((found for pattern, found in table.items() if re.fullmatch(pattern, base_name)), None)


def resolve_peak(rate: PeakRate, base: BaseRates) -> float | None:
    """The peak in absolute terms; None when it is relative to a rate of the base that nobody told us."""
    if rate.of_base is None:
        return rate.value
    known = base.known(rate.of_base)
    return None if known is None else rate.value * known
