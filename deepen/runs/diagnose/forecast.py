"""What another quarter of a run would have brought, forecast from held-out documents of its own checkpoints.

Every document is held against itself at several checkpoints, so what makes documents hard cancels, and the forecast is
much surer than the noisy losses of training allow. Time is counted in summed learning rates, and what a falling rate
brings by itself is told apart, because a longer run has it once and not twice.

    log(bits per byte at a checkpoint) = c - a log(sum of learning rates so far) + d (rate there / peak), d >= 0

By least squares over checkpoints. A run longer by a quarter, its schedule stretched with it, has 1.25 times the sum and
the same rate at its end, so its bits per byte change by 1.25^-a - 1. A power law seen closely is straight in
logarithms, and that a falling rate brings a gain of its own is in Tissue et al. (arXiv:2408.11029); this form, with so
few numbers in it, is our choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from deepen.evaluate.compare.statistics import interval_of, stream
from deepen.evaluate.documents.likelihoods import read_likelihoods
from deepen.formats.files.arrays import Array

QUARTER = 1.25
"""How much longer the run would be."""
_WINDOW = 4.0
"""Checkpoints count from which on the sum of learning rates grew by at most so much: the law need not hold from the
beginning. Measured: with 2 the two gains are told apart badly, with 4 the forecast is lower and closer to the truth."""
_FEWEST = 4
"""Checkpoints, one more than numbers that are fitted; where the learning rate did not change two are enough."""
_CHANGES = 0.02
"""Change of the learning rate, as a share of its peak, from which on its own effect is fitted."""
_RESAMPLES = 1_000
"""Bootstrap draws by document: enough for the ends of an interval, and quick."""


@dataclass(frozen=True)
class Forecast:
    """What a run longer by a quarter would have brought."""

    steps: tuple[int, ...]
    """Checkpoints that it is made from."""
    gain: float
    """Relative fall of the domain's bits per byte; negative: a rise."""
    interval: tuple[float, float]
    """95 %, by redrawing documents. How much runs with other seeds differ is not in it."""


def forecast(
    tables: Mapping[int, Path], metrics: Sequence[Mapping[str, Any]], sources: Sequence[str], *, seed: int
) -> Forecast | None:
    """Forecast from the likelihood tables of checkpoints by step; sources count alike.

    ``metrics``: the records of a training's steps, with ``step`` and ``learning_rate``. None when too few checkpoints
    lie late enough in the run, or a source could not be scored at one of them.
    """
    last = max(tables, default=0)
    if not sources or not metrics or metrics[-1]["step"] != last:
        return None
    sums = {step: _rates(metrics, step) for step in sorted(tables)}
    steps = tuple(step for step, (total, _) in sums.items() if total * _WINDOW >= sums[last][0] > 0)
    totals, rates = (np.array(values) for values in zip(*(sums[step] for step in steps), strict=True))
    decays = bool(np.ptp(rates) > _CHANGES)
    likelihoods = [_likelihoods([tables[step] for step in steps], source) for source in sources]
    known = [one for one in likelihoods if one is not None and len(one) > 1]
    if len(steps) < (_FEWEST if decays else 2) or len(known) < len(sources):
        return None
    drawn = [_redrawn(one, stream(seed, source)) for one, source in zip(known, sources, strict=True)]
    slopes = _slopes(np.mean([np.log(one) for one in drawn], axis=0), totals, rates if decays else None)
    gains = 1 - QUARTER**-slopes
    interval = interval_of(gains[1:])
    assert interval is not None, "there are redraws"
    return Forecast(steps, float(gains[0]), interval)


def _rates(metrics: Sequence[Mapping[str, Any]], step: int) -> tuple[float, float]:
    """Sum of learning rates of the steps up to ``step``, and the rate there as a share of the peak.

    Steps that were skipped moved nothing.
    """
    rates = [one.get("learning_rate") or 0.0 for one in metrics if one["step"] <= step and not one.get("skipped")]
    peak = max((one.get("learning_rate") or 0.0 for one in metrics), default=0.0)
    return (sum(rates), rates[-1] / peak) if rates and peak > 0 else (0.0, 0.0)


def _likelihoods(tables: Sequence[Path], source: str) -> Array | None:
    """float64[documents, checkpoints] in nats; None when a checkpoint did not score what another did."""
    columns: list[dict[str, float]] = []
    for path in tables:
        table = read_likelihoods(path)
        rows = table.filter(pc.and_(pc.equal(table["source"], source), pc.is_valid(table["nll"])))
        columns.append(dict(zip(rows["id"].to_pylist(), rows["nll"].to_pylist(), strict=True)))
    if any(column.keys() != columns[0].keys() for column in columns):
        return None
    return np.array([[column[document] for column in columns] for document in sorted(columns[0])])


def _redrawn(likelihoods: Array, seed: tuple[int, int]) -> Array:
    """float64[1 + redraws, checkpoints]: sums over all documents, then over redrawn ones."""
    generator, count = np.random.default_rng(seed), len(likelihoods)

    def sums() -> Iterator[Array]:
        yield likelihoods.sum(axis=0)
        for _ in range(_RESAMPLES):
            yield likelihoods[generator.integers(count, size=count)].sum(axis=0)

    return np.stack(list(sums()))


def _slopes(losses: Array, totals: Array, rates: Array | None) -> Array:
    """The ``a`` of the module's formula for every row of ``losses`` (logarithms, [rows, checkpoints])."""
    plain = np.column_stack([np.ones_like(totals), -np.log(totals)])
    alone: Array = (np.linalg.pinv(plain) @ losses.T)[1]
    if rates is None:
        return alone
    fitted = np.linalg.pinv(np.column_stack([plain, rates])) @ losses.T
    slopes: Array = np.where(fitted[2] >= 0, fitted[1], alone)
    return slopes
