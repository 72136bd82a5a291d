"""How sure a difference is: paired bootstrap by cluster, the smallest change that would have been found, Holm.

Two models are measured on the same items. What the items have in common (a document, a passage that several questions
are about) is a cluster, and clusters are drawn with replacement, the same draw for both models, so that the difficulty
of an item cancels (E. Miller, "Adding Error Bars to Evals", 2024, arXiv:2411.00640). One statistic serves all: the sum
of the model's values over the sum of the base's, less 1 (likelihoods: relative change of bits per byte; outcomes of 0
and 1: relative change of accuracy), or the difference of the means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from deepen.formats.files.arrays import Array
from deepen.formats.training.scores import Score

RESAMPLES = 10_000
ALPHA = 0.05
"""Two-sided level of intervals, of detection and of the family of tasks."""
_DRAWN_AT_ONCE = 1 << 20
"""Clusters drawn at a time: 24 MB of indices and values, however many clusters a source has."""
_NORMAL = np.array([1.959964, 0.841621])
"""Quantiles of the normal distribution at 0.975 and 0.80: a two-sided test at 5 % finds a change of so many standard
errors, added up (the factor 2.8 of Miller 2024), 8 times in 10."""


@dataclass(frozen=True)
class Pairs:
    """Items of one task measured with both models, summed by cluster."""

    base: Array
    """float64[n]: sum of the base's values in each cluster (nats, or right answers)."""
    model: Array
    """float64[n]: the model's."""
    weights: Array | None = None
    """float64[n]: items in each cluster; None: one each."""

    @property
    def num_clusters(self) -> int:
        """Clusters in the comparison."""
        return len(self.base)


@dataclass(frozen=True)
class Change:
    """A change with all that says how sure it is."""

    difference: float
    """Relative to the base, or of the means."""
    interval: tuple[float, float] | None = None
    """95 %; None with a single cluster."""
    standard_error: float | None = None
    """Of the difference, from the differences of clusters; None with a single cluster."""
    drawn: Array | None = None
    """float64[resamples]: the difference in every redraw."""
    num_clusters: int | None = None
    """Of a single task."""

    @property
    def minimum_detectable(self) -> float | None:
        """The change that would be found 8 times in 10, at a level of 5 %; None where the models do not differ on any
        item, which says nothing about how much they would scatter if they did."""
        if not self.standard_error:
            return None
        return self.standard_error * _detection(self.drawn, self.num_clusters)

    @property
    def p_value(self) -> float | None:
        """Two-sided: how often redraws lie on the other side of no change; at least 2 / (redraws + 1)."""
        return None if self.drawn is None else p_value_of(self.drawn)

    def score(self, **what: Any) -> Score:
        """The score that this is the change of; ``what`` are its other fields."""
        return Score(
            difference=self.difference, interval=self.interval, minimum_detectable=self.minimum_detectable,
            p_value=self.p_value, **what,
        )  # fmt: skip


def _detection(drawn: Array | None, num_clusters: int | None) -> float:
    """Standard errors of a change that is found 8 times in 10: 2.80, and more with few clusters or skewed redraws.

    Few clusters: Student's quantiles, to first order in 1 / degrees of freedom. Skewed: the quantiles of the redraws
    in the direction in which a change is harder to find, where they are larger than the normal ones.
    """
    quantiles = _NORMAL
    if num_clusters is not None:
        quantiles = quantiles + (quantiles**3 + quantiles) / (4 * (num_clusters - 1))
    found = float(quantiles.sum())
    if drawn is None or not drawn.std():
        return found
    rarely_low, low, high, rarely_high = np.percentile((drawn - drawn.mean()) / drawn.std(), [2.5, 20, 80, 97.5])
    # The first sum is for a change whose noise is skewed upwards, the second downwards. Never below the normal ones.
    return found * max(1.0, float(max(rarely_high + high, -rarely_low - low) / _NORMAL.sum()))


def clustered(base: Array, model: Array, clusters: Sequence[str] | None = None) -> Pairs:
    """Items (float64[n] or bool[n], one per item) summed by the cluster that each is of; None: each its own."""
    base, model = np.asarray(base, dtype=np.float64), np.asarray(model, dtype=np.float64)
    if clusters is None:
        return Pairs(base, model)
    names, places = np.unique(np.asarray(clusters), return_inverse=True)
    sums = [np.bincount(places, weights=values, minlength=len(names)) for values in (base, model)]
    return Pairs(sums[0], sums[1], np.bincount(places, minlength=len(names)).astype(np.float64))


def paired(pairs: Pairs, *, seed: tuple[int, int], resamples: int = RESAMPLES, relative: bool = True) -> Change:
    """The change from base to model: ``relative`` (sum / sum - 1), else the difference of means over items.

    A relative change of a base that has no right answer does not exist: raises ``ValueError``.
    """
    if relative and not pairs.base.sum():
        raise ValueError("a relative change needs a base whose sum is not 0")
    difference = _difference(pairs, relative)
    if pairs.num_clusters == 1:
        return Change(difference)
    drawn = redrawn_changes(pairs, seed=seed, resamples=resamples, relative=relative)
    error = _error_of(_scatter(pairs, relative))
    return Change(difference, interval_of(drawn), error, drawn, pairs.num_clusters)


def mean_change(changes: Sequence[Change]) -> Change:
    """The mean over independent tasks: of differences and of every redraw; none is sure when one of them is not."""
    difference = float(np.mean([change.difference for change in changes]))
    errors = [change.standard_error for change in changes if change.standard_error is not None]
    redraws = [change.drawn for change in changes if change.drawn is not None]
    if len(errors) < len(changes) or len(redraws) < len(changes):
        return Change(difference)
    # Seeds differ between tasks, so that the k-th redraws of all are independent: their mean is a redraw of the mean.
    drawn = np.mean(redraws, axis=0)
    return Change(difference, interval_of(drawn), float(np.sqrt(np.square(errors).sum()) / len(changes)), drawn)


def mean_of_shared(tasks: Sequence[Pairs], *, seed: tuple[int, int], resamples: int, relative: bool) -> Change:
    """The mean over tasks that have clusters in common (the same passage, the same person), drawn for all at once.

    ``tasks`` list the same clusters in the same order, with sums of 0 where a task has nothing of one. As if they were
    independent, the interval would be up to the root of their number too narrow.
    """
    difference = float(np.mean([_difference(pairs, relative) for pairs in tasks]))
    # The same seed and number of clusters draw the same clusters in each task: that is what keeps them together.
    drawn = np.mean([redrawn_changes(p, seed=seed, resamples=resamples, relative=relative) for p in tasks], axis=0)
    # Averaged by cluster before it is squared, so that scatter which tasks share counts in full.
    scatter = np.mean([_scatter(pairs, relative) for pairs in tasks], axis=0)
    return Change(difference, interval_of(drawn), _error_of(scatter), drawn)


def _difference(pairs: Pairs, relative: bool) -> float:
    if relative:
        return float(pairs.model.sum() / pairs.base.sum() - 1)
    items = pairs.num_clusters if pairs.weights is None else pairs.weights.sum()
    return float((pairs.model.sum() - pairs.base.sum()) / items)


def redrawn_changes(pairs: Pairs, *, seed: tuple[int, int], resamples: int = RESAMPLES, relative: bool = True) -> Array:
    """The difference in each of ``resamples`` redrawn sets of clusters, float64.

    The bytes of a redrawn set are the same for both models, so the change of its bits per byte is the ratio of summed
    likelihoods - 1. A redraw in which the base has nothing right keeps the base's sum over all items as its measure.
    """
    generator = np.random.default_rng(seed)
    values = np.stack([pairs.base, pairs.model], axis=1)
    if pairs.weights is not None and not relative:
        values = np.column_stack([values, pairs.weights])
    num_clusters = pairs.num_clusters
    sums = np.empty((resamples, values.shape[1]))
    rows_at_once = max(1, _DRAWN_AT_ONCE // num_clusters)
    for start in range(0, resamples, rows_at_once):
        stop = min(start + rows_at_once, resamples)
        drawn = generator.integers(num_clusters, size=(stop - start, num_clusters), dtype=np.int32)
        # One draw for base and model: what makes a document hard is in both sums, and cancels in their ratio.
        sums[start:stop] = values[drawn].sum(axis=1)
    if relative:
        below = np.where(sums[:, 0] == 0, pairs.base.sum(), sums[:, 0])
        # Where the redraw has nothing right of the base's, the change is (model - 0) / base over all.
        changes: Array = np.where(sums[:, 0] == 0, sums[:, 1] / below, sums[:, 1] / below - 1)
        return changes
    items = np.maximum(sums[:, 2], 1) if values.shape[1] == 3 else num_clusters
    differences: Array = (sums[:, 1] - sums[:, 0]) / items
    return differences


def _scatter(pairs: Pairs, relative: bool) -> Array:
    """What every cluster adds to the difference beyond its share, float64[n]."""
    weights = np.ones(pairs.num_clusters) if pairs.weights is None else pairs.weights
    difference = _difference(pairs, relative)
    if relative:
        # To first order d(M / B) = (dM - (M / B) dB) / B. It adds up to 0 over the clusters.
        found: Array = (pairs.model - (1 + difference) * pairs.base) / abs(pairs.base.sum())
    else:
        found = (pairs.model - pairs.base - difference * weights) / weights.sum()
    return found


def _error_of(scatter: Array) -> float:
    """Standard error of a difference from the scatter of clusters around it (first-order for ratios), n >= 2.

    Of outcomes with discordance d (share of items on which the models differ) and equal accuracy it is sqrt(d / n).
    """
    return float(np.sqrt(len(scatter) / (len(scatter) - 1) * np.square(scatter).sum()))


def interval_of(changes: Array) -> tuple[float, float]:
    """The central 95 % of redrawn changes."""
    low, high = np.percentile(changes, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)


def p_value_of(drawn: Array) -> float:
    """Two-sided p-value of no change: twice the smaller share of redraws at or beyond 0, both ends counted in."""
    # One is added to both counts, or so few redraws could claim a p-value of 0.
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return float(min(1.0, 2 * (beyond + 1) / (len(drawn) + 1)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values of a family of tasks (Holm 1979): at or below alpha, the change holds for all tasks together.

    The k-th smallest of m is multiplied by m - k + 1, and none is smaller than the one before it.
    """
    adjusted, largest = {}, 0.0
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    for rank, (name, value) in enumerate(ordered):
        largest = max(largest, min(1.0, value * (len(ordered) - rank)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def adjusted(scores: Sequence[Score]) -> list[Score]:
    """The scores of one checkpoint with ``significant`` told for its tasks together (Holm), means of tasks apart.

    A score is a mean when there are scores of its parts (``held_out`` beside ``held_out:web``): means summarise what
    the tasks say, so they are a family of their own. Without a p-value nothing is said.
    """
    parts = {(score.probe.partition(":")[0], score.ability) for score in scores if ":" in score.probe}
    verdicts: dict[str, float] = {}
    for is_mean in (False, True):
        family = {
            _key(score): score.p_value
            for score in scores
            if score.p_value is not None and ((score.probe, score.ability) in parts) == is_mean
        }
        verdicts |= holm(family)
    return [
        score.model_copy(update={"significant": verdicts[_key(score)] <= ALPHA}) if _key(score) in verdicts else score
        for score in scores
    ]


def _key(score: Score) -> str:
    return f"{score.ability} {score.probe}"


def stream(seed: int, name: str) -> tuple[int, int]:
    """A seed of its own for every task: adding a task does not move the others' intervals."""
    return seed, xxhash.xxh3_64_intdigest(name.encode())


@dataclass(frozen=True)
class Noise:
    """How far runs that differ in nothing but the seed lie apart."""

    mean: float
    deviation: float
    """Standard deviation over seeds, n - 1 below."""
    runs: int


def seed_noise(values: Sequence[float]) -> Noise:
    """Mean and standard deviation of one score over runs of the same recipe with other seeds; at least two."""
    if len(values) < 2:
        raise ValueError("noise needs two runs at least")
    return Noise(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))
