"""`deepen evaluate RUN --watch`: score the checkpoints of a training in full, from another process, as they appear.

It reads what training writes and writes into ``RUN/watch`` alone, under a lock of its own, so that neither can disturb
the other. Whatever ends it, the same command goes on: a checkpoint is known by what it holds, a table by what it was
measured with.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepen.errors import DamageError, RunError
from deepen.evaluate.config import EvaluateConfig
from deepen.evaluate.documents.material import Material, material_of
from deepen.evaluate.models.kept import Models, Subject
from deepen.evaluate.stage import Evaluation, probe_mark
from deepen.evaluate.tables import readable_file, table_file, table_mark
from deepen.formats.files.atomic import hash_file, write_json
from deepen.formats.files.json_text import read_object
from deepen.formats.files.records import append_record, keep_records
from deepen.formats.input_files import identify_files
from deepen.formats.manifest import MANIFEST, Artifact, InputEntry, StageJob, open_artifact, record_of
from deepen.formats.training.checkpoints import CheckpointInfo, read_checkpoint, verify
from deepen.formats.training.roles import candidates
from deepen.formats.training.scores import SCORES
from deepen.formats.training.scores_beside import (
    FOLDER_BESIDE,
    MeasuredTable,
    ScoresBeside,
    identity_of,
    read_scores_beside,
)
from deepen.progress import say
from deepen.recipe.reading import Loaded, load
from deepen.runs.directory import stage_directory
from deepen.runs.lock import locked
from deepen.train.beside.interrupt import StoppedError
from deepen.workflow.inputs.find import hash_cache, probe_files_of, resolve_base
from deepen.workflow.inputs.pins import Pins, without_network
from deepen.workflow.setup import recipe_in_loop
from deepen.workflow.stages import evaluation_identity

CURRENT = "current.json"
"""What is being scored: tables of anything else that lie where its own will are thrown away."""
_LOOK_EVERY_SECONDS = 0.5
_INPUTS = ("curate", "tokenize", "baseline")

Tell = Callable[[ScoresBeside], None]


def score_beside(run: Path, machine: Path | None, sets: list[str], *, offline: bool, tell: Tell) -> int:
    """Score every checkpoint of ``run`` that may be chosen, as it appears, until training is finished; returns how many
    were scored.

    Each is appended to ``watch/scores.jsonl`` and told. Raises ``RunError`` when ``run`` is no run directory or watched
    by another process, and ``StoppedError`` when it is interrupted.
    """
    if not (run / "recipe.yaml").is_file():
        raise RunError(f"`{run}` is no run directory", hint="give the folder of a run that was started, as runs/NAME")
    with _alone(run), without_network(offline), _interruptible():
        keep_records(run / FOLDER_BESIDE / SCORES, lambda _record: True)  # a line that a kill cut off ends here
        watcher, count = _Watcher(run, machine, sets), 0
        try:
            while not watcher.is_done:
                for scores in watcher.look():
                    tell(scores)
                    count += 1
                if not watcher.is_done:
                    time.sleep(_LOOK_EVERY_SECONDS)
        except KeyboardInterrupt:
            hint = "run the same command again to go on"
            raise StoppedError(f"stopped after {count} checkpoints; all scores are saved", hint=hint) from None
    return count


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Hold the lock of the watcher; raises ``RunError`` when another one has it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run / FOLDER_BESIDE, shares=True))
        except RunError as error:
            hint = "one watcher scores every checkpoint; to use another machine for it, stop that one first"
            raise RunError(f"`{run}` is watched already: {error.message}", hint=hint) from None
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: nothing is lost by stopping at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class _Training:
    """A training that fits the recipe in the run directory, whatever has become of it so far."""

    checkpoints: Path
    fingerprint: str
    is_finished: bool


class _Watcher:
    """Goes through what has appeared, and opens a run anew when another training has begun."""

    def __init__(self, run: Path, machine: Path | None, sets: list[str]) -> None:
        self.is_done = False
        self._run, self._machine, self._sets = run, machine, sets
        self._told: set[str] = set()
        self._scorer: Scorer | None = None
        self._state: tuple[str, str | None, int] | None = None
        self._changed = 0
        self._loaded: Loaded | None = None

    def look(self) -> Iterator[ScoresBeside]:
        """Score what there is now and was not scored yet: what training waits for first, the oldest first."""
        found = self._training()
        if found is None:
            self._tell_once(f"watch: waiting for the training in `{self._run}` to begin")
            return
        scorer = self._scorer_of(found)
        unmeasured = sorted(scorer.unmeasured())
        if unmeasured:
            self._tell_once(f"watch: waiting until the base is measured with {', '.join(unmeasured)}")
            return
        for info in sorted(candidates(found.checkpoints), key=_urgency):
            scores = self._scored(scorer, info)
            if scores is not None:
                yield scores
                return  # look again: there may be another training, or fewer checkpoints
        self.is_done = found.is_finished

    def _scorer_of(self, found: _Training) -> Scorer:
        """The scorer for what there is now: opened anew when the training, the recipe or the baseline is another."""
        loaded, baseline = self._recipe(), _artifact(stage_directory(self._run, "baseline"))
        state = (found.fingerprint, None if baseline is None else baseline.fingerprint, self._changed)
        if self._scorer is None or state != self._state:
            self._scorer, self._state = open_scorer(self._run, loaded), state
        return self._scorer

    def _recipe(self) -> Loaded:
        changed = (self._run / "recipe.yaml").stat().st_mtime_ns
        if self._loaded is None or self._changed != changed:
            self._loaded, self._changed = load(self._run, self._machine, self._sets), changed
        return self._loaded

    def _training(self) -> _Training | None:
        """The training of the present recipe: the one that is being made anew beside an older, or the only one."""
        inputs = {name: _artifact(stage_directory(self._run, name)) for name in _INPUTS}
        for name in ("train.redo", "train"):
            directory = stage_directory(self._run, name)
            record = _record(directory)
            if record is None:
                continue
            if not self._fits(record, inputs):
                self._tell_once(
                    f"watch: `{directory}` was made from something else than the recipe that lies there now"
                )
                continue
            finished = _artifact(directory)
            where = directory if finished is None else finished.path
            return _Training(where / "checkpoints", record["fingerprint"], finished is not None)
        return None

    def _fits(self, record: dict[str, Any], inputs: dict[str, Artifact | None]) -> bool:
        settings = json.loads(json.dumps(evaluation_identity(recipe_in_loop(self._recipe().recipe))))
        return bool(record["config"].get("evaluate") == settings) and all(
            artifact is not None and record["inputs"][name]["fingerprint"] == artifact.core
            for name, artifact in inputs.items()
        )

    def _scored(self, scorer: Scorer, info: CheckpointInfo) -> ScoresBeside | None:
        """The scores of a checkpoint; None when it has some, cannot be read, or is no longer there."""
        try:
            if scorer.knows(info):
                return None
            wrong = verify(info)
            if not wrong:
                return scorer.score(info)
        except (OSError, DamageError) as error:
            wrong = [str(error)]
        except Exception as error:  # a file that is removed while it is read can look like anything
            if (info.path / MANIFEST).is_file():
                raise
            wrong = [str(error)]
        if (info.path / MANIFEST).is_file():
            self._tell_once(f"watch: checkpoint {info.path.name} is passed over: {wrong[0]}")
        return None

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            say(message)


def _urgency(info: CheckpointInfo) -> tuple[bool, int]:
    try:
        return not read_checkpoint(info).awaits_scores, info.step
    except DamageError:
        return True, info.step


def _record(directory: Path) -> dict[str, Any] | None:
    try:
        return record_of(directory)
    except FileNotFoundError:  # it was just finished, or moved
        return None


def _artifact(directory: Path) -> Artifact | None:
    try:
        return open_artifact(directory)
    except RunError:
        return None


@dataclass(frozen=True)
class Scorer:
    """Scores checkpoints of one training."""

    config: EvaluateConfig
    job: StageJob
    """Its ``out`` is ``RUN/watch``."""
    material: Material
    models: Models
    marks: dict[str, str]
    """By probe, what its tables are marked with."""

    def knows(self, info: CheckpointInfo) -> bool:
        """Whether this very checkpoint was scored, with every probe as it is now."""
        known = self._known(info, identity_of(info))
        if known is None:
            return False
        failed = {*known.failed, *known.late_failed}
        return all(label in failed or self._has_table(known, label) for label in self.marks)

    def _known(self, info: CheckpointInfo, identity: str) -> ScoresBeside | None:
        return read_scores_beside(self.job.out).get((info.step, identity))

    def _has_table(self, known: ScoresBeside, label: str) -> bool:
        table = known.tables.get(label)
        return table is not None and table.mark == self.marks[label]

    def unmeasured(self) -> set[str]:
        """Probes that the base was not measured with yet, as they are now."""
        counts = self.job.inputs["baseline"].counts
        known = {label: probe.get("mark") for label, probe in counts["probes"].items()}
        return {
            probe.label
            for probe in self.config.all_probes
            if probe.label not in counts["failed"] and known.get(probe.label) != probe_mark(probe, self.job)
        }

    def score(self, info: CheckpointInfo) -> ScoresBeside | None:
        """Measure a checkpoint with every probe and append its scores; None when it changed meanwhile."""
        identity = identity_of(info)
        self._begin(info, identity)
        subject = self.models.checkpoint(info)
        model = subject.open()
        if identity_of(info) != identity:
            return None
        scores = self._measured(replace(subject, open=lambda: model), identity)
        append_record(self.job.out / SCORES, scores.model_dump(mode="json"), sync=True)
        return scores

    def _begin(self, info: CheckpointInfo, identity: str) -> None:
        """Keep the tables that an earlier start, or an earlier recipe, made of this checkpoint, and no others."""
        current, note = self.job.out / CURRENT, {"step": info.step, "checkpoint": identity, "marks": self.marks}
        if current.is_file() and read_object(current, hint="remove it and start again") == note:
            return
        known = self._known(info, identity)
        for probe in self.config.all_probes:
            if known is not None and self._has_table(known, probe.label):
                path = self.job.out / table_file(probe, info.step)
                if path.is_file() and hash_file(path) == known.tables[probe.label].hash:
                    continue
            for name in (table_file(probe, info.step), readable_file(probe, info.step)):
                (self.job.out / name).unlink(missing_ok=True)
        write_json(current, note)

    def _measured(self, subject: Subject, identity: str) -> ScoresBeside:
        work, tables = Evaluation(self.config, self.job, self.material), dict[str, MeasuredTable]()
        for probe in self.config.all_probes:
            entries = {entry.path: entry for entry in work.measure(probe, [subject])}
            entry = entries.get(table_file(probe, subject.key))
            if entry is not None:
                tables[probe.label] = MeasuredTable(mark=self.marks[probe.label], hash=entry.hash)
        scores = work.compared(subject, probes=self.config.in_loop.all_probes)
        late = work.compared(subject, probes=self.config.late_probes)
        return ScoresBeside(
            **dict(scores), checkpoint=identity, tables=tables, late=late.scores, late_failed=late.failed
        )


def open_scorer(run: Path, loaded: Loaded) -> Scorer:
    """What scores the checkpoints of ``run``, whose ``curate``, ``tokenize`` and ``baseline`` are finished."""
    recipe, out = loaded.recipe, run / FOLDER_BESIDE
    base = resolve_base(recipe.base, Pins(run / "pins.json", offline=True), out)
    inputs = {name: artifact for name in _INPUTS if (artifact := open_artifact(stage_directory(run, name))) is not None}
    raw_inputs = {"base": InputEntry(path=str(base.path or "random weights"), fingerprint=base.fingerprint)}
    raw_inputs |= identify_files(probe_files_of(recipe), hash_cache(out))
    job = StageJob(out=out, fingerprint="", inputs=inputs, raw_inputs=raw_inputs, seed=recipe.seed)
    marks = {probe.label: table_mark(probe_mark(probe, job)) for probe in recipe.evaluate.all_probes}
    material = material_of(inputs["curate"], inputs["tokenize"], base)
    return Scorer(recipe.evaluate, job, material, Models(base, job, loaded.machine.compute.beside_a_training), marks)
