"""Run the pipeline: for each stage find out whether its work is done, can be reused, resumed or must be made.

found on disk                        what happens
manifest, same fingerprint           skipped (in this run) or referenced by path (in a neighbouring run), once its small
                                     files are found to be as they were; ``mend.py`` for damaged ones
unfinished, same fingerprint         resumed
other fingerprint                    ``redo.py``: stop and say what changed, make anew, or continue a training
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from deepen.engine.map_parts import SharePendingError
from deepen.errors import RecipeError, RunError
from deepen.formats.manifest import Artifact, open_artifact, record_of, refer_to
from deepen.formats.replaced import recover_swap, sweep
from deepen.formats.workers import Workers
from deepen.parallel.processes.gang import Gang
from deepen.progress import say
from deepen.recipe.layouts import layout_problems, read_config_json
from deepen.recipe.models import Machine, Recipe
from deepen.recipe.reading import write_settings
from deepen.runs.directory import stage_directory
from deepen.runs.lock import hold
from deepen.runs.references import find_neighbour
from deepen.workflow.inputs.find import resolve_setup
from deepen.workflow.inputs.pins import without_network
from deepen.workflow.mend import finished
from deepen.workflow.redo import Consent, make_way, swap_in
from deepen.workflow.setup import Setup
from deepen.workflow.stage_plan import StagePlan, make_stage, plan_stage
from deepen.workflow.stages import STAGES


@dataclass(frozen=True)
class RunOptions:
    """How to run: which stages, and what may be done about finished work that no longer fits the recipe."""

    first: str = "ingest"
    last: str = "export"
    redo: bool = False
    """Make anew what was made from other settings or inputs, or is damaged; the last stage is hashed as a whole."""
    extend: bool = False
    """Continue a finished training with more tokens (``--continue``)."""
    offline: bool = False
    """Use nothing from the network."""
    share: tuple[int, int] | None = None
    """Do only this share of the parts of data stages (number from 1, count), beside others; see ``Turn``."""
    gang: Gang | None = None
    """The processes that a launcher started beside this one: they wait until it comes to training."""


def parse_share(text: str | None) -> tuple[int, int] | None:
    """Read ``2/8`` as share 2 of 8; raises ``RunError`` for what is none."""
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise RunError(f"`--part {text}` is no share", hint="write I/N with I from 1 to N, such as --part 2/8")
    return int(number), int(count)


def run_pipeline(recipe: Recipe, machine: Machine, run: Path, options: RunOptions) -> dict[str, Artifact]:
    """Bring the run directory ``run`` up to date from ``options.first`` to ``options.last``; returns its artifacts."""
    for name in (options.first, options.last):
        if name not in STAGES:
            raise RunError(f"there is no stage `{name}`", hint=f"stages are {', '.join(STAGES)}")
    artifacts: dict[str, Artifact] = {}
    with hold(run, options.share) as share, without_network(options.offline):
        setup = replace(resolve_setup(recipe, machine, run, offline=options.offline), gang=options.gang)
        _refuse_impossible(setup)
        for place in (run, run.parent):
            sweep(place)
        for name in STAGES:
            recover_swap(stage_directory(run, name))
        write_settings(run, recipe, machine)
        try:
            _run_stages(setup, run, options, Workers(machine.num_workers, machine.engine.ray, share), artifacts)
        except SharePendingError as pending:
            say(pending.message)
    return artifacts


def _refuse_impossible(setup: Setup) -> None:
    """Raise ``RecipeError`` for a mesh that the base, which is here by now, cannot be spread over."""
    base = setup.base
    if base.path is not None:
        problems = layout_problems(setup.recipe, setup.machine, read_config_json(base.path))
        if problems:
            raise RecipeError(problems)


def _run_stages(setup: Setup, run: Path, options: RunOptions, workers: Workers, artifacts: dict[str, Artifact]) -> None:
    """Bring the stages up to date one after the other, noting each in ``artifacts``."""
    remade: set[str] = set()
    for name, stage in STAGES.items():
        plan = plan_stage(stage, setup, run, artifacts)
        artifacts[name] = bring_up_to_date(replace(plan, workers=workers), options, remade)
        if name == options.last:
            break


def bring_up_to_date(plan: StagePlan, options: RunOptions, remade: set[str]) -> Artifact:
    """Skip, reference, resume, extend, redo or make one stage, or refuse; notes in ``remade`` what was made anew."""
    name, directory = plan.stage.name, plan.directory
    found = finished(plan, redo=options.redo, whole=options.redo and name == options.last)
    if found is not None:
        return found
    if list(STAGES).index(name) < list(STAGES).index(options.first):
        raise RunError(
            f"--from {options.first}: the stage `{name}` before it is not finished for this recipe",
            hint=f"run without --from, or with --from {name}",
        )
    recorded = record_of(directory)
    if recorded is None and (neighbour := find_neighbour(plan.run, name, plan.fingerprint)) is not None:
        say(f"{name}: the same work is finished in `{neighbour.path}`; referring to it")
        refer_to(directory, neighbour)
        return neighbour
    out, must_extend = directory, False
    if recorded is not None and recorded["fingerprint"] != plan.fingerprint:
        out, must_extend = make_way(plan, recorded, Consent(options.redo, options.extend), remade)
    made = open_artifact(out) or make_stage(plan, out)
    if out == directory:
        return made
    swap_in(directory, out, must_extend=must_extend)
    return replace(made, path=directory)
