"""The evaluation stages: the untouched base first, then every kept checkpoint against it.

``baseline`` runs before training and ``evaluate`` after it; ``in_loop_evaluator`` scores a frozen subset in between.
All three compare on the same documents with the same windows. Likelihoods are kept per document, one file per model, so
that an interrupted evaluation goes on at the next checkpoint and every interval can be computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from deepen.evaluate.compare import compare, status
from deepen.evaluate.config import EvaluateConfig, Probe
from deepen.evaluate.likelihoods import NOT_FINITE, read_likelihoods, summary, write_likelihoods
from deepen.evaluate.material import Material, for_the_base, material_of
from deepen.evaluate.statistics import adjusted
from deepen.formats.atomic import FileEntry, entry_of
from deepen.formats.checkpoints import (
    CheckpointInfo,
    checkpoint_name,
    list_checkpoints,
    read_checkpoint,
    read_state,
    verify,
)
from deepen.formats.manifest import Artifact, Manifest, StageJob, begin_stage, finish_stage
from deepen.formats.records import write_records
from deepen.formats.scores import CheckpointScores, Score
from deepen.model.config import ResolvedBase
from deepen.parallel.config import Compute
from deepen.progress import say

if TYPE_CHECKING:
    from deepen.model.loss import LossModel

BASELINE_FORMAT = 2
FORMAT = 2

_IN_LOOP_RESAMPLES = 1_000
"""Bootstrap draws during training: a tenth of the full evaluation's, enough for a curve with error bars."""


def baseline(config: EvaluateConfig, job: StageJob, *, base: ResolvedBase, compute: Compute) -> Manifest:
    """Likelihoods of the untouched base on all held-out documents.

    Inputs: ``curate``, ``tokenize``. Writes one likelihood file per probe, named after it.
    """
    settings = config.baseline
    begin_stage(job, stage="baseline", format_number=BASELINE_FORMAT, config=settings)
    material = for_the_base(material_of(job.inputs["curate"], job.inputs["tokenize"], base))
    files = []
    for probe in config.probes:
        path = job.out / likelihood_file(probe)
        if not path.is_file():
            from deepen.evaluate.subject import open_base

            model = open_base(base, job.inputs["tokenize"], seed=job.seed, compute=compute)
            write_likelihoods(path, probe.prepare(material)(model, "baseline"), job.out)
        files.append(entry_of(path, job.out))
    counts = {"sources": _source_counts(config.probes[0], job.out, material)}
    for name, source in counts["sources"].items():
        say(f"baseline: {name} ({source['ability']}): {_described(source)}")
    return finish_stage(
        job, stage="baseline", format_number=BASELINE_FORMAT, config=settings, files=files, counts=counts
    )


def evaluate(config: EvaluateConfig, job: StageJob, *, base: ResolvedBase, compute: Compute) -> Manifest:
    """Every kept checkpoint of ``train`` in full against the baseline.

    Inputs: ``curate``, ``tokenize``, ``baseline``, ``train``. Writes ``PROBE/step-000100.parquet`` per checkpoint and
    ``scores.jsonl``, one ``CheckpointScores`` per line by rising step. A checkpoint whose bytes differ from its
    manifest is passed over with a message and counted.
    """
    begin_stage(job, stage="evaluate", format_number=FORMAT, config=config)
    material = material_of(job.inputs["curate"], job.inputs["tokenize"], base)
    checkpoints, damaged = _intact_checkpoints(job.inputs["train"].path / "checkpoints")
    files = _measure_checkpoints(config, job, material, checkpoints, base=base, compute=compute)
    scored = [_compared(config, job, material, info) for info in checkpoints]
    files.append(write_records(job.out / "scores.jsonl", (one.model_dump(mode="json") for one in scored), job.out))
    sources = _source_counts(config.probes[0], job.inputs["baseline"].path, material)
    counts: dict[str, Any] = {
        "sources": sources,
        "budget": config.forgetting.budget,
        "checkpoints": _statuses(config, scored, sources),
        "damaged": damaged,
    }
    say(summary_table(scored, counts["checkpoints"], probe=config.probes[0].use))
    return finish_stage(job, stage="evaluate", format_number=FORMAT, config=config, files=files, counts=counts)


def in_loop_evaluator(
    config: EvaluateConfig,
    *,
    curate: Artifact,
    tokenize: Artifact,
    baseline: Artifact,
    base: ResolvedBase,
    seed: int,
) -> Callable[[LossModel, int, int], list[Score]]:
    """The function ``(model, step, tokens) -> scores`` that the training loop calls.

    It scores a subset of the held-out documents, the same at every call and after every restart, against the base's
    likelihoods on that subset. Documents are read and encoded at the first call.
    """
    material = material_of(curate, tokenize, base)
    tables = {probe.use: read_likelihoods(baseline.path / likelihood_file(probe)) for probe in config.probes}
    measures: dict[str, Callable[[LossModel, str | None], pa.Table]] = {}

    def score(model: LossModel, step: int, tokens: int) -> list[Score]:
        found: list[Score] = []
        for probe in config.probes:
            table = tables[probe.use]
            if probe.use not in measures:
                measures[probe.use] = probe.prepare(replace(material, only=probe.subset(material, table)))
            measured = measures[probe.use](model, None)
            _say_not_finite(measured, step)
            found += compare(
                table, measured, material.abilities, probe=probe.use, seed=seed, resamples=_IN_LOOP_RESAMPLES
            )
        return adjusted(found)

    return score


def likelihood_file(probe: Probe, step: int | None = None) -> str:
    """Name of the likelihood file of a probe for the base, or for the checkpoint of ``step``."""
    name = probe.use.replace(":", ".")
    return f"{name}.parquet" if step is None else f"{name}/{checkpoint_name(step)}.parquet"


def _intact_checkpoints(directory: Path) -> tuple[list[CheckpointInfo], dict[str, str]]:
    """Milestones that agree with their hashes, and what is wrong with the others by name.

    Other checkpoints are kept for resuming only, and which ones there are depends on how fast the machine was.
    """
    intact, damaged = [], {}
    for info in list_checkpoints(directory):
        wrong = verify(info)
        if wrong:
            damaged[info.path.name] = wrong[0]
            say(f"evaluate: checkpoint {info.path.name} is passed over: {wrong[0]}")
        elif read_checkpoint(info).milestone:
            intact.append(info)
    return intact, damaged


def _measure_checkpoints(
    config: EvaluateConfig,
    job: StageJob,
    material: Material,
    checkpoints: list[CheckpointInfo],
    *,
    base: ResolvedBase,
    compute: Compute,
) -> list[FileEntry]:
    """Write the likelihood files that are missing; the model is only built when one is."""
    files, model = [], None
    for probe in config.probes:
        missing = [info for info in checkpoints if not (job.out / likelihood_file(probe, info.step)).is_file()]
        measure = probe.prepare(material) if missing else None
        for info in missing:
            from deepen.evaluate.subject import open_run_model, put_weights

            assert measure is not None
            model = model or open_run_model(base, job.inputs["tokenize"], seed=job.seed, compute=compute)
            put_weights(model, info)
            measured = measure(model, f"evaluate step {info.step}")
            write_likelihoods(job.out / likelihood_file(probe, info.step), measured, job.out)
        files += [entry_of(job.out / likelihood_file(probe, info.step), job.out) for info in checkpoints]
    return files


def _compared(config: EvaluateConfig, job: StageJob, material: Material, info: CheckpointInfo) -> CheckpointScores:
    scores: list[Score] = []
    for probe in config.probes:
        theirs = read_likelihoods(job.inputs["baseline"].path / likelihood_file(probe))
        ours = read_likelihoods(job.out / likelihood_file(probe, info.step))
        _say_not_finite(ours, info.step)
        scores += compare(theirs, ours, material.abilities, probe=probe.use, seed=job.seed)
    return CheckpointScores(step=info.step, tokens=read_state(info)["tokens"], scores=tuple(adjusted(scores)))


def _statuses(
    config: EvaluateConfig, scored: list[CheckpointScores], sources: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Step, tokens and status of every checkpoint, by the first probe."""
    measured = any(source["ability"] == "kept" and source["scored"] for source in sources.values())
    kept = [one.of(config.probes[0].use, "kept") for one in scored]
    return [
        {"step": one.step, "tokens": one.tokens, "status": status(score, config.forgetting.budget, measured=measured)}
        for one, score in zip(scored, kept, strict=True)
    ]


def _say_not_finite(table: pa.Table, step: int) -> None:
    rows = table.filter(pc.equal(table["reason"], NOT_FINITE))
    for source in pc.unique(rows["source"]).to_pylist():
        say(f"step {step}: documents of `{source}` have no finite likelihood; the source is not scored")


def _source_counts(probe: Probe, directory: Path, material: Material) -> dict[str, dict[str, Any]]:
    """Per source: role, ability and what the base's likelihood file holds."""
    table = read_likelihoods(directory / likelihood_file(probe))
    return {
        source.name: {"role": source.role, "ability": source.ability, **summary(table, source.name)}
        for source in material.sources
    }


def _described(source: dict[str, Any]) -> str:
    if not source["scored"]:
        return "no held-out documents can be scored, so nothing is measured here"
    return f"{source['bits_per_byte']:.4f} bits per byte over {source['scored']} documents"


def summary_table(scored: list[CheckpointScores], checkpoints: list[dict[str, Any]], *, probe: str) -> str:
    """A table for people: a line per checkpoint with bits per byte, changes and intervals of both abilities."""
    lines = [
        f"{'step':>8}  {'new':>8}  {'change (95 % interval)':<28}  {'kept':>8}  {'change (95 % interval)':<28}  status"
    ]
    for scores, checkpoint in zip(scored, checkpoints, strict=True):
        cells = [_cells(scores.of(probe, "new")), _cells(scores.of(probe, "kept"))]
        lines.append(f"{scores.step:>8}  {'  '.join(cells)}  {checkpoint['status']}")
    return "\n".join(lines)


def _cells(score: Score | None) -> str:
    if score is None:
        return f"{'-':>8}  {'not measured':<28}"
    change = f"{score.difference:+.2%}"
    if score.interval is not None:
        change += f" ({score.interval[0]:+.2%} to {score.interval[1]:+.2%})"
    return f"{score.value:>8.4f}  {change:<28}"
