"""What goes on beside the updates of a run: scoring, deciding, telling others, and a limit of time.

Plain callables, made by whoever starts the run. None of them changes a bit of what is trained by itself: what they
decide is written down first, and then done by the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.settings import Interval

if TYPE_CHECKING:
    from deepen.formats.training.decisions import Decision
    from deepen.formats.training.scores import CheckpointScores, Score
    from deepen.model.loss.model import LossModel
    from deepen.train.beside.watchdog import Watchdog

    Evaluate = Callable[[LossModel, int, int], list[Score]]
    """Scores of (model, step, tokens trained)."""

    Decide = Callable[[Sequence[CheckpointScores], Sequence[Decision]], Sequence[Decision]]
    """What to do, given all scores and all decisions so far. A pure function; asked right after each evaluation, and
    again when nothing of what it wanted could be done (the decisions then say why)."""

    Remix = Callable[[Decision], None]
    """Appends a changed rest to the training order, from ``decision.batch`` on, with ``decision.details["by"]`` more of
    the tokens from replay; raises ``DeepenError`` where that cannot be."""


@dataclass(frozen=True)
class Lag:
    """Another process scores the checkpoints, and its scores are taken a fixed number of steps later."""

    steps: int
    wait_seconds: float
    """How long training stands still for scores that are late, before it saves and ends."""
    scores: Path
    """Where the other process appends ``ScoresBeside``."""
    command: str
    """What starts the other process, for people."""


@dataclass(frozen=True)
class Hooks:
    """What is called during a run, and when."""

    evaluate: Evaluate | None = None
    evaluate_every: Interval | None = None
    """Besides at the end, where it always is."""
    decide: Decide | None = None
    """Decides on what the scores say."""
    remix: Remix | None = None
    """Changes the mixture of the rest of the run."""
    forgetting_budget: float | None = None
    """Largest relative rise of the kept ability in a checkpoint that counts as good; None: any."""
    log: Callable[[dict[str, Any]], None] | None = None
    """Gets the record of every step once all of it is done, with ``scores`` when the model was scored."""
    stop_after_seconds: float | None = None
    """Training time, earlier starts of the same run included, after which it saves and stops."""
    watchdog: Watchdog | None = None
    """What tells a step that is stuck; None: nothing does."""
    lag: Lag | None = None
    """In place of ``evaluate``: another process scores."""
    tables_at: Callable[[int], Mapping[str, Any]] | None = None
    """By probe, identities of what ``evaluate`` measured in full of the model at a step, which its checkpoint names."""

    @property
    def is_scored(self) -> bool:
        """Whether models are scored during the run, here or elsewhere."""
        return self.evaluate is not None or self.lag is not None


NO_HOOKS = Hooks()
"""Nothing beside the updates."""
