"""Level and power of the comparison: how often it cries wolf between equal models, and finds what it says it would."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from deepen.evaluate.compare.statistics import ALPHA, Change, Pairs, clustered, holm, paired

pytestmark = [pytest.mark.slow]
TRIALS, RESAMPLES = 200, 1_000
Trial = Callable[[np.random.Generator, float], Pairs]
"""A comparison of two models that differ in chance alone, but for a relative drop of the second."""
LENGTHS = np.random.default_rng(5).lognormal(6, 1, 150)
QUESTIONS = np.random.default_rng(6).integers(1, 10, 80)


def band(rate: float, level: float = 0.99) -> tuple[int, int]:
    """The counts of `TRIALS` between which a binomial variable lies with `level`."""
    chances = [math.comb(TRIALS, k) * rate**k * (1 - rate) ** (TRIALS - k) for k in range(TRIALS + 1)]
    below = np.cumsum(chances)
    return int(np.searchsorted(below, (1 - level) / 2, side="right")), int(np.searchsorted(below, (1 + level) / 2))


def documents(generator: np.random.Generator, drop: float) -> Pairs:
    """Likelihoods of 150 documents of very different length, the models apart by 8 % on each, either way."""
    apart = 1 + generator.choice([-0.04, 0.04], len(LENGTHS))
    return Pairs(LENGTHS / apart, LENGTHS * apart * (1 + drop))


def passages(generator: np.random.Generator, drop: float) -> Pairs:
    """80 passages with one to nine questions each; a model that is better on a passage is so on all of them."""
    names = np.repeat(np.arange(len(QUESTIONS)), QUESTIONS).astype(str)
    better = np.repeat(generator.random(len(QUESTIONS)) < 0.5, QUESTIONS)
    values = np.where(better, 0.9, 0.7)
    return clustered(values, (1.6 - values) * (1 + drop), names.tolist())


def answers(generator: np.random.Generator, drop: float) -> Pairs:
    """1,200 questions: 300 that both models know, 180 on which they differ, 720 that neither knows."""
    to_base = generator.random(180) < (drop * 300 + 180) / (180 * (2 - drop))
    known = np.arange(1_020) < 300
    return clustered(np.concatenate([to_base, known]), np.concatenate([~to_base, known]))


def is_sure(change: Change) -> bool:
    assert change.interval is not None
    return change.interval[0] > 0 or change.interval[1] < 0


@pytest.mark.parametrize("trial", [documents, passages, answers])
def test_false_alarms_come_at_the_nominal_rate_and_the_detectable_drop_is_found(trial: Trial) -> None:
    alarms = found = 0
    for number in range(TRIALS):
        change = paired(trial(np.random.default_rng([number, 0]), 0.0), seed=(number, 0), resamples=RESAMPLES)
        assert change.minimum_detectable is not None
        # A rise of a likelihood is a drop of quality: the sign of the planted change is that of the statistic.
        planted = trial(np.random.default_rng([number, 1]), change.minimum_detectable)
        alarms += is_sure(change)
        found += is_sure(paired(planted, seed=(number, 1), resamples=RESAMPLES))
    low, high = band(ALPHA)
    assert low <= alarms <= high, f"{alarms} false alarms in {TRIALS} trials"
    assert found >= band(0.80)[0], f"{found} of {TRIALS} drops found"


def test_holm_holds_the_rate_of_any_alarm_among_ten_tasks() -> None:
    single = family = 0
    for number in range(TRIALS):
        generator = np.random.default_rng([number, 2])
        changes = {
            str(task): paired(documents(generator, 0.0), seed=(number, task), resamples=RESAMPLES) for task in range(10)
        }
        single += any(map(is_sure, changes.values()))
        values = {task: change.p_value for task, change in changes.items() if change.p_value is not None}
        family += min(holm(values).values()) <= ALPHA
    assert family <= band(ALPHA)[1] < single, "ten intervals side by side alarm far more often than one"


@pytest.mark.parametrize(("discordant", "largest_rate"), [(3, 0.0), (6, 0.05), (10, 0.05), (30, 0.07)])
def test_few_differing_items_raise_no_more_alarms(discordant: int, largest_rate: float) -> None:
    """So few items allow few levels only: the rate is a staircase, low at these."""
    alarms, known = 0, np.arange(500 - discordant) < 250
    for number in range(TRIALS):
        to_base = np.random.default_rng([number, discordant]).random(discordant) < 0.5
        pairs = clustered(np.concatenate([to_base, known]), np.concatenate([~to_base, known]))
        alarms += is_sure(paired(pairs, seed=(number, discordant), resamples=RESAMPLES))
    assert alarms <= (band(largest_rate)[1] if largest_rate else 0)
