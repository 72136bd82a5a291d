"""Scores during training: a subset of every probe, chosen once and written down, the same until the run ends.

With an overhead budget the subsets are sized at the first measurement: a small part is timed, and the rest is made as
large as the budget allows, this sizing and the encoding included. That depends on the machine, so it happens once; a
resumed run reads the file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from deepen.evaluate.compare.statistics import adjusted
from deepen.evaluate.config import EvaluateConfig
from deepen.evaluate.documents.likelihoods import part_of, write_likelihoods
from deepen.evaluate.documents.material import Material, material_of
from deepen.evaluate.during_training.guard import Failure, attempt
from deepen.evaluate.probes.probe import Probe
from deepen.evaluate.tables import base_table, checked_table, say_not_finite, table_file, table_mark, write_readable
from deepen.formats.files.atomic import write_json
from deepen.formats.files.records import append_record, keeps_records, read_records
from deepen.formats.manifest import Artifact
from deepen.formats.training.scores import Score
from deepen.model.config import ResolvedBase
from deepen.progress import say

if TYPE_CHECKING:
    from deepen.evaluate.probes.probe import Measure
    from deepen.model.loss.model import LossModel
    from deepen.parallel.process import Process

T = TypeVar("T")

PROBES = "probes"
"""Directory inside the training stage."""
SUBSETS, TIMES, FAILED = "subsets.json", "times.jsonl", "failed.jsonl"

_RESAMPLES = 1_000
"""Bootstrap draws during training: a tenth of the full evaluation's, enough for a curve with error bars."""
_TIMED_ITEMS = 16
"""Documents or items of each stratum that are timed before the rest is sized."""
_AIM = 0.9
"""Share of the budget that is planned for: a timed part says what the whole takes to within about a tenth."""
_LEAST_ITEMS = 8
"""Of each stratum at least so many are kept, whatever the budget."""


@dataclass(frozen=True)
class Pace:
    """How long the training takes between two measurements."""

    steps: int | None
    """Steps between measurements; None when only a time was given."""
    seconds: float | None = None
    """Seconds between measurements, if a time was given."""
    total_steps: int | None = None
    """Steps of the whole run; None: not known, and what is paid once is spread over one measurement."""
    full_steps: int | None = None
    """Steps after which the next measurement takes everything; None: none does."""

    def is_full(self, step: int) -> bool:
        """Whether a measurement at ``step`` takes everything: the first one at or after every ``full_steps``, and the
        last of the run."""
        if self.full_steps is None:
            return False
        return step == self.total_steps or (step >= self.full_steps and step % self.full_steps < (self.steps or 1))


@dataclass(frozen=True)
class _Cost:
    """Seconds that a whole subset would take."""

    once: float = 0.0
    """To read and encode it."""
    each: float = 0.0
    """To score and compare it, at every measurement."""

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(self.once + other.once, self.each + other.each)


class InLoop:
    """The function ``(model, step, tokens) -> scores`` that the training loop calls.

    Documents and items are read and encoded at the first call. With ``out`` given, it writes there which subsets it
    uses, how long each measurement took, what failed, and what there is to read.
    """

    def __init__(
        self, config: EvaluateConfig, material: Material, baseline: Artifact, *, seed: int, out: Path | None, pace: Pace
    ) -> None:
        self._config, self._material, self._seed = config, material, seed
        self._out, self._pace = None if out is None else out / PROBES, pace
        self._tables: dict[str, pa.Table] = {}
        for probe in config.all_probes:
            table = base_table(baseline, probe)
            if table is None:
                say(f"probe `{probe.label}` has no baseline and is left out")
            else:
                self._tables[probe.label] = table
        self._full = FullTables(self._out, baseline)
        self._measures: dict[tuple[str, bool], Measure] = {}
        self._subsets: dict[str, dict[str, list[str]]] | None = None
        self._process: Process | None = None
        """Of a model that several processes train."""
        self._since = time.monotonic()

    def __call__(self, model: LossModel, step: int, tokens: int) -> list[Score]:
        """Score the model on the subsets, in the precision in which its weights are kept."""
        from deepen.parallel.shards.full_precision import in_full_precision
        from deepen.parallel.spread import process_of

        self._process = process_of(model)
        with in_full_precision(model):
            return self._scores(model, step, tokens)

    def _scores(self, model: LossModel, step: int, tokens: int) -> list[Score]:
        started = time.monotonic()
        training_seconds = started - self._since
        if self._subsets is None:
            from deepen.parallel.process import told_by_main  # what is timed differs between processes

            known = told_by_main(self._read_subsets())
            self._subsets = known or told_by_main(self._choose_subsets(model, step, training_seconds))
        found: list[Score] = []
        full = self._pace.is_full(step)
        self._full.begin(step)
        for probe in self._measured():
            found += self._attempted(probe, step, partial(self._measure, probe, model, step, full)) or []
        seconds = time.monotonic() - started
        self._record(TIMES, {"step": step, "seconds": seconds, "training_seconds": training_seconds, "full": full})
        # Measuring is no training time: the share of the budget is of training alone.
        self._since = time.monotonic()
        return adjusted(found)

    def _attempted(self, probe: Probe, step: int, work: Callable[[], T]) -> T | None:
        """What ``work`` on a probe returns; None where it failed, which is written down."""
        done = attempt(probe.label, probe.time_limit.value, work, self._process)
        if isinstance(done, Failure):
            self._record(FAILED, {"step": step, "probe": probe.label, "reason": done.reason})
            return None
        return done

    def tables_at(self, step: int) -> dict[str, dict[str, str]]:
        """By probe mark and hash of what was measured in full at ``step``, if that was the last measurement."""
        return self._full.at(step)

    def _measured(self) -> Iterator[Probe]:
        """The probes that the base was measured with, but those whose subset could not be chosen."""
        chosen = self._subsets or {}
        return (
            probe for probe in self._config.all_probes if probe.label in self._tables and chosen.get(probe.label) != {}
        )

    def _measure(self, probe: Probe, model: LossModel, step: int, full: bool) -> list[Score]:
        """Scores of the subset; with ``full`` everything is measured, and kept."""
        key = probe.label, full
        if key not in self._measures:
            material = self._material if full else replace(self._material, only=self._ids(probe))
            self._measures[key] = probe.prepare(material)
        table = checked_table(self._measures[key](model, None))
        if full:
            self._full.keep(probe, table)
            # Scores stay those of the subset: points of a curve over other documents would not compare.
            table = part_of(table, self._ids(probe))
        say_not_finite(table, step)
        self._write_readable(probe, table, step)
        return probe.compare(self._tables[probe.label], table, self._material, seed=self._seed, resamples=_RESAMPLES)

    def _ids(self, probe: Probe) -> frozenset[str]:
        """The subset."""
        assert self._subsets is not None, "it is chosen before anything is measured"
        return frozenset(name for names in self._subsets.get(probe.label, {}).values() for name in names)

    def _read_subsets(self) -> dict[str, dict[str, list[str]]] | None:
        """The subsets that this run chose earlier, if it did."""
        if self._out is None or not (self._out / SUBSETS).is_file():
            return None
        chosen: dict[str, dict[str, list[str]]] = json.loads((self._out / SUBSETS).read_text())["ids"]
        return chosen if set(self._tables) <= set(chosen) else None

    def _choose_subsets(self, model: LossModel, step: int, training_seconds: float) -> dict[str, dict[str, list[str]]]:
        """What the probes ask for, made smaller where the overhead budget needs it, and written down."""
        found = {
            probe: self._attempted(probe, step, partial(probe.subset, self._material, self._tables[probe.label]))
            for probe in self._measured()
        }
        chosen = {probe.label: {name: list(ids) for name, ids in (by or {}).items()} for probe, by in found.items()}
        sizing: dict[str, Any] = {}
        if self._config.overhead is not None:
            sizing = self._sized(chosen, model, self._config.overhead, self._pace_so_far(step, training_seconds))
            share = sizing["share"]
            chosen = {label: {name: _first(ids, share) for name, ids in by.items()} for label, by in chosen.items()}
            _say_sizing(sizing, chosen)
        if self._out is not None and keeps_records():
            self._out.mkdir(parents=True, exist_ok=True)
            write_json(self._out / SUBSETS, {"step": step, "sizing": sizing, "ids": chosen})
        return chosen

    def _sized(
        self, chosen: Mapping[str, Mapping[str, list[str]]], model: LossModel, overhead: float, pace: tuple[float, int]
    ) -> dict[str, Any]:
        """The share of the chosen subsets that all measurements together can afford, and what it follows from."""
        between, measurements = pace
        started = time.perf_counter()
        cost = sum((self._cost(probe, chosen[probe.label], model) for probe in self._measured()), _Cost())
        spent = time.perf_counter() - started
        # For the whole run: what the budget allows, less what finding out has cost. Encoding is paid once.
        affordable = _AIM * measurements * overhead * between - spent
        whole = cost.once + measurements * cost.each
        return {
            "allowed_seconds": overhead * between,
            "measurements": measurements,
            "sizing_seconds": spent,
            "expected_seconds": cost.each,
            "expected_once_seconds": cost.once,
            "share": max(0.0, min(1.0, affordable / whole)) if whole > 0 else 1.0,
        }

    def _pace_so_far(self, step: int, training_seconds: float) -> tuple[float, int]:
        """Training seconds from one measurement to the next by the speed of the steps so far, and how many come."""
        per_step = self._seconds_per_step() or training_seconds / max(1, step)
        by_steps = None if self._pace.steps is None else per_step * self._pace.steps
        between = min(filter(None, (by_steps, self._pace.seconds)), default=training_seconds)
        if self._pace.total_steps is None or between <= 0:
            return between, 1
        # A hair more, or rounding would lose the last of ten.
        return between, max(1, int(per_step * self._pace.total_steps / between + 1e-6))

    def _seconds_per_step(self) -> float | None:
        """Median over the steps in the run's metrics, so that the first ones, which compile, do not count."""
        if self._out is None:
            return None
        steps = [
            (record["step"], record["elapsed_seconds"])
            for record in read_records(self._out.parent / "metrics.jsonl")
            if record.get("elapsed_seconds") is not None
        ]
        paces = sorted(
            (later[1] - earlier[1]) / (later[0] - earlier[0])
            for earlier, later in zip(steps, steps[1:], strict=False)
            if later[0] > earlier[0]
        )
        return paces[len(paces) // 2] if paces else None

    def _cost(self, probe: Probe, ids: Mapping[str, list[str]], model: LossModel) -> _Cost:
        """What the whole subset would take, from a timed part of it; a failing probe is found later."""
        part = frozenset(name for names in ids.values() for name in names[:_TIMED_ITEMS])
        whole = sum(map(len, ids.values()))
        if not part:
            return _Cost()

        def timed() -> tuple[float, float]:
            begun = time.perf_counter()
            measure = probe.prepare(replace(self._material, only=part))
            prepared = time.perf_counter()
            measure(model, None)  # the first call pays for what later ones find ready
            started = time.perf_counter()
            table = measure(model, None)
            probe.compare(self._tables[probe.label], table, self._material, seed=self._seed, resamples=_RESAMPLES)
            return prepared - begun, time.perf_counter() - started

        seconds = attempt(probe.label, probe.time_limit.value, timed, self._process)
        if isinstance(seconds, Failure):
            return _Cost()
        return _Cost(*(value * whole / len(part) for value in seconds))

    def _record(self, name: str, record: dict[str, Any]) -> None:
        if self._out is not None and keeps_records():
            self._out.mkdir(parents=True, exist_ok=True)
            append_record(self._out / name, record, sync=True)

    def _write_readable(self, probe: Probe, table: pa.Table, step: int) -> None:
        text = probe.readable(table, self._tables[probe.label])
        if self._out is not None and keeps_records():
            write_readable(self._out, probe, step, text)


def _first(ids: list[str], share: float) -> list[str]:
    return ids[: max(min(_LEAST_ITEMS, len(ids)), int(len(ids) * share))]


def _say_sizing(sizing: Mapping[str, Any], chosen: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Tell what the subsets became, and when even the least that is measured goes beyond the budget."""
    allowed, share = sizing["allowed_seconds"], sizing["share"]
    say(f"measuring may take {allowed:.2g} s each time: subsets have {share:.2g} of their size")
    at_least = max((len(ids) for by in chosen.values() for ids in by.values()), default=0) <= _LEAST_ITEMS
    if share < 1 and at_least:
        say(f"no less than {_LEAST_ITEMS} of each source or task are measured: `evaluate.overhead` may be exceeded")


def in_loop_counts(train: Path, config: EvaluateConfig) -> dict[str, Any] | None:
    """What measuring during training took and what failed, from the files of ``InLoop``; None when there are none."""
    times = {record["step"]: record for record in read_records(train / PROBES / TIMES)}
    if not times:
        return None
    full = [record["seconds"] for record in times.values() if record.get("full")]
    measuring = sum(record["seconds"] for record in times.values()) - sum(full)
    training = sum(record["training_seconds"] for record in times.values())
    failed: dict[str, dict[str, str]] = {}
    for record in read_records(train / PROBES / FAILED):
        failed.setdefault(record["probe"], {})[str(record["step"])] = record["reason"]
    return {
        "measurements": len(times),
        "seconds": measuring,
        "share_of_training": measuring / training if training > 0 else None,
        "overhead": config.overhead,
        "in_full": len(full),
        "in_full_seconds": sum(full),
        "failed": failed,
    }


def in_loop_evaluator(
    config: EvaluateConfig,
    inputs: Mapping[str, Artifact],
    *,
    base: ResolvedBase,
    seed: int,
    out: Path | None = None,
    pace: Pace = Pace(None),
) -> InLoop:
    """What the training loop calls; see ``InLoop``. ``inputs``: ``curate``, ``tokenize``, ``baseline``."""
    material = material_of(inputs["curate"], inputs["tokenize"], base)
    return InLoop(config, material, inputs["baseline"], seed=seed, out=out, pace=pace)


@dataclass
class FullTables:
    """Keeps the tables of whole probes in ``directory``; without one, and outside rank 0, nothing is written."""

    directory: Path | None
    baseline: Artifact
    _step: int = 0
    _named: dict[str, dict[str, str]] = field(default_factory=dict)

    def begin(self, step: int) -> None:
        """Forget what was measured before, of this step too: it may be reached a second time, with other weights."""
        self._step, self._named = step, {}

    def keep(self, probe: Probe, table: pa.Table) -> None:
        """Write a table of the step that was begun."""
        if self.directory is None or not keeps_records():
            return
        path = self.directory / table_file(probe, self._step)
        entry = write_likelihoods(path, table, self.directory)
        mark = table_mark(self.baseline.counts["probes"][probe.label]["mark"])
        self._named[probe.label] = {"mark": mark, "hash": entry.hash}

    def at(self, step: int) -> dict[str, dict[str, str]]:
        """By probe what was kept of ``step``, as its checkpoint is to name it; nothing if another step was the last."""
        return dict(self._named) if step == self._step else {}
