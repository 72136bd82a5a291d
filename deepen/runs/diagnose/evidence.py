"""The records of a run that diagnosis looks at, gathered once, and the few questions that its rules ask of them.

Nothing is loaded but numbers: no model, no text. What was not recorded is empty or None, and is then not judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepen.formats.files.arrays import Array
from deepen.formats.files.json_text import read_object
from deepen.formats.files.records import read_models, read_records
from deepen.formats.manifest import Artifact
from deepen.formats.training.scores import SCORES, CheckpointScores, Score
from deepen.recipe.models import Recipe
from deepen.recipe.reading import recipe_of
from deepen.runs.diagnose.forecast import Forecast, forecast
from deepen.runs.directory import finished_stages, stage_directory

FEWEST_STEPS = 40
"""Shorter runs are judged by their scores alone: a tenth of them is too few steps for a mean."""
_TABLE = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Finding:
    """One thing that went wrong."""

    name: str
    evidence: str
    remedy: str


@dataclass(frozen=True)
class Case:
    """The records of a run that rules look at; what is missing is empty."""

    budget: float
    metrics: Sequence[Mapping[str, Any]] = ()
    scores: Sequence[CheckpointScores] = ()
    """By rising step, of the evaluate stage, or of the loop while there is none."""
    roles: Mapping[str, str] | None = None
    """Role of each source: ``domain``, ``replay``, ``watch``."""
    counts: Mapping[str, Mapping[str, Any]] | None = None
    """``counts`` of finished stages by name."""
    unknown_shares: Mapping[str, float] | None = None
    """Of each source the share of tokens that are the unknown token, where the base's vocabulary was looked at."""
    forecast: Forecast | None = None
    """What another quarter of the run would have brought, where held-out text of enough checkpoints tells."""

    def of_role(self, role: str) -> list[str]:
        """Names of the sources with a role."""
        return [name for name, found in (self.roles or {}).items() if found == role]

    def stage(self, name: str) -> Mapping[str, Any]:
        """Counts of a stage, empty while it is not finished."""
        return (self.counts or {}).get(name, {})


def case_of(run: Path) -> Case:
    """Read what a run directory holds; works on unfinished runs, too.

    Raises ``RunError`` when it is none, ``DamageError`` for records that cannot be read.
    """
    recipe = recipe_of(run)
    roles = {source.name: str(source.role) for source in recipe.ingest.sources}
    roles |= {rows.name: str(rows.role) for rows in recipe.mix.fixed_rows}
    stages: dict[str, Artifact] = finished_stages(run)
    train = stages["train"].path if "train" in stages else stage_directory(run, "train")
    scored = stages["evaluate"].path if "evaluate" in stages else train
    metrics = list(read_records(train / "metrics.jsonl", keys=("step",)))
    scores = read_models(scored / SCORES, CheckpointScores)
    return Case(
        budget=recipe.evaluate.forgetting.budget,
        metrics=metrics,
        scores=sorted(scores, key=lambda one: one.step),
        roles=roles,
        counts={name: artifact.counts for name, artifact in stages.items()},
        unknown_shares=_unknown_shares(stages),
        forecast=_forecast(recipe, stages, metrics),
    )


def _unknown_shares(stages: Mapping[str, Artifact]) -> dict[str, float]:
    """From the vocabulary report; there is none where the vocabulary was learned."""
    path = stages["tokenize"].path / "report.json" if "tokenize" in stages else None
    if path is None or not path.is_file():
        return {}
    return {one["source"]: float(one["unknown_share"]) for one in read_object(path, keys=("sources",))["sources"]}


def _forecast(recipe: Recipe, stages: Mapping[str, Artifact], metrics: Sequence[Mapping[str, Any]]) -> Forecast | None:
    """From the likelihoods that the evaluate stage keeps, where it is finished."""
    if "evaluate" not in stages:
        return None
    found = [(_TABLE.fullmatch(path.stem), path) for path in (stages["evaluate"].path / "held_out").glob("*.parquet")]
    tables = {int(name[1]): path for name, path in found if name is not None}
    domain = [source.name for source in recipe.ingest.sources if source.role == "domain"]
    return forecast(tables, metrics, domain, seed=recipe.seed)


def of_sources(scores: CheckpointScores, ability: str) -> list[Score]:
    """The held-out scores of the single sources of an ability."""
    return [score for score in scores.scores if score.ability == ability and score.probe.startswith("held_out:")]


def source_name(score: Score) -> str:
    """The source that a held-out score is of."""
    return score.probe.partition(":")[2]


def tokens_per_byte(sources: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens per byte of some sources together."""
    num_bytes = sum(source.get("bytes", 0) for source in sources)
    return sum(source["tokens"] for source in sources) / num_bytes if num_bytes else None


def token_share(case: Case, name: str) -> float:
    """Share of a source in the trained tokens."""
    sources = case.stage("train").get("sources", {})
    total = sum(source["tokens"] for source in sources.values())
    return sources.get(name, {}).get("tokens", 0) / total if total else 0.0


def first_losses(case: Case) -> dict[str, float]:
    """Bits per byte of each source in the first steps, before the warm-up has moved anything much.

    The mean of five, or the very first value where that is lower: wrong ids are wrong from the first step on, while a
    rate that is far too high spoils only what comes after it.
    """
    if len(case.metrics) < FEWEST_STEPS:
        return {}
    found = _by_source(case.metrics[:5], "bits_per_byte_by_source")
    return {name: min(float(np.mean(values)), values[0]) for name, values in found.items()}


def domain_losses(case: Case) -> Array:
    """Loss of the domain in every step that held some of it."""
    domain = case.of_role("domain")
    values = []
    for record in case.metrics:
        found = [record.get("loss_by_source", {}).get(name) for name in domain]
        known = [value for value in found if value is not None and math.isfinite(value)]
        if known:
            values.append(float(np.mean(known)))
    return np.array(values)


def stretch(case: Case, begin: float, end: float) -> dict[str, Array]:
    """Losses by source in a part of the run, both as shares of it."""
    steps = case.metrics[int(begin * len(case.metrics)) : int(end * len(case.metrics))]
    return {name: np.array(values) for name, values in _by_source(steps, "loss_by_source").items()}


def _by_source(steps: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for record in steps:
        for name, value in record.get(key, {}).items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return found


def relative_change(before: Mapping[str, Array], after: Mapping[str, Array]) -> tuple[float, float] | None:
    """Mean relative change over sources: the lower end of its 95 % interval, and itself; None without data."""
    changes, errors = [], []
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        if len(old) >= 3 and len(new) >= 3:
            changes.append(new.mean() / old.mean() - 1)
            errors.append((new.var(ddof=1) / len(new) + old.var(ddof=1) / len(old)) / old.mean() ** 2)
    if not changes:
        return None
    change = float(np.mean(changes))
    return change - 1.96 * math.sqrt(sum(errors)) / len(errors), change
