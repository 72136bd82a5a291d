"""Telling slow divergence from ordinary noise: a smoothed loss that stays above where it has been, step after step.

Each source is smoothed on its own and held against its own lowest point, so that a change of the mixture, which moves
the mean loss by a nat at once, is no rise. Nothing counts before the warm-up is over: a base that is warmed up again
rises by 0.1 to 0.5 nats first (Gupta et al., arXiv 2308.04014).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy.typing as npt
from pydantic import Field

from deepen.settings import Settings


class Divergence(Settings):
    """When a rising loss counts as divergence, and what is done about it. All numbers are our choice."""

    smoothing: int = Field(default=50, ge=1)
    """Steps over which the loss of each source is averaged (exponentially, by tokens). Our choice: the noise of a batch
    shrinks tenfold, and a rise is seen within about as many steps."""
    rise: float = Field(default=0.2, gt=0)
    """Nats above its lowest point that the smoothed loss must stay. Our choice, untried on long runs: above the noise
    of the tiny runs that we watched, well below what a run that diverges shows."""
    deviations: float = Field(default=6.0, ge=0)
    """Standard errors of the smoothed loss that the rise must exceed, too. Our choice, after skip-step's 6."""
    steps: int = Field(default=100, ge=1)
    """Steps in a row that it must stay there, still rising, before anything is done. Our choice: a transient that
    training itself makes good again is over by then."""
    lower_to: float = Field(default=0.5, gt=0, lt=1)
    """First answer: the learning rate from there on as a multiple of what it was. Our choice."""
    lower_times: int = Field(default=2, ge=0)
    """How often that is tried, each time for ``steps`` more steps. Our choice."""
    rewinds: int = Field(default=1, ge=0)
    """Second answer, so often: back to the checkpoint before the rise, its batches passed over (PaLM, arXiv 2204.02311,
    went back about 100 steps and passed over 200 to 500 batches). The last answer is to stop."""


@dataclass
class LossTrend:
    """The smoothed loss of every source and how far it is above its lowest; small enough for ``state.json``.

    Lists are by source index.
    """

    nll: list[float] = field(default_factory=list)
    """Smoothed sum of negative log-likelihoods (nats) of a batch's labels."""
    labels: list[float] = field(default_factory=list)
    """Smoothed number of labels in a batch."""
    batches: list[int] = field(default_factory=list)
    """Batches with this source."""
    lowest: list[float] = field(default_factory=list)
    """Lowest smoothed loss so far, once there were enough batches."""
    variance: float = 0.0
    """Smoothed squared distance of a batch's loss from what the smoothed losses let expect."""
    rise: float = 0.0
    """Nats above the lowest points, weighted by labels."""
    steps_above: int = 0
    """Steps in a row in which the rise was too large."""
    since: int = 0
    """The step in which that began."""
    rise_then: float = 0.0
    """The rise that it must be below by the end of the count: that of its beginning, or half of what was answered."""

    def add(self, settings: Divergence, step: int, nll_S: npt.NDArray[Any], labels_S: npt.NDArray[Any]) -> None:
        """Take in an applied step: sums of negative log-likelihoods (nats) and numbers of labels by source."""
        self._grow(len(nll_S))
        alpha = 2 / (settings.smoothing + 1)
        # Against what was known before: afterwards the batch would be compared with itself in part.
        residual = self._residual(nll_S, labels_S)
        for source, (nll, labels) in enumerate(zip(nll_S.tolist(), labels_S.tolist(), strict=True)):
            # Both sums begin at 0 and forget alike, so their ratio is right from the first batch on. A batch without
            # this source shrinks both and leaves the ratio.
            self.nll[source] += alpha * (nll - self.nll[source])
            self.labels[source] += alpha * (labels - self.labels[source])
            self.batches[source] += labels > 0
        self.variance += alpha * (residual**2 - self.variance)
        self.rise = self._rise(settings)
        self._count(settings, step, alpha)

    def _grow(self, num_sources: int) -> None:
        more = num_sources - len(self.nll)
        for values, value in ((self.nll, 0.0), (self.labels, 0.0), (self.lowest, math.inf)):
            values.extend([value] * more)
        self.batches.extend([0] * more)

    def _residual(self, nll_S: npt.NDArray[Any], labels_S: npt.NDArray[Any]) -> float:
        """The batch's loss less what the smoothed losses of its sources let expect; unseen ones are no news."""
        difference = total = 0.0
        for source, (nll, labels) in enumerate(zip(nll_S.tolist(), labels_S.tolist(), strict=True)):
            if self.batches[source]:
                difference += nll - labels * self.nll[source] / self.labels[source]
            total += labels
        return difference / max(1.0, total)

    def _rise(self, settings: Divergence) -> float:
        total = weighted = 0.0
        for source, labels in enumerate(self.labels):
            # Too few batches for a lowest point that is more than noise.
            if self.batches[source] < settings.smoothing:
                continue
            smoothed = self.nll[source] / labels if labels else 0.0
            self.lowest[source] = min(self.lowest[source], smoothed)
            weighted += labels * (smoothed - self.lowest[source])
            total += labels
        return weighted / total if total else 0.0

    def _count(self, settings: Divergence, step: int, alpha: float) -> None:
        # The variance of an exponential mean of independent values is alpha / (2 - alpha) times theirs.
        error = math.sqrt(self.variance * alpha / (2 - alpha))
        if self.rise <= max(settings.rise, settings.deviations * error):
            self.steps_above = 0
            return
        if self.steps_above == 0:
            self.since, self.rise_then = step, self.rise
        self.steps_above += 1

    def diverges(self, settings: Divergence) -> bool:
        """Whether it has been too high for long enough and has not begun to fall."""
        return self.steps_above >= settings.steps and self.rise >= self.rise_then

    def wait_again(self) -> None:
        """Something was done about it: count anew, and expect that half of the rise goes by then."""
        # 1 and not 0, so that `since` still names where it began: a way back must lead to before that.
        self.steps_above = min(self.steps_above, 1)
        self.rise_then = self.rise / 2

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps; infinity stands as null."""
        return asdict(self) | {"lowest": [None if math.isinf(value) else value for value in self.lowest]}

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> LossTrend:
        """What ``to_json`` gave; None: nothing seen yet."""
        if values is None:
            return cls()
        return cls(**values | {"lowest": [math.inf if value is None else value for value in values["lowest"]]})
