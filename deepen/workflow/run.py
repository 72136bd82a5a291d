"""Run the pipeline: for each stage find out whether its work is done, can be reused, resumed or must be made.

found on disk                        what happens
manifest, same fingerprint           skipped (in this run) or referenced by path (in a neighbouring run)
unfinished, same fingerprint         resumed
other fingerprint                    stop and say which field or input changed; ``redo`` builds aside and swaps
training with only more tokens       ``continue`` extends it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepen.engine.map_parts import SharePendingError
from deepen.errors import RecipeError, RunError
from deepen.formats.files.atomic import write_json
from deepen.formats.manifest import (
    MANIFEST,
    UNFINISHED,
    Artifact,
    InputEntry,
    StageJob,
    fingerprint,
    open_artifact,
    read_manifest,
    refer_to,
)
from deepen.formats.tokens.order import begins_with
from deepen.formats.workers import Share, Workers
from deepen.parallel.processes.gang import Gang
from deepen.progress import say
from deepen.recipe.layouts import layout_problems, read_config_json
from deepen.recipe.models import Machine, Recipe
from deepen.recipe.reading import write_machine, write_recipe
from deepen.runs.directory import record_of, stage_directory
from deepen.runs.lock import Turn, locked
from deepen.runs.references import find_neighbour, give_own_copies, refuse_if_referenced
from deepen.train.config import TrainConfig
from deepen.workflow.inputs.find import resolve_setup, without_network
from deepen.workflow.setup import Setup, core_of, setup_in_loop
from deepen.workflow.stages import STAGES, Stage


@dataclass(frozen=True)
class RunOptions:
    """How to run: which stages, and what may be done about finished work that no longer fits the recipe."""

    first: str = "ingest"
    last: str = "export"
    redo: bool = False
    """Make anew what was made from other settings or inputs."""
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
    processes, ray = machine.num_workers, machine.engine.ray
    if options.share is None:
        with locked(run), without_network(options.offline):
            return _run_stages(recipe, machine, run, options, Workers(processes, ray), {})
    with Turn(run, *options.share) as turn, without_network(options.offline):
        workers = Workers(processes, ray, Share(*options.share, turn.leave, turn.come_back))
        artifacts: dict[str, Artifact] = {}
        try:
            _run_stages(recipe, machine, run, options, workers, artifacts)
        except SharePendingError as pending:
            say(pending.message)
        return artifacts


def _run_stages(
    recipe: Recipe, machine: Machine, run: Path, options: RunOptions, workers: Workers, artifacts: dict[str, Artifact]
) -> dict[str, Artifact]:
    """Bring the stages up to date one after the other, noting each in ``artifacts``."""
    setup = replace(resolve_setup(recipe, machine, run, offline=options.offline), gang=options.gang)
    _refuse_impossible(setup)
    for name in STAGES:
        recover_swap(stage_directory(run, name))
    write_recipe(run / "recipe.yaml", recipe)
    write_machine(run / "machine.yaml", machine)
    remade: set[str] = set()
    for name, stage in STAGES.items():
        if list(STAGES).index(name) > list(STAGES).index(options.last):
            break
        plan = plan_stage(stage, setup, run, artifacts)
        artifacts[name] = bring_up_to_date(replace(plan, workers=workers), options, remade)
    return artifacts


def _refuse_impossible(setup: Setup) -> None:
    """Raise ``RecipeError`` for a mesh that the base, which is here by now, cannot be spread over."""
    base = setup.base
    if base.path is not None:
        problems = layout_problems(setup.recipe, setup.machine, read_config_json(base.path))
        if problems:
            raise RecipeError(problems)


@dataclass(frozen=True)
class StagePlan:
    """One stage of one run: where it goes and what its result must be made from."""

    stage: Stage
    setup: Setup
    run: Path
    identity: dict[str, Any]
    fingerprint: str
    core: str
    """What the fingerprint would be without probes that only come after training."""
    inputs: Mapping[str, Artifact]
    marks: Mapping[str, str]
    """Identities of ``inputs`` that entered the fingerprint."""
    raw_inputs: Mapping[str, InputEntry]
    workers: Workers = Workers()

    @property
    def directory(self) -> Path:
        """The stage's directory in the run."""
        return stage_directory(self.run, self.stage.name)

    def job(self, out: Path) -> StageJob:
        """The order to make the stage's result in ``out``, beside the old one when it is made anew."""
        return StageJob(
            out=out,
            fingerprint=self.fingerprint,
            inputs=self.inputs,
            raw_inputs=self.raw_inputs,
            workers=self.workers,
            seed=self.setup.recipe.seed,
            previous=open_artifact(self.directory) if out != self.directory else None,
            identity=self.identity,
            core=None if self.core == self.fingerprint else self.core,
            marks=self.marks,
        )


def plan_stage(stage: Stage, setup: Setup, run: Path, artifacts: Mapping[str, Artifact]) -> StagePlan:
    """Work out the fingerprint that the stage's result must have, given the finished stages before it."""
    inputs = {need: artifacts[need] for need in stage.needs}
    cores = {name: artifact.core for name, artifact in inputs.items()}
    core = _plan_from(stage, setup_in_loop(setup), run, inputs, cores)
    if stage.is_core:
        return core
    marks = {name: artifact.fingerprint for name, artifact in inputs.items()}
    return replace(_plan_from(stage, setup, run, inputs, marks), core=core.fingerprint)


def _plan_from(
    stage: Stage, setup: Setup, run: Path, inputs: Mapping[str, Artifact], marks: Mapping[str, str]
) -> StagePlan:
    """The plan with ``inputs`` under the identities ``marks``."""
    raw_inputs = {name: entry for name, entry in setup.raw_inputs.items() if stage.reads(name)}
    fingerprints = {**marks, **{name: entry.fingerprint for name, entry in raw_inputs.items()}}
    identity = stage.identity(setup)
    mark = fingerprint(stage.name, stage.format_number(), identity, fingerprints)
    return StagePlan(stage, setup, run, identity, mark, mark, inputs, marks, raw_inputs)


def bring_up_to_date(plan: StagePlan, options: RunOptions, remade: set[str]) -> Artifact:
    """Skip, reference, resume, extend, redo or make one stage, or refuse; notes in ``remade`` what was made anew."""
    name = plan.stage.name
    found = open_artifact(plan.directory)
    if found is not None and found.fingerprint == plan.fingerprint:
        say(f"{name} is up to date")
        return found
    if list(STAGES).index(name) < list(STAGES).index(options.first):
        raise RunError(
            f"--from {options.first}: the stage `{name}` before it is not finished for this recipe",
            hint=f"run without --from, or with --from {name}",
        )
    recorded = record_of(plan.directory)
    if recorded is not None and recorded["fingerprint"] != plan.fingerprint:
        return _resolve_conflict(plan, recorded, options, remade)
    if recorded is None and (neighbour := find_neighbour(plan.run, plan.stage.name, plan.fingerprint)) is not None:
        say(f"{name}: the same work is finished in `{neighbour.path}`; referring to it")
        refer_to(plan.directory, neighbour)
        return neighbour
    return _make(plan, plan.directory)


def _make(plan: StagePlan, out: Path) -> Artifact:
    say(f"{plan.stage.name}: resuming" if (out / UNFINISHED).is_file() else f"{plan.stage.name}: starting")
    plan.stage.call(plan.setup, plan.job(out))
    made = open_artifact(out)
    assert made is not None, f"stage {plan.stage.name} returned without writing its manifest"
    return made


def _resolve_conflict(plan: StagePlan, recorded: dict[str, Any], options: RunOptions, remade: set[str]) -> Artifact:
    """The directory holds work made from something else: extend it, redo it, or stop and say what changed."""
    name, changes = plan.stage.name, differences(plan, recorded)
    if core_of(recorded) == plan.core:
        say(f"{name}: only what comes after training changed ({', '.join(changes)}); brought up to date")
        give_own_copies(plan.directory)
        return _redo(plan, must_extend=False)
    if options.extend and name == "train" and can_continue(plan.identity, recorded, changes):
        continue_training(plan.directory, recorded, plan.identity, plan.fingerprint, plan.setup.recipe.train)
        remade.add(name)
        return _make(plan, plan.directory)
    extends_mix = options.extend and name == "mix" and set(changes) <= {"num_batches"}
    follows_extension = options.extend and bool(remade & set(plan.stage.needs)) and name != "train"
    if options.redo or extends_mix or follows_extension:
        say(f"{name}: made from other settings or inputs ({', '.join(changes)}); making it anew")
        remade.add(name)
        return _redo(plan, must_extend=extends_mix)
    lines = "\n".join(f"  {key}: {change}" for key, change in changes.items())
    only_tokens = name in ("mix", "train") and set(changes) <= {"num_batches", "train.tokens", "input mix"}
    hint = "`--continue` trains on from where the run is; " if only_tokens else ""
    raise RunError(
        f"`{plan.directory}` was made from something else:\n{lines}",
        hint=f"{hint}`--redo` makes it and everything after it anew; another `name` keeps both",
    )


def differences(plan: StagePlan, recorded: dict[str, Any]) -> dict[str, str]:
    """What changed since ``recorded``, by setting or input: ``{"train.tokens": "1000000 -> 2000000"}``."""
    before, after = _flat(recorded["config"]), _flat(json.loads(json.dumps(plan.identity)))
    changes = {
        key: f"{before.get(key, 'default')} -> {after.get(key, 'default')}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    }
    old_inputs = {name: entry["fingerprint"] for name, entry in recorded["inputs"].items()}
    new_inputs = {**plan.marks}
    new_inputs |= {name: entry.fingerprint for name, entry in plan.raw_inputs.items()}
    for name in sorted({*old_inputs, *new_inputs}):
        if name not in old_inputs:
            changes[f"input {name}"] = "was not there"
        elif name not in new_inputs:
            changes[f"input {name}"] = "is no longer there"
        elif old_inputs[name] != new_inputs[name]:
            changes[f"input {name}"] = "has other contents"
    if not changes:
        changes["format"] = (
            f"{recorded['format']} -> {plan.stage.format_number()} (this version of deepen works differently)"
        )
    return changes


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}" if path else key).items()}
    if isinstance(value, list):
        return {k: v for index, item in enumerate(value) for k, v in _flat(item, f"{path}[{index}]").items()}
    return {path: value}


def _redo(plan: StagePlan, *, must_extend: bool) -> Artifact:
    """Make the result beside the old one and swap; a kill at any moment leaves one of the two, whole."""
    refuse_if_referenced(plan.directory)
    aside = plan.directory.with_name(plan.directory.name + ".redo")
    recorded = record_of(aside)
    if recorded is not None and recorded["fingerprint"] != plan.fingerprint:
        shutil.rmtree(aside)
    if open_artifact(aside) is None:
        _make(plan, aside)
    if must_extend and not is_extension(plan.directory, aside):
        raise RunError(
            "with more tokens the training order would not begin with the order already trained on",
            hint="`--redo` starts over; a new run with `base: {run: ...}` goes on from the finished model",
        )
    old = plan.directory.with_name(plan.directory.name + ".old")
    plan.directory.rename(old)
    aside.rename(plan.directory)
    shutil.rmtree(old)
    made = open_artifact(plan.directory)
    assert made is not None, "a swapped-in artifact lost its manifest"
    return made


def recover_swap(directory: Path) -> None:
    """Finish or undo a swap that a kill interrupted."""
    aside, old = directory.with_name(directory.name + ".redo"), directory.with_name(directory.name + ".old")
    if old.exists() and not directory.exists():
        (aside if read_manifest(aside) is not None else old).rename(directory)
    if old.exists():
        shutil.rmtree(old)


_EXTENDABLE = {"train.tokens", "input mix"}


def can_continue(identity: Mapping[str, Any], recorded: Mapping[str, Any], changes: Mapping[str, str]) -> bool:
    """Whether training differs from what was recorded by nothing but a larger ``train.tokens``."""
    before, after = recorded["config"].get("train", {}), identity.get("train", {})
    return set(changes) <= _EXTENDABLE and after.get("tokens", 0) > before.get("tokens", 0)


def continue_training(
    directory: Path, recorded: Mapping[str, Any], identity: Mapping[str, Any], fingerprint: str, config: TrainConfig
) -> None:
    """Turn finished training into unfinished training of the longer run; safe to repeat after a kill.

    Raises ``RunError`` when the schedule cannot be extended.
    """
    from deepen.train.starting.resolved import prepare_continuation

    old = TrainConfig.model_validate(_without_marks(recorded["config"]["train"]))
    prepare_continuation(directory, old, config)
    mark = {"config": dict(identity), "fingerprint": fingerprint}
    write_json(directory / UNFINISHED, {key: recorded[key] for key in ("stage", "format", "inputs", "started")} | mark)
    (directory / MANIFEST).unlink(missing_ok=True)


def _without_marks(value: Any) -> Any:
    """Settings as they were given, without the versions and sources that identify plugs."""
    if isinstance(value, dict):
        marks = {"version", "source"} if "use" in value else set()
        return {key: _without_marks(item) for key, item in value.items() if key not in marks}
    return [_without_marks(item) for item in value] if isinstance(value, list) else value


def is_extension(old: Path, new: Path) -> bool:
    """Whether the training order in ``new`` begins with the whole order in ``old``."""
    return begins_with(new, old)
