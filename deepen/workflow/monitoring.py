"""The forgetting monitor as the training loop calls it: the plan of a run, the decisions, and what changes its mixture.

Training and evaluation know nothing of each other, nor of mixing: here the three meet, as plain functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepen.evaluate.forgetting import Forgetting
from deepen.evaluate.monitor import Decision, Plan, decide
from deepen.mix.mixture import read_mixture

if TYPE_CHECKING:
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


def remix_of(mix: Path, train: Path) -> Callable[[Decision], None]:
    """What lays another mixture over the rest of the order: from the decision's batch on, with the share in it.

    Raises ``RunError`` or ``SourceError`` where that cannot be.
    """

    def change(decision: Decision) -> None:
        from deepen.mix.remix import Change, remix

        asked = Change(
            batch=decision.batch,
            domain_share=float(decision.details["domain_share"]),
            reason=decision.reason,
            parent_step=decision.parent_step,
        )
        remix(mix, train / "order", asked)

    return change
