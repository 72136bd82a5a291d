"""What an order holds, counted from the order itself: the numbers of the manifest, by source, supply and phase.

Nothing is taken from the builder's own books, so the account also holds for Megatron's order and proves ours. One pass
over the order in blocks; memory: 5 bytes per packed row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from deepen.engine.compiled import njit
from deepen.formats.files.arrays import Array
from deepen.formats.tokens.order import Order
from deepen.mix.order.build import Supply
from deepen.mix.order.mixture import Mixture

WINDOWS = 40
"""Parts of the run in which shares are told."""


@dataclass(frozen=True)
class Tally:
    """What an order takes from each supply (last axis: supplies)."""

    rows: Array
    """Rows in the order, repeats included."""
    tokens: Array
    seen_rows: Array
    """Different rows in the order."""
    seen_tokens: Array
    cuts: tuple[int, ...]
    """Batches at which windows begin, and the end."""
    window_tokens: Array
    """int64[windows, supplies]."""

    def tokens_between(self, first_batch: int, end_batch: int) -> Array:
        """Tokens by supply in a range of batches that begins and ends at cuts."""
        first, end = self.cuts.index(first_batch), self.cuts.index(end_batch)
        return self.window_tokens[first:end].sum(axis=0)  # type: ignore[no-any-return]


def supply_of_ids(ids: Array, supplies: Sequence[Supply]) -> Array:
    """Index of the supply that each row id is from; supplies must stand in the order of their ids."""
    starts = np.array([supply.first_id for supply in supplies], dtype=np.uint64)
    # Ids of a supply are one range: the last start that is not above.
    return np.searchsorted(starts, ids, side="right") - 1


def rows_drawn(order: Order, supplies: Sequence[Supply], num_batches: int) -> Array:
    """int64[supplies]: rows of each supply in the first batches of an order, repeats included."""
    found = np.zeros(len(supplies), dtype=np.int64)
    for _, _, ids in order.blocks(0, num_batches):
        found += np.bincount(supply_of_ids(ids, supplies), minlength=len(supplies))
    return found


def tally(order: Order, supplies: Sequence[Supply], phase_ends: Sequence[int]) -> Tally:
    """Count an order, in windows that also end at ``phase_ends``."""
    even = (round(number * order.num_batches / WINDOWS) for number in range(WINDOWS + 1))
    cuts = tuple(sorted({0, *even, *phase_ends}))  # phases end at cuts too, so that each can be told from whole windows
    offsets = np.concatenate([[0], np.cumsum([supply.num_rows for supply in supplies])])
    starts = np.array([supply.first_id for supply in supplies], dtype=np.uint64)
    tokens_of_rows = np.concatenate([supply.tokens_per_row for supply in supplies])
    seen = np.zeros(offsets[-1], dtype=np.bool_)
    totals = np.zeros((3, len(supplies)), dtype=np.int64)
    window_tokens = np.zeros((len(cuts) - 1, len(supplies)), dtype=np.int64)
    for window, (first, end) in enumerate(pairwise(cuts)):
        for _, _, ids in order.blocks(first, end):
            _count(ids, (starts, offsets, tokens_of_rows), seen, totals, window_tokens[window])
    return Tally(totals[0], window_tokens.sum(axis=0), totals[1], totals[2], cuts, window_tokens)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _count(ids: Array, rows: tuple[Array, Array, Array], seen: Array, totals: Array, tokens: Array) -> None:
    starts, offsets, tokens_of_rows = rows
    for row_id in ids:
        supply = np.searchsorted(starts, row_id, side="right") - 1
        place = offsets[supply] + np.int64(row_id - starts[supply])
        totals[0, supply] += 1
        tokens[supply] += tokens_of_rows[place]
        if not seen[place]:
            seen[place] = True
            totals[1, supply] += 1
            totals[2, supply] += tokens_of_rows[place]


def mix_counts(
    mixture: Mixture, supplies: Sequence[Supply], packed: Sequence[Mapping[str, Any]], found: Tally
) -> dict[str, Any]:
    """The counts of the manifest; ``packed`` is what packing returned for each source."""
    sources = {
        name: _source_counts(name, mixture, result, found) for name, result in zip(mixture.sources, packed, strict=True)
    }
    phases = [_phase_counts(mixture, number, found) for number in range(len(mixture.phases))]
    tokens = [phase["num_batches"] * phase["rows_per_batch"] * phase["sequence_length"] for phase in phases]
    asked = sum(number * sum(phase["domain_share"]) / 2 for number, phase in zip(tokens, phases, strict=True))
    return {
        "sources": sources,
        "supplies": [
            {"name": supply.name, "role": supply.role, "tokens": supply.num_tokens, "order_tokens": int(taken)}
            for supply, taken in zip(supplies, found.tokens, strict=True)
        ],
        "phases": phases,
        "sequence_length": max(phase["sequence_length"] for phase in phases),
        "rows_per_batch": min(phase["rows_per_batch"] for phase in phases),
        "num_batches": sum(phase["num_batches"] for phase in phases),
        "domain_share": round(asked / sum(tokens), 9),
        "order": mixture.order,
        "shares_over_time": _shares_over_time(mixture, found),
    }


def _source_counts(name: str, mixture: Mixture, result: Mapping[str, Any], found: Tally) -> dict[str, Any]:
    """One source: what was packed, and what the order takes of it."""
    members = [index for index, supply in enumerate(mixture.supplies) if supply.source == name]
    stored = [mixture.supplies[index] for index in members]
    rows, tokens = sum(supply.rows for supply in stored), sum(supply.tokens for supply in stored)
    slots = sum(supply.rows * supply.sequence_length for supply in stored)
    order_rows, order_tokens, seen_rows, seen_tokens = (
        int(values[members].sum()) for values in (found.rows, found.tokens, found.seen_rows, found.seen_tokens)
    )
    passes = result.get("passes", 1)
    return {
        "role": stored[0].role,
        "documents": sum(supply.documents for supply in stored),
        # An uncut document is one piece per pass.
        "cuts": max(0, sum(supply.pieces - passes * supply.documents for supply in stored)),
        "shard_tokens": result["shard_tokens"],
        "passes": passes,
        "packed_tokens": tokens,
        "left_over": result.get("left_over", 0),
        "rows": rows,
        "slots": slots,
        "padding": slots - tokens,
        "order_rows": order_rows,
        "order_tokens": order_tokens,
        "rows_seen": seen_rows,
        "rows_unused": rows - seen_rows,
        "seen_tokens": seen_tokens,
        "unused_tokens": tokens - seen_tokens,
        "epochs": round(order_tokens / result["shard_tokens"], 6) if result["shard_tokens"] else 0.0,
    }


def _phase_counts(mixture: Mixture, number: int, found: Tally) -> dict[str, Any]:
    """One phase: the shares of tokens that were asked from each source and those that the order has."""
    phase = mixture.phases[number]
    taken = found.tokens_between(phase.first_batch, phase.first_batch + phase.num_batches)
    realised = _by_source(mixture, taken)
    return {
        "first_batch": phase.first_batch,
        "num_batches": phase.num_batches,
        "sequence_length": phase.sequence_length,
        "rows_per_batch": phase.rows_per_batch,
        "domain_share": list(phase.domain_share),
        "asked": {name: round(phase.share_of(name, mixture.roles[name]), 6) for name in mixture.sources},
        "realised": {name: round(share, 6) for name, share in realised.items()},
    }


def _by_source(mixture: Mixture, tokens: Array) -> dict[str, float]:
    """Shares of the sources in tokens by supply."""
    total = max(1, int(tokens.sum()))
    return {
        name: sum(int(n) for supply, n in zip(mixture.supplies, tokens, strict=True) if supply.source == name) / total
        for name in mixture.sources
    }


def _shares_over_time(mixture: Mixture, found: Tally) -> dict[str, list[float]]:
    """Shares of the sources in each fortieth of the run (fewer where there are fewer batches)."""
    num_batches = found.cuts[-1]
    edges = sorted({round(number * num_batches / WINDOWS) for number in range(WINDOWS + 1)})
    windows = [_by_source(mixture, found.tokens_between(first, end)) for first, end in pairwise(edges)]
    return {name: [round(window[name], 4) for window in windows] for name in mixture.sources}
