"""Telling a spike from ordinary noise: one batch whose loss or gradient is far above what recent steps had.

A spike is skipped (its update is not applied), so that one bad batch cannot throw a model off. The rule and its numbers
are OLMo-core's skip-step: 6 standard deviations over the last 128 steps, once there are 64. Until then the only guard
is against a loss far above that of the first step, where nothing had been learned yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from deepen.settings import Settings

MOST_NOT_FINITE = 5
"""Steps in a row that may be not finite before the run ends, where going back does not help."""


class SpikeRewind(Settings):
    """When skipping one batch after the other is not enough: back to a checkpoint, passing over what came after it."""

    after: int = Field(default=8, ge=1)
    """Skipped steps within ``within`` steps; what is not finite in 5 steps in a row leads back, too. Our choice: PaLM
    (arXiv 2204.02311) saw about 20 spikes in a whole run, so so many at once are not a matter of single batches."""
    within: int = Field(default=128, ge=1)
    """Steps that are looked at. Our choice: as many as the spikes are told from."""
    steps_before: int = Field(default=100, ge=0)
    """How many steps before the first of these spikes the checkpoint must be at least (PaLM, arXiv 2204.02311: roughly
    100; there 200 to 500 batches were passed over)."""
    most: int = Field(default=2, ge=0)
    """How often a run goes back. Our choice: what does not help twice is not a matter of the batches."""


class SkipSpikes(Settings):
    """When an update is not applied."""

    deviations: float = Field(default=6.0, gt=0)
    """Standard deviations above the mean of recent steps, of loss or gradient norm (OLMo-core; arXiv 2501.00656)."""
    window: int = Field(default=128, ge=2)
    """Recent steps that are looked at (OLMo-core)."""
    at_least: int = Field(default=64, ge=2)
    """Steps before the deviations are believed (OLMo-core)."""
    above_first: float = Field(default=2.0, gt=0)
    """In the first ``at_least`` steps: nats above the loss of the first step. Our choice: a re-warmed model rises by
    0.1 to 0.5 nats (Gupta et al., arXiv 2308.04014) and sources differ by a nat or so, a broken batch by several."""
    believe_after: int = Field(default=5, ge=2)
    """Spikes in a row after which it is no longer one bad batch but where the run now is (new data in a curriculum, for
    example): the past is forgotten and training goes on. Our choice."""
    rewind: SpikeRewind | None = SpikeRewind()
    """When skipping is not enough; null: never goes back."""


class RecentSteps:
    """Losses and gradient norms of the last applied steps; small enough to stand in a checkpoint's ``state.json``."""

    def __init__(
        self, window: int, losses: Sequence[float] = (), norms: Sequence[float] = (), first: float | None = None
    ):
        self.window = window
        self.losses = list(losses)[-window:]
        self.norms = list(norms)[-window:]
        self.first_loss = first

    def add(self, loss: float, gradient_norm: float) -> None:
        """Remember a step that was applied."""
        # Spikes never come here: one of them would widen the deviation enough to let the next one pass.
        if self.first_loss is None:
            self.first_loss = loss
        self.losses = [*self.losses, loss][-self.window :]
        self.norms = [*self.norms, gradient_norm][-self.window :]

    def forget(self) -> None:
        """Begin anew: the next applied step is the first."""
        self.losses, self.norms, self.first_loss = [], [], None

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps; floats survive JSON exactly."""
        return {"losses": self.losses, "gradient_norms": self.norms, "first_loss": self.first_loss}

    @classmethod
    def from_json(cls, window: int, values: dict[str, Any]) -> RecentSteps:
        """What ``to_json`` gave, for a run with this window."""
        return cls(window, values["losses"], values["gradient_norms"], values["first_loss"])


NOT_FINITE = "loss or gradient is not finite"


def not_finite(loss: float, gradient_norm: float) -> str | None:
    """Why a step is no step at all, or None."""
    return None if math.isfinite(loss) and math.isfinite(gradient_norm) else NOT_FINITE


def spike(settings: SkipSpikes | None, recent: RecentSteps, loss: float, gradient_norm: float) -> str | None:
    """Why this step is a spike against ``recent`` (which does not hold it), or None when it is ordinary.

    Without ``settings`` only what is not finite is one.
    """
    broken = not_finite(loss, gradient_norm)
    if broken or settings is None:
        return broken
    if len(recent.losses) < settings.at_least:
        if recent.first_loss is not None and loss - recent.first_loss > settings.above_first:
            return f"loss {loss:.3f} is {loss - recent.first_loss:.3f} nats above the first step's"
        return None
    for name, value, past in (("loss", loss, recent.losses), ("gradient norm", gradient_norm, recent.norms)):
        mean, deviation = _moments(past)
        # Upwards only: a loss that falls does no harm.
        if value - mean > settings.deviations * deviation:
            return f"{name} {value:.4g} is far above {mean:.4g} ± {deviation:.2g}, the last {len(past)} steps"
    return None


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of a sample."""
    sample_N = np.asarray(values)
    return float(sample_N.mean()), float(sample_N.std(ddof=1))
