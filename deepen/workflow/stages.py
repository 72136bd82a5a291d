"""The stages in order: what each needs, what identifies its result and how it is called.

This table is the pipeline. A stage's identity is everything of the recipe that its result depends on; heavy rooms are
imported only when their stage really runs, so that `status` and friends stay quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from deepen.formats.manifest import Manifest, StageJob
from deepen.formats.training.scores_beside import FOLDER_BESIDE
from deepen.mix.config import MixConfig
from deepen.plug import identity
from deepen.recipe.models import Recipe
from deepen.workflow.setup import Setup


@dataclass(frozen=True)
class Stage:
    """One line of the pipeline."""

    name: str
    needs: tuple[str, ...]
    identity: Callable[[Setup], dict[str, Any]]
    call: Callable[[Setup, StageJob], Manifest]
    format_number: Callable[[], int]
    reads: Callable[[str], bool] = lambda name: False
    """Which raw inputs (``base``, ``source:NAME``) the stage reads."""
    is_core: bool = False
    """Whether it knows nothing of probes that only come after training: its fingerprint is its core."""


def _ingest(setup: Setup, job: StageJob) -> Manifest:
    from deepen.ingest.stage import ingest

    return ingest(setup.sources, job)


def _curate(setup: Setup, job: StageJob) -> Manifest:
    from deepen.curate.stage import curate

    return curate(setup.recipe.curate, job)


def _tokenize(setup: Setup, job: StageJob) -> Manifest:
    from deepen.tokenize.stage import tokenize

    return tokenize(setup.recipe.tokenize, job, base=setup.base)


def _mix(setup: Setup, job: StageJob) -> Manifest:
    from deepen.mix.stage import mix

    batch_tokens, num_batches = setup.recipe.train.batch_tokens, setup.num_batches
    return mix(_with_local_tokenizers(setup), job, batch_tokens=batch_tokens, num_batches=num_batches)


def _with_local_tokenizers(setup: Setup) -> MixConfig:
    """The settings of mix with the tokenizers of fixed rows as the folders that they were fetched to."""
    config, found = setup.recipe.mix, setup.raw_inputs
    folders = {rows.name: found.get(f"fixed_rows_tokenizer:{rows.name}") for rows in config.fixed_rows}
    fixed = [
        rows if (entry := folders[rows.name]) is None else rows.model_copy(update={"tokenizer": entry.path})
        for rows in config.fixed_rows
    ]
    return config.model_copy(update={"fixed_rows": tuple(fixed)})


def _baseline(setup: Setup, job: StageJob) -> Manifest:
    from deepen.evaluate.stage import baseline

    return baseline(setup.recipe.evaluate, job, base=setup.base, compute=setup.machine.compute)


def _train(setup: Setup, job: StageJob) -> Manifest:
    from deepen.workflow.training.processes import train_together

    return train_together(setup, job, train_here)


def train_here(setup: Setup, job: StageJob) -> Manifest:
    """Train in this process, alone or as one of several."""
    from deepen.train.stage import train
    from deepen.workflow.training.hooks import hooks_of

    machine, hooks = setup.machine, hooks_of(setup, job)
    return train(setup.recipe.train, job, base=setup.base, compute=machine.compute, hooks=hooks, mesh=machine.mesh)


def _evaluate(setup: Setup, job: StageJob) -> Manifest:
    from deepen.evaluate.stage import evaluate
    from deepen.workflow.training.contamination import scanning_of

    return evaluate(
        setup.recipe.evaluate,
        job,
        base=setup.base,
        compute=setup.machine.compute,
        watched=job.out.parent / FOLDER_BESIDE,
        scanning=scanning_of(setup, job),
    )


def _select(setup: Setup, job: StageJob) -> Manifest:
    from deepen.select.stage import select

    return select(setup.recipe.select, job, budget=setup.recipe.evaluate.forgetting.budget)


def _export(setup: Setup, job: StageJob) -> Manifest:
    from deepen.export.stage import export

    lineage = {name: job.inputs[name] for name in STAGES if name in job.inputs}
    return export(setup.recipe.export, job, base=setup.base, compute=setup.machine.compute, lineage=lineage)


def _format_of(room: str, name: str = "FORMAT") -> Callable[[], int]:
    def read() -> int:
        return int(getattr(import_module(f"deepen.{room}.stage"), name))

    return read


def _seeded(room: str) -> Callable[[Setup], dict[str, Any]]:
    return lambda setup: {room: identity(getattr(setup.recipe, room)), "seed": setup.recipe.seed}


def _mix_identity(setup: Setup) -> dict[str, Any]:
    mix = identity(setup.recipe.mix)
    if "fixed_rows" in mix:  # identified by contents, as sources are
        mix["fixed_rows"] = [{"name": rows["name"], "role": rows["role"]} for rows in mix["fixed_rows"]]
    return _seeded("mix")(setup) | {
        "mix": mix,
        "batch_tokens": setup.recipe.train.batch_tokens,
        "num_batches": setup.num_batches,
    }


def _train_identity(setup: Setup) -> dict[str, Any]:
    # Probes in the loop decide which checkpoints exist, so they are part of what training makes.
    return _seeded("train")(setup) | {"evaluate": evaluation_identity(setup.recipe)}


def _evaluate_identity(setup: Setup) -> dict[str, Any]:
    return {"evaluate": evaluation_identity(setup.recipe), "seed": setup.recipe.seed}


def evaluation_identity(recipe: Recipe) -> dict[str, Any]:
    """Identity of everything that is set about the evaluation; how long to wait for another process changes nothing."""
    settings = without_probe_paths(identity(recipe.evaluate))
    return {key: value for key, value in settings.items() if key != "wait"}


def without_probe_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """The identity of evaluation's settings: items are identified by contents, and where they lie does not matter."""
    if "probes" not in settings:
        return settings
    probes = [{k: v for k, v in probe.items() if k not in ("path", "shots_path")} for probe in settings["probes"]]
    return {**settings, "probes": probes}


def _ingest_identity(setup: Setup) -> dict[str, Any]:
    return {"ingest": without_paths(identity(setup.recipe.ingest))}


def without_paths(ingest: dict[str, Any]) -> dict[str, Any]:
    """The identity of ingest's settings: sources are identified by contents, and where they lie does not matter."""
    sources = [{k: v for k, v in source.items() if k != "path"} for source in ingest["sources"]]
    return {**ingest, "sources": sources}


def _baseline_identity(setup: Setup) -> dict[str, Any]:
    # Budget and interval do not change how the base scores.
    settings = without_probe_paths(identity(setup.recipe.evaluate.baseline))
    return {"baseline": settings, "seed": setup.recipe.seed}


def _select_identity(setup: Setup) -> dict[str, Any]:
    return {"select": identity(setup.recipe.select), "budget": setup.recipe.evaluate.forgetting.budget}


def _measures(name: str) -> bool:
    """Raw inputs of the stages that measure: the base, and the files of probes."""
    return name == "base" or name.startswith("probe_files:")


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("ingest", (), _ingest_identity, _ingest, _format_of("ingest"),
              reads=lambda name: name.startswith("source:")),
        Stage("curate", ("ingest",), _seeded("curate"), _curate, _format_of("curate"),
              reads=lambda name: name == "held_out" or name.startswith(("probe:", "quarantine:"))),
        Stage("tokenize", ("curate",), _seeded("tokenize"), _tokenize, _format_of("tokenize"),
              reads=lambda name: name == "base" or name.startswith("tokenize:")),
        Stage("mix", ("curate", "tokenize"), _mix_identity, _mix, _format_of("mix"),
              reads=lambda name: name.startswith("fixed_rows")),
        Stage("baseline", ("curate", "tokenize"), _baseline_identity, _baseline,
              _format_of("evaluate", "BASELINE_FORMAT"), reads=_measures),
        Stage("train", ("curate", "tokenize", "mix", "baseline"), _train_identity, _train, _format_of("train"),
              reads=_measures, is_core=True),
        Stage("evaluate", ("curate", "tokenize", "baseline", "train"), _evaluate_identity, _evaluate,
              _format_of("evaluate"), reads=_measures),
        Stage("select", ("evaluate",), _select_identity, _select, _format_of("select")),
        Stage("export", ("ingest", "curate", "tokenize", "mix", "baseline", "train", "evaluate", "select"),
              lambda setup: {"export": identity(setup.recipe.export)}, _export, _format_of("export"),
              reads=lambda name: name == "base"),
    )
}  # fmt: skip
"""Every stage by name, in the order in which they run."""
