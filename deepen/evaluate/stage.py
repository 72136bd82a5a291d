"""The evaluation stages: the untouched base first, then every kept checkpoint against it.

``baseline`` runs before training and ``evaluate`` after it; ``in_loop.py`` scores a frozen subset in between. All
three compare on the same documents and items. Results are kept per document or item, one file per model and probe, so
that an interrupted evaluation goes on at the next checkpoint and every interval can be computed again. A probe that
fails is marked so, and the others go on.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.evaluate.compare.documents import status
from deepen.evaluate.compare.statistics import RESAMPLES, adjusted
from deepen.evaluate.compare.summary_table import (
    baseline_table,
    blend_table,
    contamination_lines,
    measuring_lines,
    summary_table,
)
from deepen.evaluate.config import EvaluateConfig
from deepen.evaluate.documents.likelihoods import read_likelihoods, summary, write_likelihoods
from deepen.evaluate.documents.material import Material, for_the_base, material_of
from deepen.evaluate.during_training.guard import Failure, attempt
from deepen.evaluate.during_training.in_loop import PROBES, in_loop_counts
from deepen.evaluate.items.contaminated import SCRATCH, Contamination, Scanning, look_for_items
from deepen.evaluate.models.blends import CHOOSING, REPORTING, half_of, too_few
from deepen.evaluate.models.kept import Models, Subject
from deepen.evaluate.probes.held_out import HeldOut
from deepen.evaluate.probes.item_probe import ItemProbe
from deepen.evaluate.probes.probe import Probe
from deepen.evaluate.tables import (
    MODELS,
    TABLES,
    KnownTables,
    base_table,
    checked_table,
    say_not_finite,
    table_file,
    table_mark,
    tables_beside_training,
    tables_of_evaluation,
    tables_of_training,
    write_readable,
)
from deepen.formats.files.atomic import FileEntry, entry_of
from deepen.formats.files.records import write_records
from deepen.formats.manifest import Manifest, StageJob, begin_stage, fingerprint, finish_stage
from deepen.formats.taken_over import take_over
from deepen.formats.training.checkpoints import CheckpointInfo, list_checkpoints, verify
from deepen.formats.training.roles import candidates
from deepen.formats.training.scores import ALL_CANDIDATES, CHOOSE_ON, REPORT_ON, SCORES, CheckpointScores, Score
from deepen.formats.unchanged import check_inputs
from deepen.model.config import ResolvedBase
from deepen.parallel.config import Compute
from deepen.progress import say

if TYPE_CHECKING:
    import pyarrow as pa

    from deepen.evaluate.probes.probe import Measure
    from deepen.model.loss.model import LossModel

BASELINE_FORMAT = 3
FORMAT = 3
_TOKENIZER = ("tokenizer/", "extension.json", "new_rows.safetensors")
"""What evaluation reads of tokenize; shards it does not."""


def baseline(config: EvaluateConfig, job: StageJob, *, base: ResolvedBase, compute: Compute) -> Manifest:
    """Results of the untouched base on all held-out documents and items.

    Inputs: ``curate``, ``tokenize``. Writes one table per probe, named after it. What ``job.previous`` holds of an
    unchanged probe is taken over.
    """
    settings = config.baseline
    check_inputs(job, {"curate": ["held_out/"], "tokenize": _TOKENIZER})
    begin_stage(job, stage="baseline", format_number=BASELINE_FORMAT, config=settings)
    material = for_the_base(material_of(job.inputs["curate"], job.inputs["tokenize"], base))
    model = cache(lambda: _open_base(base, job, compute))  # opened only where a table is missing
    files: list[FileEntry] = []
    counts: dict[str, Any] = {"sources": {}, "probes": {}, "failed": {}}
    for probe in config.all_probes:
        mark = probe_mark(probe, job)
        path = job.out / table_file(probe)
        if not path.is_file() and not _taken_over(job, probe, mark):
            measured = _measured(probe, partial(probe.prepare, material), model(), "baseline")
            if isinstance(measured, Failure):
                counts["failed"][probe.label] = measured.reason
                continue
            write_likelihoods(path, measured, job.out)
        table = read_likelihoods(path)
        files += [entry_of(path, job.out), *write_readable(job.out, probe, None, probe.readable(table, None))]
        counts["probes"][probe.label] = {"use": probe.use, "mark": mark, **probe.summary(table)}
    counts["sources"] = _source_counts(config.all_probes, job.out, material)
    say(baseline_table(counts))
    return finish_stage(
        job, stage="baseline", format_number=BASELINE_FORMAT, config=settings, files=files, counts=counts
    )


def evaluate(
    config: EvaluateConfig,
    job: StageJob,
    *,
    base: ResolvedBase,
    compute: Compute,
    watched: Path | None = None,
    scanning: Scanning | None = None,
) -> Manifest:
    """Every kept checkpoint of ``train`` in full against the baseline.

    Inputs: ``curate``, ``tokenize``, ``baseline``, ``train``. Writes ``PROBE/step-000100.parquet`` per checkpoint and
    ``scores.jsonl``, one ``CheckpointScores`` per line by rising step. A checkpoint whose bytes differ from its
    manifest is passed over with a message and counted. What another process measured into ``watched``, and what
    ``job.previous`` holds of unchanged probes and models, is not measured again. With ``scanning`` the items of probes
    are looked for in the trained documents, and scores are told with and without those that are found.
    """
    documents = ["documents/"] if scanning is not None else []
    check_inputs(job, {"curate": ["held_out/", *documents], "tokenize": _TOKENIZER, "baseline": [""]})
    begin_stage(job, stage="evaluate", format_number=FORMAT, config=config)
    material = material_of(job.inputs["curate"], job.inputs["tokenize"], base)
    checkpoints, damaged = _intact_checkpoints(job.inputs["train"].path / "checkpoints")
    models = Models(base, job, compute)
    subjects = [models.checkpoint(info) for info in checkpoints]
    blends = list(models.blends(config.blends, checkpoints))
    if (told := too_few(config.blends, len(checkpoints))) is not None:
        say(f"evaluate: {told}")
    work = Evaluation(config, job, material, contamination=look_for_items(config, job, scanning))
    if job.previous is not None:
        work.measured_before["the evaluation before"] = tables_of_evaluation(
            job.previous, [*subjects, *blends], config.all_probes
        )
    if watched is not None:
        work.measured_before["`deepen evaluate --watch`"] = tables_beside_training(watched, checkpoints)
    work.measured_before["training"] = tables_of_training(job.inputs["train"].path / PROBES, checkpoints)
    files = [entry for probe in config.all_probes for entry in work.measure(probe, [*subjects, *blends])]
    work.say_taken_over()
    scored = [work.compared(subject) for subject in subjects]
    files += [_write_scores(job.out, SCORES, scored), *work.contamination.files]
    if blends:
        files += _write_blends(work, [*subjects, *blends])
    sources = _source_counts(config.all_probes, job.inputs["baseline"].path, material)
    counts: dict[str, Any] = {
        "sources": sources,
        "budget": config.forgetting.budget,
        "checkpoints": work.statuses(scored, sources),
        "damaged": damaged,
        "failed": work.failed,
        "in_loop": in_loop_counts(job.inputs["train"].path, config),
        "contamination": work.contamination.counts,
        TABLES: {probe.label: table_mark(probe_mark(probe, job)) for probe in config.all_probes},
        MODELS: {str(subject.key): subject.identity for subject in [*subjects, *blends]},
    }
    table = summary_table(scored, counts["checkpoints"], config.forgetting.budget)
    say("\n".join([table, *contamination_lines(scored, counts), *measuring_lines(counts["in_loop"])]))
    shutil.rmtree(job.out / SCRATCH, ignore_errors=True)
    return finish_stage(job, stage="evaluate", format_number=FORMAT, config=config, files=files, counts=counts)


def _write_scores(out: Path, name: str, scored: Sequence[CheckpointScores]) -> FileEntry:
    return write_records(out / name, (one.model_dump(mode="json") for one in scored), out)


def _write_blends(work: Evaluation, subjects: Sequence[Subject]) -> list[FileEntry]:
    """Scores of checkpoints and blends: on everything, and on the halves to choose on and to report on."""
    halves = {ALL_CANDIDATES: None, CHOOSE_ON: CHOOSING, REPORT_ON: REPORTING}
    found = {name: [work.compared(subject, half) for subject in subjects] for name, half in halves.items()}
    say(blend_table(found[ALL_CANDIDATES]))
    return [_write_scores(work.job.out, name, scored) for name, scored in found.items()]


def _open_base(base: ResolvedBase, job: StageJob, compute: Compute) -> LossModel:
    from deepen.evaluate.models.subject import open_base, share_scoring

    return share_scoring(open_base(base, job.inputs["tokenize"], seed=job.seed, compute=compute), compute)


def probe_mark(probe: Probe, job: StageJob) -> str:
    """Identity of what the base makes of one probe: its settings and files, the model and the held-out documents."""
    named = ("base", f"probe_files:{probe.label}")
    inputs = {name: entry.fingerprint for name, entry in job.raw_inputs.items() if name in named}
    inputs |= {name: artifact.fingerprint for name, artifact in job.inputs.items() if name in ("curate", "tokenize")}
    settings = {"probe": probe, "seed": job.seed}
    return fingerprint("baseline", BASELINE_FORMAT, settings, inputs)


def _taken_over(job: StageJob, probe: Probe, mark: str) -> bool:
    """Whether the result that this one replaces had the same probe; its table is then linked here."""
    if job.previous is None or job.previous.counts.get("probes", {}).get(probe.label, {}).get("mark") != mark:
        return False
    return bool(take_over(job.previous, lambda name: name == table_file(probe), job.out))


def _measured(probe: Probe, prepare: Callable[[], Measure], model: LossModel, what: str) -> pa.Table | Failure:
    """The table of a model, of which the probe can also tell what is in it; or why there is none."""

    def work() -> pa.Table:
        table = checked_table(prepare()(model, f"{what}, {probe.label}"))
        probe.summary(table)
        probe.readable(table, None)
        return table

    return attempt(probe.label, probe.time_limit.value, work)


@dataclass(frozen=True)
class _Compared:
    """What one probe says of one model."""

    scores: Sequence[Score]
    slices: Sequence[Score] = ()
    without_hits: Sequence[Score] = ()


@dataclass
class Evaluation:
    """The full evaluation of a run's checkpoints."""

    config: EvaluateConfig
    job: StageJob
    material: Material
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    """By probe and step (or name of a blend), why there is no result."""
    measured_before: dict[str, KnownTables] = field(default_factory=dict)
    """By who measured something already."""
    contamination: Contamination = Contamination()
    num_taken_over: Counter[str] = field(default_factory=Counter)
    """Tables that were not measured, by who did."""

    def measure(self, probe: Probe, subjects: Sequence[Subject]) -> list[FileEntry]:
        """Write the tables of a probe that are missing; returns the entries of all."""
        reason = self.job.inputs["baseline"].counts.get("failed", {}).get(probe.label)
        if reason is not None:
            self.failed[probe.label] = {"base": reason}
            return []
        files = []
        prepare = cache(partial(probe.prepare, self.material))  # encoded once for all models, if at all
        for subject in subjects:
            path = self.job.out / table_file(probe, subject.key)
            known = path.is_file() or self._taken_over(probe, subject, path)
            if not known and not self._write_table(probe, prepare, subject):
                continue
            files.append(entry_of(path, self.job.out))
            tables = read_likelihoods(path), base_table(self.job.inputs["baseline"], probe)
            text = attempt(probe.label, None, partial(probe.readable, *tables))
            if not isinstance(text, Failure):  # scores do not depend on it, and the reason was said
                files += write_readable(self.job.out, probe, subject.key, text)
        return files

    def _taken_over(self, probe: Probe, subject: Subject, path: Path) -> bool:
        mark = table_mark(probe_mark(probe, self.job))
        for who, tables in self.measured_before.items():
            if tables.link(probe, subject, mark, path):
                self.num_taken_over[who] += 1
                return True
        return False

    def say_taken_over(self) -> None:
        """Tell what was not measured again."""
        for who, count in self.num_taken_over.items():
            say(f"evaluate: {count} tables were measured by {who} and are taken over")

    def _write_table(self, probe: Probe, prepare: Callable[[], Measure], subject: Subject) -> bool:
        measured = _measured(probe, prepare, subject.open(), f"evaluate {subject.title}")
        if isinstance(measured, Failure):
            self.failed.setdefault(probe.label, {})[str(subject.key)] = measured.reason
            return False
        write_likelihoods(self.job.out / table_file(probe, subject.key), measured, self.job.out)
        return True

    def compared(
        self, subject: Subject, half: int | None = None, probes: Sequence[Probe] | None = None
    ) -> CheckpointScores:
        """All scores of one model (or those of ``probes``), on everything or on one half of documents and items."""
        found: list[_Compared] = []
        failed: dict[str, str] = {}
        for probe in self.config.all_probes if probes is None else probes:
            reasons = self.failed.get(probe.label, {})
            reason = reasons.get("base", reasons.get(str(subject.key)))
            if reason is None:
                compare = partial(self._compare, probe, subject, half)
                one = attempt(probe.label, probe.time_limit.value, compare)
                if not isinstance(one, Failure):
                    found.append(one)
                    continue
                reason = one.reason
                self.failed.setdefault(probe.label, {})[str(subject.key)] = reason
            failed[probe.label] = reason
        return CheckpointScores(
            step=subject.step,
            blend=subject.blend,
            tokens=subject.tokens,
            scores=tuple(adjusted([score for one in found for score in one.scores])),
            slices=tuple(score for one in found for score in one.slices),
            failed=failed,
            without_hits=tuple(score for one in found for score in one.without_hits),
        )

    def _compare(self, probe: Probe, subject: Subject, half: int | None) -> _Compared:
        theirs = base_table(self.job.inputs["baseline"], probe)
        assert theirs is not None, "a probe without a baseline was marked as failed"
        ours = read_likelihoods(self.job.out / table_file(probe, subject.key))
        sampling = {"seed": self.job.seed, "resamples": RESAMPLES}
        if half is not None:
            halves = half_of(theirs, half), half_of(ours, half)
            return _Compared(probe.compare(*halves, self.material, **sampling))
        say_not_finite(ours, subject.step)
        return _Compared(
            probe.compare(theirs, ours, self.material, **sampling),
            probe.slices(theirs, ours, self.material, **sampling),
            self._without_hits(probe, theirs, ours),
        )

    def _without_hits(self, probe: Probe, theirs: pa.Table, ours: pa.Table) -> list[Score]:
        """The scores of a probe that change when items that stand in trained documents do not count."""
        found = self.contamination.left_out(probe)
        if not found or not isinstance(probe, ItemProbe):
            return []
        return probe.compare_without(theirs, ours, found, seed=self.job.seed, resamples=RESAMPLES)

    def statuses(self, scored: list[CheckpointScores], sources: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Step, tokens and status of every checkpoint: the worst of the kept abilities that were measured."""
        measured = any(source["ability"] == "kept" and source["scored"] for source in sources.values())
        found = []
        for one in scored:
            kept = [score for score in one.scores if score.ability == "kept" and ":" not in score.probe]
            lost = measured and not any(score.probe == label for score in kept for label in _held_out(self.config))
            each = [status(score, self.config.forgetting.budget, measured=True) for score in kept]
            if lost or self._lost_items(one, {score.probe for score in kept}):
                each.append(status(None, self.config.forgetting.budget, measured=True))
            if not each:
                each.append(status(None, self.config.forgetting.budget, measured=measured))
            found.append({"step": one.step, "tokens": one.tokens, "status": min(each, key=_WORST.index)})
        return found

    def _lost_items(self, one: CheckpointScores, known: set[str]) -> bool:
        """Whether a kept probe of questions, which the base answered, has no score though it did not fail."""
        base = self.job.inputs["baseline"].counts.get("probes", {})
        return any(
            isinstance(probe, ItemProbe)
            and probe.ability == "kept"
            and base.get(probe.label, {}).get("used", 0) > 0
            and not {probe.label} & {*known, *one.failed}
            for probe in self.config.all_probes
        )


_WORST = ("not finite", "breach", "warning", "ok", "not measured")


def _held_out(config: EvaluateConfig) -> list[str]:
    return [probe.label for probe in config.all_probes if isinstance(probe, HeldOut)]


def _intact_checkpoints(directory: Path) -> tuple[list[CheckpointInfo], dict[str, str]]:
    """Candidates that agree with their hashes, and what is wrong with any checkpoint by name."""
    intact, damaged, lasting = [], {}, candidates(directory)
    for info in list_checkpoints(directory):
        wrong = verify(info)
        if wrong:
            damaged[info.path.name] = wrong[0]
            say(f"evaluate: checkpoint {info.path.name} is passed over: {wrong[0]}")
        elif info in lasting:
            intact.append(info)
    return intact, damaged


def _source_counts(probes: Sequence[Probe], directory: Path, material: Material) -> dict[str, dict[str, Any]]:
    """Per source: role, ability and what the base's likelihoods of the first held-out probe hold; none without one."""
    first = next((probe for probe in probes if isinstance(probe, HeldOut)), None)
    if first is None or not (directory / table_file(first)).is_file():
        return {}
    table = read_likelihoods(directory / table_file(first))
    return {
        source.name: {"role": source.role, "ability": source.ability, **summary(table, source.name)}
        for source in material.sources
    }
