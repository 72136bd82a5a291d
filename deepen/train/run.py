"""A training run: what it is made of, how far it is, and the files that it writes.

Whatever happens to a run (a step, a save, a decision) takes this record and may return a changed one; only
``Progress`` is changed in place, because a checkpoint is written from it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepen.formats.training.decisions import Ledger
from deepen.model.compute.compiled import Compilations
from deepen.train.batches.counts import SourceCounts
from deepen.train.batches.prefetch import Prefetch
from deepen.train.batches.read import Batches
from deepen.train.beside.flops import Flops
from deepen.train.beside.hooks import Hooks
from deepen.train.checkpoints.saving import Saver
from deepen.train.faults.divergence import Divergence, LossTrend
from deepen.train.faults.spikes import RecentSteps, SkipSpikes
from deepen.train.schedule.new_rows import NewRowsFirst
from deepen.train.schedule.schedules import Schedule, Shape
from deepen.train.step import Trainee


@dataclass(frozen=True)
class Calendar:
    """When what happens once in a while happens, in steps (None: never) or seconds."""

    log_every: int
    save_every: int | None
    save_every_seconds: float | None
    milestone_every: int | None
    evaluate_every: int | None
    evaluated_stay: bool = True
    """Every scored checkpoint is a milestone."""


@dataclass
class Progress:
    """How far a run is: what a checkpoint remembers besides tensors."""

    counts: list[SourceCounts]
    step: int = 0
    """Finished steps."""
    batch_index: int = 0
    """The next batch of the order."""
    skipped_steps: int = 0
    skips_in_a_row: int = 0
    last_loss: float | None = None
    recent: RecentSteps = field(default_factory=lambda: RecentSteps(0))
    trend: LossTrend = field(default_factory=LossTrend)
    rate_factor: float = 1.0
    """What decisions have multiplied the schedule's learning rate by, for good."""
    penalty_factors: dict[str, float] = field(default_factory=dict)
    """And the strengths of penalties on leaving the base."""
    judged_step: int = 0
    """Where another process scores: the last step whose scores were taken, or given up."""
    saved_step: int = 0
    """The newest checkpoint."""
    last_save: float = field(default_factory=time.monotonic)
    elapsed_seconds: float = 0.0
    """Time spent on training, earlier starts of the run included."""

    @property
    def tokens(self) -> int:
        """Tokens trained, padding and skipped batches not counted."""
        return sum(total.tokens for total in self.counts)


@dataclass(frozen=True)
class Run:
    """A run that is ready to go."""

    out: Path
    fingerprint: str
    trainee: Trainee
    batches: Batches
    names: tuple[str, ...]
    """Sources by index."""
    tokens_per_byte: npt.NDArray[np.float64]
    """By source index, of the whole shard; turns nats per token into bits per byte."""
    schedule: Schedule
    shape: Shape
    peak_learning_rate: float
    new_rows: NewRowsFirst
    skip_spikes: SkipSpikes | None
    calendar: Calendar
    progress: Progress
    hooks: Hooks
    flops: Flops
    ledger: Ledger
    """What was decided, by earlier starts of the run, too."""
    mix: Path
    """Where the training order lies."""
    divergence: Divergence | None
    saver: Saver
    prefetch: Prefetch
    compilations: Compilations | None = None
    """Where layers are compiled."""
    order_changes: tuple[dict[str, Any], ...] = ()
    """Changes of the mixture that are in force, as ``describe_changes`` gives them."""


METRICS = "metrics.jsonl"


CHECKPOINTS = "checkpoints"
