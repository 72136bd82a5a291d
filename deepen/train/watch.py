"""What goes on beside the updates of a run: scoring, telling others, and a limit of time.

Plain callables, made by whoever starts the run; none of them can change a bit of what is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepen.settings import Interval

if TYPE_CHECKING:
    from deepen.formats.scores import Score
    from deepen.model.loss import LossModel

    Evaluate = Callable[[LossModel, int, int], list[Score]]
    """Scores of (model, step, tokens trained)."""


@dataclass(frozen=True)
class Watch:
    """What is called during a run, and when."""

    evaluate: Evaluate | None = None
    evaluate_every: Interval | None = None
    """Besides at the end, where it always is."""
    forgetting_budget: float | None = None
    """Largest relative rise of the kept ability in a checkpoint that counts as good; None: any."""
    log: Callable[[dict[str, Any]], None] | None = None
    """Gets the record of every step once all of it is done, with ``scores`` when the model was scored."""
    stop_after_seconds: float | None = None
    """Training time, earlier starts of the same run included, after which it saves and stops."""


UNWATCHED = Watch()
"""Nothing beside the updates."""
