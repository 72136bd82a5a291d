"""Runs that learned too little: a learning rate too low, or an end that came too early.

Losses of training are noisy, and a decayed learning rate flattens their end; held-out documents of several checkpoints
tell more (``forecast.py``). The slope of the losses is looked at where there are none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from deepen.formats.files.arrays import Array
from deepen.formats.training.said import said
from deepen.runs.diagnose.evidence import FEWEST_STEPS, Case, Finding, domain_losses
from deepen.runs.diagnose.forecast import Forecast

_LITTLE_LEARNED = 0.02
"""Relative fall of the domain's loss below which a run hardly learned."""
_STILL_GAINING = 1.15
"""Gain at the end against that of the middle from which on learning had not slowed. Where a rate is so low that all is
linear it is the ratio of summed rates: 2 if constant, 1.22 for a cosine to zero; near 1 with nothing left to learn."""
_STILL_FALLING = 0.01
"""Relative fall that another quarter of the run would surely bring, from which on it ended too early."""
_FASTER = "three times `train.learning_rate`; 0.1x to 0.3x of the base's peak is usual"
_LONGER = (
    "more `train.tokens`: `--continue` goes on where the schedule allows it (wsd, infinite, constant); or a higher "
    "`train.learning_rate`"
)


def rate_too_low(case: Case) -> Iterator[Finding]:
    """Hardly learned anything, and was not done."""
    crept = _crept(case)
    if crept is not None:
        yield crept
        return
    losses = domain_losses(case)
    if len(losses) < FEWEST_STEPS:
        return
    tenth = max(5, len(losses) // 10)
    learned = 1 - losses[-tenth:].mean() / losses[:tenth].mean()
    fall, error = _end_slope(losses)
    if learned < _LITTLE_LEARNED and fall > error:
        message = f"the domain's loss fell by {learned:.1%} in the whole run and was still falling"
        yield Finding("learning rate too low", message, _FASTER)


def under_trained(case: Case) -> Iterator[Finding]:
    """Another quarter of the run would surely bring much: by held-out text, or by training losses without it."""
    if "train" not in (case.counts or {}):
        return  # it is not over
    if case.forecast is not None:
        yield from _by_forecast(case.forecast)
        return
    losses = domain_losses(case)
    if len(losses) < FEWEST_STEPS:
        return
    fall, error = _end_slope(losses)
    if fall - error > _STILL_FALLING:
        message = f"at the end the domain's loss was falling by {fall:.1%} ± {error:.1%} per quarter of the run"
        yield Finding("under-trained", message, _LONGER)


def _by_forecast(found: Forecast) -> Iterator[Finding]:
    if found.interval[0] <= _STILL_FALLING:
        return
    low, high = found.interval
    steps = f"{len(found.steps)} checkpoints from step {found.steps[0]} to {found.steps[-1]}"
    yield Finding(
        "under-trained",
        f"by held-out text at {steps} a run longer by a quarter would bring {found.gain:.1%} ({low:.1%} to {high:.1%}) "
        "fewer domain bits per byte, beside what the falling learning rate brings",
        _LONGER,
    )


def _crept(case: Case) -> Finding | None:
    """A gain on held-out documents that is sure, surely tiny, and was still growing: pairing sees what the noise of
    training losses hides."""
    gains = [(one.step, score) for one in case.scores if (score := one.of("held_out", "new")) is not None]
    if len(gains) < 2 or (last := gains[-1][1]).interval is None:
        return None
    middle = min(gains[:-1], key=lambda gain: abs(gain[0] - gains[-1][0] / 2))[1]
    tiny = last.interval[0] > -_LITTLE_LEARNED and last.interval[1] < 0
    if not tiny or last.difference > _STILL_GAINING * min(0.0, middle.difference):
        return None
    return Finding(
        "learning rate too low",
        f"domain bits per byte {said(last)}, half way {said(middle)}: hardly moved, and was not done",
        _FASTER,
    )


def _end_slope(losses: Array) -> tuple[float, float]:
    """Relative fall per quarter of the run over its last quarter, and the half-width of its 95 % interval."""
    last = losses[-max(10, len(losses) // 4) :]
    steps = np.arange(len(last)) - (len(last) - 1) / 2
    spread = float(steps @ steps)
    slope = float(steps @ last) / spread
    residual = last - last.mean() - slope * steps
    error = math.sqrt(float(residual @ residual) / (len(last) - 2) / spread)
    return -slope * len(last) / float(last.mean()), 1.96 * error * len(last) / float(last.mean())
