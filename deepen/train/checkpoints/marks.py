"""What is said about a checkpoint when it is made: which ability stands where, and whether one may come back to it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deepen.formats.training.scores import Ability, Score, worst_loss
from deepen.train.checkpoints.files import Marks
from deepen.train.run import Run

_PROBE = "held_out"


def marks_of(run: Run, scores: Sequence[Score] | None, *, milestone: bool, awaits: bool = False) -> Marks:
    """The marks of the present state; ``scores`` are those of this very model, None when it was not scored (yet, with
    ``awaits``).

    Good is a state whose last step was applied (finite, and no spike) and which, in a run that is scored on the way,
    was scored: the kept ability within the forgetting budget.
    """
    progress = run.progress
    new, kept = changes_of(scores or ())
    good = progress.last_loss is not None and progress.skips_in_a_row == 0
    if run.hooks.is_scored:
        # Not good yet while scores are awaited: `mark_scored` fills that in when they come.
        good &= scores is not None and within_budget(run, scores)
    begins_decay = run.schedule.extendable and progress.step == run.shape.decay_start
    return Marks(milestone, begins_decay, good=good, new=new, kept=kept, awaits_scores=awaits)


def within_budget(run: Run, scores: Sequence[Score]) -> bool:
    """Whether the worst loss of the kept ability is inside the forgetting budget; what was not measured is."""
    budget, worst = run.hooks.forgetting_budget, worst_loss(scores)
    return budget is None or worst is None or worst.relative <= budget


def changes_of(scores: Sequence[Score]) -> tuple[float | None, float | None]:
    """The relative changes of the new and the kept ability against the base; None for what was not measured."""
    return _change(scores, "new"), _change(scores, "kept")


def _change(scores: Sequence[Score], ability: Ability) -> float | None:
    """The relative change of an ability against the base, over all its sources; None when it was not measured."""
    found = next((score for score in scores if (score.probe, score.ability) == (_PROBE, ability)), None)
    if found is None or not math.isfinite(found.difference):
        return None
    # Turned like bits per byte, where less is better, whatever the unit.
    return -found.difference if found.higher_is_better else found.difference
