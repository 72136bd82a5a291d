"""The stages: baseline, full evaluation, restarts, damage, and scores during training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepen.evaluate.config import EvaluateConfig, HeldOut
from deepen.evaluate.during_training.in_loop import in_loop_evaluator
from deepen.evaluate.stage import baseline, evaluate
from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact, Manifest, StageJob
from deepen.formats.training.scores import CheckpointScores
from deepen.model.config import ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import load_model
from deepen.parallel.config import Compute

TEXTS = {
    "papers": ["the heart pumps blood", "a fever is a high temperature", "naïve 😀 cells"],
    "web": ["the cat sat on the mat", "once upon a time"],
    "wiki": ["rain falls from clouds", "the dog sat"],
}
CONFIG = EvaluateConfig()
CPU = Compute(device="cpu", threads=1)
Curate = Callable[[dict[str, list[str]]], Artifact]
Train = Callable[[dict[int, float]], Artifact]


class Run:
    """The stages of one run directory."""

    def __init__(self, out: Path, base: ResolvedBase, inputs: dict[str, Artifact]) -> None:
        self.out, self.base, self.inputs = out, base, inputs

    def baseline(self) -> Manifest:
        out = self.out / "evaluate" / "baseline"
        manifest = baseline(CONFIG, StageJob(out, "b", self.inputs), base=self.base, compute=CPU)
        self.inputs = {**self.inputs, "baseline": Artifact(out, manifest)}
        return manifest

    def evaluate(self) -> Manifest:
        return evaluate(CONFIG, StageJob(self.out / "evaluate", "e", self.inputs), base=self.base, compute=CPU)

    def scores(self) -> list[CheckpointScores]:
        records = read_records(self.out / "evaluate" / "scores.jsonl")
        return [CheckpointScores.model_validate(record, strict=False) for record in records]

    def evaluator(self, config: EvaluateConfig = CONFIG) -> Callable[..., Any]:
        return in_loop_evaluator(config, self.inputs, base=self.base, seed=17)


@pytest.fixture
def run(tmp_path: Path, base: ResolvedBase, curated: Curate, tokenized: Artifact, trained: Train) -> Run:
    inputs = {"curate": curated(TEXTS), "tokenize": tokenized, "train": trained({5: 1.0, 10: 1.5})}
    return Run(tmp_path / "run", base, inputs)


def test_baseline_counts_every_document(run: Run) -> None:
    manifest = run.baseline()
    papers = manifest.counts["sources"]["papers"]
    assert [entry.path for entry in manifest.files] == ["held_out.parquet"]
    assert (papers["role"], papers["ability"], papers["documents"], papers["scored"]) == ("domain", "new", 3, 3)
    assert papers["bytes"] == sum(len(text.encode()) for text in TEXTS["papers"])
    assert 0.5 < papers["bits_per_byte"] < 10


def test_a_checkpoint_equal_to_the_base_scores_no_change(run: Run) -> None:
    run.baseline()
    run.evaluate()
    unchanged, changed = run.scores()
    assert (unchanged.step, unchanged.tokens) == (5, 5000)
    assert {score.difference for score in unchanged.scores} == {0.0}
    assert all(score.difference != 0 for score in changed.scores)
    names = [f"{score.probe} {score.ability}" for score in unchanged.scores]
    expected = ["held_out:papers new", "held_out:web kept", "held_out:wiki kept", "held_out new", "held_out kept"]
    assert names == expected


def test_the_manifest_tells_status_and_files(run: Run) -> None:
    run.baseline()
    manifest = run.evaluate()
    assert manifest.counts["budget"] == 0.03 and manifest.counts["damaged"] == {}
    assert manifest.counts["checkpoints"][0] == {"step": 5, "tokens": 5000, "status": "ok"}
    assert [entry.path for entry in manifest.files] == [
        "held_out/step-000005.parquet", "held_out/step-000010.parquet", "scores.jsonl",
    ]  # fmt: skip


def test_an_interrupted_evaluation_goes_on_and_ends_in_the_same_bytes(run: Run) -> None:
    run.baseline()
    files = [run.out / "evaluate" / entry.path for entry in run.evaluate().files]
    before = [file.read_bytes() for file in files]
    kept_time = files[0].stat().st_mtime_ns
    for file in (files[1], files[2], run.out / "evaluate" / "manifest.json"):
        file.unlink()
    files[1].with_name("step-000010.parquet.tmp").write_bytes(b"half a file")
    run.evaluate()
    assert [file.read_bytes() for file in files] == before
    assert files[0].stat().st_mtime_ns == kept_time


def test_a_damaged_checkpoint_is_passed_over_and_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run.inputs["train"].path / "checkpoints" / "step-000010" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    run.baseline()
    manifest = run.evaluate()
    assert [one.step for one in run.scores()] == [5]
    assert list(manifest.counts["damaged"]) == ["step-000010"]
    assert "step-000010 is passed over" in capsys.readouterr().err


def test_a_diverged_checkpoint_has_no_scores_and_says_so(
    run: Run, trained: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run.inputs = {**run.inputs, "train": trained({20: float("nan")})}
    run.baseline()
    manifest = run.evaluate()
    assert run.scores()[-1].scores == ()
    assert manifest.counts["checkpoints"][-1]["status"] == "not finite"
    assert "documents of `web` have no finite likelihood" in capsys.readouterr().err


def test_nothing_held_out_at_all_is_said_and_no_crash(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (run.inputs["curate"].path / "held_out").iterdir():
        file.unlink()
    run.baseline()
    run.evaluate()
    assert [one.scores for one in run.scores()] == [(), ()]
    assert "no held-out documents can be scored" in capsys.readouterr().err
    assert run.evaluator()(LossModel(load_model(run.base, vocabulary_size=300, seed=17)), 1, 10) == []


def test_without_kept_documents_forgetting_is_not_measured(run: Run, curated: Curate, tmp_path: Path) -> None:
    (run.inputs["curate"].path / "held_out" / "web.parquet").unlink()
    run.inputs = {**run.inputs, "curate": curated({"papers": TEXTS["papers"], "web": []})}
    assert run.baseline().counts["sources"]["web"]["bits_per_byte"] is None
    assert run.evaluate().counts["checkpoints"][0]["status"] == "not measured"
    assert run.scores()[0].of("held_out", "kept") is None


def test_scores_during_training_equal_the_full_evaluation_on_the_same_documents(run: Run) -> None:
    run.baseline()
    run.evaluate()
    model = LossModel(load_model(run.base, vocabulary_size=300, seed=17))
    scores = run.evaluator()(model, 5, 5000)
    values = [(score.probe, score.value, score.difference) for score in run.scores()[0].scores]
    assert [(score.probe, score.value, score.difference) for score in scores] == values
    assert model.training


def test_the_subset_is_the_same_at_every_call_and_restart(run: Run) -> None:
    run.baseline()
    config = EvaluateConfig(probes=(HeldOut(in_loop_tokens=1),))
    model = LossModel(load_model(run.base, vocabulary_size=300, seed=17))
    evaluator = run.evaluator(config)
    first = evaluator(model, 1, 10)
    assert [score.items for score in first] == [1, 1, 1, 1, 2]
    assert evaluator(model, 2, 20) == first == run.evaluator(config)(model, 3, 30)
