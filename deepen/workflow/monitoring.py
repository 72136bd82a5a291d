"""The forgetting monitor as the training loop calls it: settings and the plan of a run become one plain function.

Training and evaluation know nothing of each other, nor of mixing: here the three meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepen.evaluate.forgetting import Forgetting
from deepen.evaluate.monitor import Plan, decide
from deepen.mix.mixture import read_mixture

if TYPE_CHECKING:
    from deepen.formats.decisions import Decision
    from deepen.formats.scores import CheckpointScores


def plan_of(mix: Path, *, total_steps: int) -> Plan:
    """What is planned for a run with the order in ``mix``; of a share that changes steadily, where each part begins."""
    phases = read_mixture(mix).phases
    shares = tuple((phase.first_batch, phase.domain_share[0]) for phase in phases)
    return Plan(total_steps=total_steps, domain_shares=((0, shares[0][1]), *shares[1:]))


def monitor_of(
    settings: Forgetting, mix: Path, *, total_steps: int
) -> Callable[[Sequence[CheckpointScores], Sequence[Decision]], Sequence[Decision]] | None:
    """What decides on the scores during training; None when the recipe names no actions."""
    if not settings.actions:
        return None
    plan = plan_of(mix, total_steps=total_steps)
    return lambda history, decisions: decide(history, decisions, settings, plan)
