"""`deepen compare`: several runs side by side, noise between seeds, and changes against a control.

Each run is taken at one checkpoint, by default its last: runs of one recipe then have seen as many tokens. Differences
between two runs are paired by document and item, as those against the base are. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.errors import RunError
from deepen.evaluate.compare.statistics import RESAMPLES, Noise, adjusted, seed_noise
from deepen.evaluate.documents.likelihoods import read_likelihoods
from deepen.evaluate.documents.material import material_of
from deepen.evaluate.tables import table_file
from deepen.formats.files.records import read_models
from deepen.formats.manifest import Artifact
from deepen.formats.training.scores import SCORES, CheckpointScores, Score
from deepen.model.config import ResolvedBase
from deepen.plug import identity
from deepen.progress import say
from deepen.recipe.models import Recipe
from deepen.recipe.reading import recipe_of
from deepen.runs.directory import check_is_run, finished_stages


@dataclass(frozen=True)
class Compared:
    """One run at one checkpoint."""

    path: Path
    recipe: Recipe
    stages: dict[str, Artifact]
    scores: CheckpointScores

    @property
    def name(self) -> str:
        """For tables."""
        return self.path.name

    @property
    def is_control(self) -> bool:
        """Whether it was trained on replay alone."""
        return self.recipe.mix.control


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    names: tuple[str, ...]
    noise: dict[tuple[str, str], Noise]
    """By ability and probe, of the change against the base."""


@dataclass(frozen=True)
class Comparison:
    """All that is known about the runs together."""

    runs: tuple[Compared, ...]
    seeds: tuple[Group, ...]
    against_control: dict[str, list[Score]]
    """By run: its scores with the control in the place of the base; empty without a control."""
    control: str | None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        runs = [
            {"run": one.name, "seed": one.recipe.seed, "control": one.is_control} | one.scores.model_dump(mode="json")
            for one in self.runs
        ]
        against = {
            name: [one.model_dump(mode="json") for one in scores] for name, scores in self.against_control.items()
        }
        seeds = [
            {
                "runs": group.names,
                "noise": [{"ability": key[0], "probe": key[1], **vars(noise)} for key, noise in group.noise.items()],
            }
            for group in self.seeds
        ]
        return {"runs": runs, "seeds": seeds, "control": self.control, "against_control": against}


def compare_runs(paths: Sequence[Path], step: int | None = None) -> Comparison:
    """Compare runs at ``step``, or (None) each at its last evaluated checkpoint, and the control where the run is.

    Raises ``RunError`` when a run was not evaluated there or is given twice, when two are controls, or when a run and
    the control were not scored on the same documents.
    """
    runs = tuple(_opened(path, step) for path in paths)
    controls = [one for one in runs if one.is_control]
    if len(controls) > 1:
        raise RunError(f"{len(controls)} of the runs are controls", hint="give one control, and the runs to hold to it")
    twice = [str(path) for path in paths if [one.resolve() for one in paths].count(path.resolve()) > 1]
    if twice:
        raise RunError(f"`{twice[0]}` is given twice", hint="give each run once")
    control = controls[0] if controls else None
    others = [one for one in runs if not one.is_control]
    against = {one.name: _against(_at_step_of(one, control), one) for one in others} if control is not None else {}
    return Comparison(runs, tuple(_seed_groups(others)), against, control.name if control else None)


def _opened(path: Path, step: int | None) -> Compared:
    check_is_run(path)
    stages = finished_stages(path)
    if "evaluate" not in stages:
        raise RunError(f"`{path}` has no scores", hint=f"evaluate it first: `deepen evaluate {path}`")
    found = list(read_models(stages["evaluate"].path / SCORES, CheckpointScores))
    chosen = [one for one in found if step is None or one.step == step]
    if not chosen:
        steps = ", ".join(str(one.step) for one in found) or "none"
        raise RunError(f"`{path}` was not evaluated at step {step}", hint=f"it was at these: {steps}")
    return Compared(path.resolve(), recipe_of(path), stages, chosen[-1])


def _at_step_of(run: Compared, control: Compared) -> Compared:
    """The control after as many steps as ``run``, which may have been stopped: they have seen as many tokens."""
    if control.scores.step == run.scores.step:
        return control
    try:
        return _opened(control.path, run.scores.step)
    except RunError:
        say(
            f"compare: `{run.name}` is at step {run.scores.step}, where the control has no scores: it is compared with "
            f"the control at step {control.scores.step}"
        )
        return control


def _seed_groups(runs: Sequence[Compared]) -> Iterator[Group]:
    """Runs of the same recipe at the same step, with at least two seeds; of one seed the first run counts."""
    groups: dict[str, list[Compared]] = {}
    for one in runs:
        same = {key: value for key, value in identity(one.recipe).items() if key not in ("name", "seed")}
        same.get("curate", {}).get("held_out", {}).pop("from_run", None)
        members = groups.setdefault(f"{one.scores.step} {same}", [])
        if one.recipe.seed not in [other.recipe.seed for other in members]:
            members.append(one)
    for members in groups.values():
        if len(members) > 1:
            yield Group(tuple(one.name for one in members), _noise(members))


def _noise(members: Sequence[Compared]) -> dict[tuple[str, str], Noise]:
    """Of every score that all members have."""
    found: dict[tuple[str, str], Noise] = {}
    for score in members[0].scores.scores:
        same = [one.scores.of(score.probe, score.ability) for one in members]
        values = [other.difference for other in same if other is not None]
        if len(values) == len(members):
            found[score.ability, score.probe] = seed_noise(values)
    return found


def _against(control: Compared, run: Compared) -> list[Score]:
    """The run's scores with the control in the place of the base."""
    material = material_of(run.stages["curate"], run.stages["tokenize"], ResolvedBase("", None, None, ""))
    scores: list[Score] = []
    for probe in run.recipe.evaluate.all_probes:
        files = [one.stages["evaluate"].path / table_file(probe, one.scores.step) for one in (control, run)]
        if all(path.is_file() for path in files):
            theirs, ours = map(read_likelihoods, files)
            scores += probe.compare(theirs, ours, material, seed=run.recipe.seed, resamples=RESAMPLES)
    return adjusted(scores)
