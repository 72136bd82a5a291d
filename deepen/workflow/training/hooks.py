"""From settings to what goes on beside the updates of a training.

Training and evaluation know nothing of each other, nor of mixing: here the three meet. Scores, the forgetting monitor,
a changed mixture and trackers become plain callables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from deepen.evaluate.forgetting.config import Forgetting
from deepen.evaluate.forgetting.monitor import Plan, decide
from deepen.formats.manifest import StageJob
from deepen.formats.training.decisions import Decision
from deepen.formats.training.scores import SCORES, CheckpointScores
from deepen.formats.training.scores_beside import FOLDER_BESIDE
from deepen.mix.order.mixture import read_mixture
from deepen.parallel.processes.environment import read_environment
from deepen.train.beside.hooks import Hooks, Lag
from deepen.workflow.commands.remix import replay_changes
from deepen.workflow.setup import Setup, recipe_in_loop


def hooks_of(setup: Setup, job: StageJob) -> Hooks:
    """What goes on beside the updates of the training ``job``, in each of its processes."""
    from deepen.evaluate.during_training.in_loop import Pace, in_loop_evaluator
    from deepen.train.beside.tracking import open_trackers

    mix, settings = job.inputs["mix"].path, setup.recipe.evaluate
    every, lag = settings.every, lag_of(setup, job.out.parent)
    amounts = {"total_steps": setup.num_batches, "tokens_per_step": setup.recipe.train.batch_tokens}
    evaluate, full = None, settings.full_every
    if lag is None:
        in_steps = None if full is None else full.in_steps(**amounts)
        pace = Pace(every.every_steps(**amounts), every.every_seconds, setup.num_batches, in_steps)
        measured = recipe_in_loop(setup.recipe).evaluate
        evaluate = in_loop_evaluator(measured, job.inputs, base=setup.base, seed=job.seed, out=job.out, pace=pace)
    started = read_environment()
    tracking = setup.machine.tracking if started is None or started.rank == 0 else ()
    return Hooks(
        evaluate=evaluate,
        tables_at=None if evaluate is None else evaluate.tables_at,
        lag=lag,
        evaluate_every=every,
        watchdog=setup.machine.watchdog,
        decide=monitor_of(settings.forgetting, mix, total_steps=setup.num_batches),
        remix=replay_changes(mix, job.out / "order"),
        forgetting_budget=settings.forgetting.budget,
        log=open_trackers(tracking, job.out, setup.recipe.name),
        stop_after_seconds=setup.machine.stop_after_seconds,
    )


def lag_of(setup: Setup, run: Path) -> Lag | None:
    """Where and when training takes scores of another process; None when it scores by itself."""
    config = setup.recipe.evaluate
    if config.lag is None:
        return None
    return Lag(
        steps=config.lag.in_steps(total_steps=setup.num_batches, tokens_per_step=setup.recipe.train.batch_tokens),
        wait_seconds=config.wait.value,
        scores=run / FOLDER_BESIDE / SCORES,
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
