"""Training in this process, alone or as one of several: the loop gets from the recipe what goes on beside it.

Training and evaluation know nothing of each other, nor of mixing: here the three meet. Scores, the forgetting monitor,
a changed mixture and trackers become plain callables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepen.evaluate.forgetting.config import Forgetting
from deepen.evaluate.forgetting.monitor import Plan, decide
from deepen.formats.manifest import Manifest, StageJob
from deepen.formats.training.decisions import Decision
from deepen.formats.training.scores import SCORES, CheckpointScores
from deepen.formats.training.scores_beside import WATCH
from deepen.mix.order.mixture import read_mixture
from deepen.workflow.setup import Setup, recipe_in_loop

if TYPE_CHECKING:
    from deepen.train.beside.hooks import Lag


def train_here(setup: Setup, job: StageJob) -> Manifest:
    """Train in this process, alone or as one of several."""
    from deepen.evaluate.during_training.in_loop import Pace, in_loop_evaluator
    from deepen.parallel.processes.environment import read_environment
    from deepen.train.beside.hooks import Watch
    from deepen.train.beside.tracking import open_trackers
    from deepen.train.stage import train
    from deepen.workflow.commands.remix import replay_changes

    every, lag = setup.recipe.evaluate.every, lag_of(setup, job.out.parent)
    amounts = {"total_steps": setup.num_batches, "tokens_per_step": setup.recipe.train.batch_tokens}
    evaluate, full = None, setup.recipe.evaluate.full_every
    if lag is None:
        in_steps = None if full is None else full.in_steps(**amounts)
        pace = Pace(every.every_steps(**amounts), every.every_seconds, setup.num_batches, in_steps)
        measured = recipe_in_loop(setup.recipe).evaluate
        evaluate = in_loop_evaluator(measured, job.inputs, base=setup.base, seed=job.seed, out=job.out, pace=pace)
    started = read_environment()
    tracking = setup.machine.tracking if started is None or started.rank == 0 else ()
    return train(
        setup.recipe.train,
        job,
        base=setup.base,
        compute=setup.machine.compute,
        watch=Watch(
            evaluate=evaluate,
            tables_at=None if evaluate is None else evaluate.tables_at,
            lag=lag,
            evaluate_every=setup.recipe.evaluate.every,
            watchdog=setup.machine.watchdog,
            decide=monitor_of(setup.recipe.evaluate.forgetting, job.inputs["mix"].path, total_steps=setup.num_batches),
            remix=replay_changes(job.inputs["mix"].path, job.out / "order"),
            forgetting_budget=setup.recipe.evaluate.forgetting.budget,
            log=open_trackers(tracking, job.out, setup.recipe.name),
            stop_after_seconds=setup.machine.stop_after_seconds,
        ),
        mesh=setup.machine.mesh,
    )


def lag_of(setup: Setup, run: Path) -> Lag | None:
    """Where and when training takes scores of another process; None when it scores by itself."""
    from deepen.train.beside.hooks import Lag

    config = setup.recipe.evaluate
    if config.lag is None:
        return None
    return Lag(
        steps=config.lag.in_steps(total_steps=setup.num_batches, tokens_per_step=setup.recipe.train.batch_tokens),
        wait_seconds=config.wait.value,
        scores=run / WATCH / SCORES,
        command=f"deepen evaluate {run} --watch",
    )


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
