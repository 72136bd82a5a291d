"""One stage of one run, planned: where it goes, and the fingerprint that its result must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepen.errors import DamageError
from deepen.formats.manifest import UNFINISHED, Artifact, InputEntry, StageJob, fingerprint, open_artifact
from deepen.formats.workers import Workers
from deepen.progress import say
from deepen.runs.directory import stage_directory
from deepen.workflow.setup import Setup, setup_in_loop
from deepen.workflow.stages import Stage


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
            previous=_previous(self.directory) if out != self.directory else None,
            identity=self.identity,
            core=None if self.core == self.fingerprint else self.core,
            marks=self.marks,
        )


def _previous(directory: Path) -> Artifact | None:
    """The result that is replaced; None where its manifest cannot be read: nothing of it can be taken over then."""
    try:
        return open_artifact(directory)
    except DamageError:
        return None


def make_stage(plan: StagePlan, out: Path) -> Artifact:
    """Make the stage's result in ``out``, going on with what is there."""
    say(f"{plan.stage.name}: resuming" if (out / UNFINISHED).is_file() else f"{plan.stage.name}: starting")
    plan.stage.call(plan.setup, plan.job(out))
    made = open_artifact(out)
    assert made is not None, f"stage {plan.stage.name} returned without writing its manifest"
    return made


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
