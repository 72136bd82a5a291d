"""Probes in the stages: faults, baselines that are taken over, frozen subsets, the overhead budget, samples."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from deepen.evaluate.compare.summary_table import summary_table
from deepen.evaluate.config import EvaluateConfig, problems
from deepen.evaluate.during_training import in_loop
from deepen.evaluate.during_training.guard import Failure, attempt
from deepen.evaluate.during_training.in_loop import Pace, in_loop_evaluator
from deepen.evaluate.items.sampling import _beginning, boilerplate, repetition
from deepen.evaluate.items.tables import Outcome, table_of
from deepen.evaluate.probes.held_out import HeldOut
from deepen.evaluate.probes.item_probe import ItemProbe
from deepen.evaluate.stage import baseline, evaluate
from deepen.formats.files.atomic import entry_of
from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact, InputEntry, Manifest, StageJob
from deepen.formats.training.scores import CheckpointScores
from deepen.model.config import ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import load_model
from deepen.parallel.config import Compute
from tests.evaluate.conftest import LIMIT_SECONDS, hang

TEXTS = {
    "papers": ["the heart pumps blood", "a fever is a high temperature", "naïve 😀 cells"],
    "web": ["the cat sat on the mat", "once upon a time"],
}
CPU = Compute(device="cpu", threads=1)
ROWS = [{"question": f"the cat {n}", "choices": ["sat", "fever", "mat"], "answer": n % 3} for n in range(30)]


WORK = time.sleep
"""What a slow probe spends its time with."""


class Misbehaving(ItemProbe):
    """A probe that raises, hangs or is slow."""

    use: str = "tests.evaluate.probes.test_probes:Misbehaving"
    name: str | None = "mine"
    how: str = "raise"
    after: int = 0
    """Measurements that go well before."""
    items: int = 1

    def prepare(self, material: Any) -> Any:
        """See ``Probe``."""
        ids = [str(n) for n in range(self.items) if material.only is None or str(n) in material.only]
        if self.how == "slow":
            WORK(0.001 * len(ids))

        def measure(model: LossModel, what: str | None) -> pa.Table:
            if self.how == "slow":
                WORK(0.002 * len(ids))
            elif what is not None and not what.startswith("baseline"):
                if self.how == "raise":
                    raise ZeroDivisionError("no items were seen")
                if self.how == "exit":
                    raise SystemExit(7)
                if self.how == "nan":
                    return table_of(Outcome(name, "x", name, value=float("nan")) for name in ids)
                if self.how == "no table":
                    return 3
                if self.how == "other items":
                    return table_of([Outcome("other", "mine", "other", value=1.0)])
                hang()
            return table_of(Outcome(name, "x", name, value=1.0) for name in ids)

        return measure


class Run:
    """The stages of one run directory."""

    def __init__(self, out: Path, base: ResolvedBase, inputs: dict[str, Artifact]) -> None:
        self.out, self.base, self.inputs = out, base, inputs
        self.raw: dict[str, InputEntry] = {}

    def baseline(self, config: EvaluateConfig, out: str = "baseline", previous: Artifact | None = None) -> Manifest:
        job = StageJob(self.out / out, out, self.inputs, self.raw, previous=previous)
        manifest = baseline(config, job, base=self.base, compute=CPU)
        self.inputs = {**self.inputs, "baseline": Artifact(job.out, manifest)}
        return manifest

    def evaluate(self, config: EvaluateConfig) -> Manifest:
        return evaluate(config, StageJob(self.out / "evaluate", "e", self.inputs), base=self.base, compute=CPU)

    def scores(self) -> list[CheckpointScores]:
        records = read_records(self.out / "evaluate" / "scores.jsonl")
        return [CheckpointScores.model_validate(record, strict=False) for record in records]

    def evaluator(self, config: EvaluateConfig, pace: Pace = Pace(None)) -> Callable[..., Any]:  # noqa: B008
        return in_loop_evaluator(config, self.inputs, base=self.base, seed=17, out=self.out / "train", pace=pace)


@pytest.fixture
def run(tmp_path: Path, base: ResolvedBase, curated: Any, tokenized: Artifact, trained: Any) -> Run:
    inputs = {"curate": curated(TEXTS), "tokenize": tokenized, "train": trained({5: 1.0, 10: 1.5})}
    return Run(tmp_path / "run", base, inputs)


@pytest.fixture
def fresh(base: ResolvedBase) -> LossModel:
    return LossModel(load_model(base, vocabulary_size=300, seed=17))


def exam(tmp_path: Path, rows: list[Any] = ROWS, **settings: Any) -> EvaluateConfig:
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    probe = {"use": "multiple_choice", "name": "exam", "path": str(path), **settings}
    return EvaluateConfig.model_validate({"probes": ["held_out", probe]})


def with_probe(probe: ItemProbe) -> EvaluateConfig:
    return EvaluateConfig(probes=(HeldOut(), probe))


def test_a_run_has_scores_of_every_probe(run: Run, tmp_path: Path) -> None:
    config = exam(tmp_path, ability="kept")
    counts = run.baseline(config).counts
    assert counts["probes"]["exam"]["items"] == 30 and counts["failed"] == {}
    manifest = run.evaluate(config)
    unchanged, _ = run.scores()
    score = unchanged.of("exam", "kept")
    assert score is not None and (score.difference, score.items, score.unit) == (0.0, 30, "accuracy")
    assert "exam/step-000005.parquet" in [entry.path for entry in manifest.files]


def test_the_status_is_the_worst_of_the_kept_abilities_and_each_table_has_its_own(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = Misbehaving(how="slow", items=5, ability="kept", name="mine")
    config = with_probe(probe)
    manifest = run.baseline(config)
    path = run.out / "baseline" / "mine.parquet"
    assert run.evaluate(config).counts["checkpoints"][0]["status"] == "ok"
    import pyarrow.parquet as pq

    table = table_of(Outcome(str(n), "x", str(n), value=2.0) for n in range(5))
    pq.write_table(table, path)
    files = tuple(entry_of(path, path.parent) if entry.path == path.name else entry for entry in manifest.files)
    run.inputs["baseline"] = Artifact(path.parent, manifest.model_copy(update={"files": files}))
    for name in ("manifest.json", "scores.jsonl"):
        (run.out / "evaluate" / name).unlink()
    capsys.readouterr()
    assert run.evaluate(config).counts["checkpoints"][0]["status"] == "breach"
    text, mine = "".join(capsys.readouterr()).partition("held_out:\n")[2].split("mine:\n")
    assert "breach" not in text and " ok" in text
    assert "breach" in mine.splitlines()[1]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "ZeroDivisionError: no items"), ("hang", "longer than its limit"), ("exit", "SystemExit: 7"),
        ("no table", "returned no table"), ("other items", "not those that the base was measured on"),
    ],
)  # fmt: skip
def test_a_probe_that_raises_or_hangs_is_marked_and_the_run_goes_on(run: Run, how: str, reason: str) -> None:
    probe = Misbehaving.model_validate({"how": how, "name": "bad", "time_limit": f"{LIMIT_SECONDS}s"})
    config = with_probe(probe)
    run.baseline(config)
    manifest = run.evaluate(config)
    assert set(manifest.counts["failed"]["bad"]) == {"5", "10"}
    assert reason in manifest.counts["failed"]["bad"]["5"]
    first = run.scores()[0]
    assert reason in first.failed["bad"] and first.of("held_out", "new") is not None


def test_a_kept_probe_without_a_number_is_no_ok(run: Run) -> None:
    config = with_probe(Misbehaving.model_validate({"how": "nan", "name": "bad", "ability": "kept"}))
    run.baseline(config)
    assert [one["status"] for one in run.evaluate(config).counts["checkpoints"]] == ["not finite", "not finite"]


@pytest.mark.parametrize("rows", [[], [{"question": "?"}]])
def test_a_probe_without_items_fails_at_the_baseline_already(
    run: Run, tmp_path: Path, rows: list[Any], fresh: LossModel, capsys: pytest.CaptureFixture[str]
) -> None:
    config = exam(tmp_path, rows)
    assert "no item of" in run.baseline(config).counts["failed"]["exam"]
    said = capsys.readouterr().err
    assert "exam: FAILED" in said and "`deepen rm RUN/baseline`" in said
    assert "no item of" in run.evaluate(config).counts["failed"]["exam"]["base"]
    assert {score.probe.split(":")[0] for score in run.evaluator(config)(fresh, 1, 10)} == {"held_out"}


def test_failures_in_the_loop_are_written_down_and_the_others_are_scored(run: Run, fresh: LossModel) -> None:
    class Fails(Misbehaving):
        """Raises in the loop."""

        def prepare(self, material: Any) -> Any:
            """See ``Probe``."""
            if material.only is not None:
                raise OSError("the disk is gone")
            return super().prepare(material)

    config = with_probe(Fails(name="bad", items=3))
    run.baseline(config)
    scores = run.evaluator(config)(fresh, 7, 70)
    assert {score.probe.split(":")[0] for score in scores} == {"held_out"}
    (record,) = read_records(run.out / "train" / "probes" / "failed.jsonl")
    assert record == {"step": 7, "probe": "bad", "reason": "OSError: the disk is gone"}


@pytest.mark.parametrize("where", ["subset", "compare", "measure"])
def test_whatever_a_probe_does_in_the_loop_training_goes_on(run: Run, fresh: LossModel, where: str) -> None:
    class Fails(Misbehaving):
        """Raises in one of its methods."""

        def prepare(self, material: Any) -> Any:
            """See ``Probe``."""
            if material.only is not None and where == "measure":
                return lambda model, what: None
            return super().prepare(material)

        def subset(self, material: Any, baseline: pa.Table) -> Any:
            """See ``Probe``."""
            return super().subset(material, baseline if where != "subset" else None)

        def compare(self, *tables: Any, **how: Any) -> Any:
            """See ``Probe``."""
            return super().compare(*tables, **how) if where != "compare" else 1 / 0

    config = with_probe(Fails(name="bad", items=3))
    run.baseline(config)
    for evaluator in (run.evaluator(config), run.evaluator(config)):  # the second one is a restart
        scores = evaluator(fresh, 7, 70)
        assert {score.probe.split(":")[0] for score in scores} == {"held_out"}
    first, *_ = read_records(run.out / "train" / "probes" / "failed.jsonl")
    assert (first["step"], first["probe"]) == (7, "bad")


def test_a_probe_that_cannot_compare_fails_alone(run: Run, fresh: LossModel) -> None:
    class Incomparable(Misbehaving):
        """Measures well, and raises when results are held against each other."""

        def compare(self, *tables: Any, **more: Any) -> Any:
            """See ``Probe``."""
            raise KeyError("score")

    config = with_probe(Incomparable(name="bad", how="slow", items=3))
    run.baseline(config)
    assert {score.probe.split(":")[0] for score in run.evaluator(config)(fresh, 7, 70)} == {"held_out"}
    (record,) = read_records(run.out / "train" / "probes" / "failed.jsonl")
    assert record["reason"] == "KeyError: 'score'"
    assert run.evaluate(config).counts["failed"] == {"bad": dict.fromkeys(("5", "10"), "KeyError: 'score'")}
    assert run.scores()[0].failed == {"bad": "KeyError: 'score'"} and run.scores()[0].of("held_out", "new")


def test_a_probe_that_swallows_its_limit_is_ended_the_next_time() -> None:
    swallowed = []

    def stubborn() -> None:
        for _ in range(2):
            try:
                hang()
            except BaseException:
                if swallowed:
                    raise
                swallowed.append(1)

    assert isinstance(attempt("x", LIMIT_SECONDS, stubborn), Failure) and swallowed


def test_a_limit_ends_waiting_and_leaves_no_alarm() -> None:
    before = signal.getsignal(signal.SIGALRM)
    assert isinstance(attempt("x", LIMIT_SECONDS, hang), Failure)
    assert attempt("x", LIMIT_SECONDS, lambda: 5) == 5
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0) and signal.getsignal(signal.SIGALRM) == before


def test_an_unchanged_probe_is_taken_over_when_another_one_changed(run: Run, tmp_path: Path) -> None:
    config = exam(tmp_path)
    run.raw = {"probe_files:exam": InputEntry(path="exam.jsonl", fingerprint="one")}
    first = run.baseline(config)
    before = run.inputs["baseline"]
    run.raw = {"probe_files:exam": InputEntry(path="exam.jsonl", fingerprint="two")}
    config = exam(tmp_path, ROWS[:20])
    second = run.baseline(config, "again", before)
    marks = [
        (one.counts["probes"]["held_out"]["mark"], one.counts["probes"]["exam"]["mark"]) for one in (first, second)
    ]
    assert marks[0][0] == marks[1][0] and marks[0][1] != marks[1][1]
    old, new = run.out / "baseline", run.out / "again"
    assert (new / "held_out.parquet").samefile(old / "held_out.parquet")
    assert not (new / "exam.parquet").samefile(old / "exam.parquet")
    assert second.counts["probes"]["exam"]["items"] == 20
    table = (old / "held_out.parquet").read_bytes()
    (old / "held_out.parquet").write_bytes(table[:-1] + bytes([table[-1] ^ 1]))
    run.baseline(config, "third", Artifact(old, first))
    assert not (run.out / "third" / "held_out.parquet").samefile(old / "held_out.parquet")
    assert (run.out / "third" / "held_out.parquet").read_bytes() == table


def test_the_subset_is_written_down_and_stratified(run: Run, tmp_path: Path, fresh: LossModel) -> None:
    rows = [{**row, "task": "large" if n < 20 else "small"} for n, row in enumerate(ROWS)]
    config = exam(tmp_path, rows, by="task", in_loop_items=6)
    run.baseline(config)
    scores = {score.probe: score.items for score in run.evaluator(config)(fresh, 1, 10)}
    assert (scores["exam:large"], scores["exam:small"], scores["exam"]) == (4, 2, 6)
    written = json.loads((run.out / "train" / "probes" / "subsets.json").read_text())["ids"]
    assert {name: len(ids) for name, ids in written["exam"].items()} == {"large": 4, "small": 2}
    again = {score.probe: score.items for score in run.evaluator(config.model_copy())(fresh, 2, 20)}
    assert again == scores


def test_the_overhead_budget_sizes_the_subsets_once(
    run: Run, fresh: LossModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]  # on which nothing takes time but the slow probe
    monkeypatch.setattr(in_loop, "time", SimpleNamespace(monotonic=lambda: clock[0], perf_counter=lambda: clock[0]))
    monkeypatch.setitem(globals(), "WORK", lambda seconds: clock.append(clock.pop() + seconds))
    slow = Misbehaving(how="slow", items=400, in_loop_items=400)
    config = with_probe(slow).model_copy(update={"overhead": 0.1})
    run.baseline(config)
    metrics = run.out / "train" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("".join(json.dumps({"step": n, "elapsed_seconds": 0.1 * n}) + "\n" for n in range(1, 11)))
    pace = Pace(10, total_steps=105)  # 1 s of training between ten measurements, so that 0.1 s may be spent on each
    evaluator = run.evaluator(config, pace)
    sizes = {score.probe: score.items for score in evaluator(fresh, 10, 100)}
    written = json.loads((run.out / "train" / "probes" / "subsets.json").read_text())
    assert 8 <= sizes["mine"] < 200
    sizing = written["sizing"]
    assert sizing["allowed_seconds"] == pytest.approx(0.1) and sizing["measurements"] == 10
    whole = sizing["expected_once_seconds"] + 10 * sizing["expected_seconds"]
    assert whole == pytest.approx(400 * (0.001 + 10 * 0.002))
    assert sizing["sizing_seconds"] == pytest.approx(in_loop._TIMED_ITEMS * (0.001 + 2 * 0.002))
    planned = 0.9 * 10 * 0.1  # a tenth of the budget is kept back
    assert sizing["share"] == pytest.approx((planned - sizing["sizing_seconds"]) / whole) and sizing["share"] < 0.5
    assert {score.probe: score.items for score in run.evaluator(config, Pace(10_000))(fresh, 20, 200)} == sizes
    times = list(read_records(run.out / "train" / "probes" / "times.jsonl"))
    assert [one["step"] for one in times] == [10, 20]
    assert times[1]["seconds"] == pytest.approx((0.001 + 0.002) * sizes["mine"])
    run.inputs = {**run.inputs, "train": replace(run.inputs["train"])}


def test_what_measuring_took_is_reported(run: Run, fresh: LossModel) -> None:
    config = EvaluateConfig()
    run.baseline(config)
    evaluator = in_loop_evaluator(
        config, run.inputs, base=run.base, seed=17, out=run.inputs["train"].path, pace=Pace(10)
    )
    evaluator(fresh, 5, 50)
    time.sleep(0.05)
    evaluator(fresh, 10, 100)
    counts = run.evaluate(config).counts["in_loop"]
    assert counts["measurements"] == 2 and counts["seconds"] > 0 and counts["share_of_training"] > 0


def test_samples_are_kept_beside_the_bases(run: Run, fresh: LossModel) -> None:
    config = EvaluateConfig.model_validate({"probes": ["held_out", {"use": "samples", "max_tokens": 12}]})
    manifest = run.baseline(config)
    assert "samples.md" in [entry.path for entry in manifest.files]
    assert run.evaluate(config).counts["failed"] == {}
    text = (run.out / "evaluate" / "samples" / "step-000010.md").read_text()
    assert "## papers-1" in text and "## general-1" in text
    assert text.count("\nModel (repetition ") == text.count("\nBase (repetition ") == 6
    names = {(score.probe, score.ability) for score in run.scores()[1].scores}
    assert {("samples:repetition", "new"), ("samples:boilerplate", "kept")} <= names
    assert not any(probe == "samples" for probe, _ in names)
    run.evaluator(config)(fresh, 3, 30)
    assert (run.out / "train" / "probes" / "samples" / "step-000003.md").is_file()


def test_a_probe_that_fails_everywhere_is_told_once() -> None:
    def scores(step: int, failed: dict[str, str]) -> CheckpointScores:
        return CheckpointScores(step=step, tokens=step, scores=(), failed=failed)

    scored = [scores(step, {"exam": "torn"} | ({"hub": "no answer"} if step > 1 else {})) for step in (1, 2, 3)]
    said = summary_table(scored, [{"status": "ok"}] * 3, 0.03).splitlines()[-2:]
    assert said == ["probe `exam` failed at every step: torn", "probe `hub` failed at steps 2, 3: no answer"]


def test_rates_of_texts() -> None:
    assert repetition("a b c d e f g h") == 0.0 == repetition("a b")
    assert repetition("a b c d " * 3) == pytest.approx(1 - 4 / 9)
    assert boilerplate("Blood flows.\nAll rights reserved.\n\nSubscribe to our newsletter!") == pytest.approx(2 / 3)
    assert boilerplate("") == 0.0
    assert repetition("的" * 10) == pytest.approx(6 / 7) and repetition("春眠不觉晓 处处闻啼鸟") == 0.0
    assert repetition("，。" * 8) == pytest.approx(11 / 13)


def test_prompts_are_the_first_words_in_any_script() -> None:
    assert _beginning("one  two three four five six seven eight nine") == "one  two three four five six seven eight"
    assert _beginning("春眠不觉晓，处处闻啼鸟。夜来风雨声") == "春眠不觉晓，处处"


def test_names_and_files_are_checked_before_any_work(tmp_path: Path) -> None:
    config = exam(tmp_path)
    twice = config.model_copy(update={"probes": (*config.probes, config.probes[1])})
    found = problems(twice, total_steps=100, tokens_per_step=10)
    assert [(one.path, one.value) for one in found] == [("evaluate.probes", "exam")]
    (tmp_path / "exam.jsonl").unlink()
    assert [one.path for one in problems(config, total_steps=100, tokens_per_step=10)] == ["evaluate.probes[1].path"]
    with pytest.raises(ValueError, match="30min"):
        EvaluateConfig.model_validate({"probes": [{"use": "held_out", "time_limit": "5 steps"}]})
    for nothing_or_too_much in ("0s", "0.0 h", "400d", "1e9 h"):
        with pytest.raises(ValueError, match="time_limit"):
            EvaluateConfig.model_validate({"probes": [{"use": "held_out", "time_limit": nothing_or_too_much}]})


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"probes": []}, "evaluate.probes"),
        ({"every": "0%"}, "evaluate.every"),
        ({"probes": [{"use": "held_out", "name": "short"}, {"use": "held_out", "name": "long"}]}, "evaluate.probes"),
        ({"probes": ["arithmetic", {"use": "instructions", "name": "held_out"}]}, "evaluate.probes[1].name"),
        ({"every": "0 steps or 5min"}, "evaluate.every"),
        ({"probes": [{"use": "multiple_choice", "path": "FILE", "options": ["yes"]}]}, "evaluate.probes[0].options"),
        ({"probes": [{"use": "multiple_choice", "path": "FILE", "options": ["a", "a"]}]}, "evaluate.probes[0].options"),
        ({"probes": [{"use": "cloze", "path": "FILE", "choices": ["one"]}]}, "evaluate.probes[0].choices"),
        ({"probes": [{"use": "multiple_choice", "path": "FILE", "prompt": "{"}]}, "evaluate.probes[0].prompt"),
    ],
)
def test_what_cannot_work_is_told_before_any_work(tmp_path: Path, settings: dict[str, Any], key: str) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    text = json.dumps(settings).replace("FILE", str(tmp_path / "q.jsonl"))
    found = problems(EvaluateConfig.model_validate_json(text), total_steps=100, tokens_per_step=10)
    assert [problem.path for problem in found] == [key]


def test_an_answer_needs_a_stop_that_is_something(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"):
        EvaluateConfig.model_validate({"probes": [{"use": "facts", "path": "x", "stop": [""]}]})


def test_a_missing_harness_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("deepen.evaluate.probes.harness.find_spec", lambda name: None)
    settings = {"use": "lm_eval", "tasks": ["hellaswag", "missing.yaml"]}
    config = EvaluateConfig.model_validate({"probes": ["held_out", settings]})
    found = problems(config, total_steps=100, tokens_per_step=10)
    assert [one.path for one in found] == ["evaluate.probes[1]", "evaluate.probes[1].tasks"]
    assert "deepen[lm-eval]" in found[0].remedy
