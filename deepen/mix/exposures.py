"""How often a run shows each token of an extended vocabulary: a row that is hardly ever trained is no gain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepen.formats.files.arrays import Array
from deepen.formats.tokens.new_token_counts import read_new_token_counts

FLOOR = 100
"""Fewer exposures are warned of. AdamW moves an entry of a row by at most about one learning rate an exposure, and
entries are of the size of 0.02: at 1e-4, a hundred exposures can move one by half of that. Our choice."""


def exposures(
    tokenize: Path, sources: Mapping[str, Mapping[str, Any]], fixed: Mapping[str, Array] | None = None
) -> dict[str, Any] | None:
    """Expected exposures of new tokens in an order, from their counts in the shards; None without new tokens.

    ``sources`` are the counts of the mix: a source's tokens are shown ``epochs`` times. ``fixed`` counts new tokens in
    fixed rows, which are in no shard of the tokenize stage. Keys: ``tokens``, ``floor``,
    ``under_floor`` and ``never`` (tokens), ``fewest`` and ``median`` (exposures).
    """
    counts = read_new_token_counts(tokenize)
    if not counts:
        return None
    shown = np.zeros(len(next(iter(counts.values()))))
    for name, of_source in {**counts, **(fixed or {})}.items():
        shown += sources[name]["epochs"] * of_source
    return {
        "tokens": len(shown),
        "floor": FLOOR,
        "under_floor": int(np.count_nonzero(shown < FLOOR)),
        "never": int(np.count_nonzero(shown == 0)),
        "fewest": round(float(shown.min()), 2),
        "median": round(float(np.median(shown)), 2),
    }


def exposure_line(found: Mapping[str, Any]) -> str:
    """What the summary says of them: a warning where some are seen too rarely."""
    seen = f"new tokens are shown {found['median']:,.0f} times each (median; fewest {found['fewest']:,.0f})"
    if not found["under_floor"]:
        return f"mix: {seen}"
    never = f", {found['never']:,} of them never" if found["never"] else ""
    return (
        f"mix: warning: {found['under_floor']:,} of {found['tokens']:,} new tokens are shown fewer than "
        f"{found['floor']} times{never}: their rows stay near where they begin; {seen}. Fewer new tokens "
        "(tokenize.vocabulary.extend) or more training shows each more often"
    )
