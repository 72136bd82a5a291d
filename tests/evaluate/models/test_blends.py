from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deepen.evaluate.config import EvaluateConfig
from deepen.evaluate.documents.likelihoods import read_likelihoods
from deepen.evaluate.models.blends import Blends, half_of, planned, problems, too_few
from deepen.evaluate.stage import baseline, evaluate
from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact, StageJob
from deepen.formats.training.scores import CheckpointScores, blend_title
from deepen.model.config import ResolvedBase
from deepen.parallel.config import Compute
from tests.evaluate.test_stage import CPU, TEXTS

MANY = {name: [f"{text} {number}" for text in texts for number in range(6)] for name, texts in TEXTS.items()}


def read(path: Path) -> list[CheckpointScores]:
    return [CheckpointScores.model_validate(record, strict=False) for record in read_records(path)]


def test_what_is_planned() -> None:
    found = dict(planned(Blends(average=3, interpolate=5), [10, 20, 30, 40]))
    assert list(found) == ["average-of-3", "interpolation-0.250", "interpolation-0.500", "interpolation-0.750"]
    assert blend_title(40, found["average-of-3"]) == "mean of steps 20, 30, 40"
    assert blend_title(40, found["interpolation-0.250"]) == "0.25 x step 40 + 0.75 x base"
    assert blend_title(40, ()) == "step 40"
    assert dict(planned(Blends(average=3, interpolate=11), [])) == {}
    assert list(dict(planned(Blends(average=3), [10]))) == [], "one checkpoint has no average"
    assert not Blends().any
    many = [name for name, _ in planned(Blends(interpolate=101), [10])]
    assert len(set(many)) == len(many) == 99, "each has files of its own"


def test_what_makes_nothing_or_less_than_was_asked_is_told() -> None:
    assert [one.path for one in problems(Blends(average=1, interpolate=2))] == [
        "evaluate.blends.average", "evaluate.blends.interpolate"
    ]  # fmt: skip
    assert list(problems(Blends(average=2, interpolate=3))) == list(problems(Blends())) == []
    assert too_few(Blends(average=3), 3) is None and too_few(Blends(), 0) is None
    assert "the average is one of 2" in str(too_few(Blends(average=3), 2))
    assert "there is no average" in str(too_few(Blends(average=3), 1))


@pytest.fixture
def run(
    tmp_path: Path,
    base: ResolvedBase,
    curated: Callable[[dict[str, list[str]]], Artifact],
    tokenized: Artifact,
    trained: Callable[[dict[int, float]], Artifact],
) -> Path:
    """Checkpoints 5 (the base itself) and 10 (its weights times 1.5), evaluated with blends."""
    config = EvaluateConfig(blends=Blends(average=2, interpolate=3))
    inputs = {"curate": curated(MANY), "tokenize": tokenized, "train": trained({5: 1.0, 10: 1.5})}
    manifest = baseline(config, StageJob(tmp_path / "baseline", "b", inputs), base=base, compute=CPU)
    inputs["baseline"] = Artifact(tmp_path / "baseline", manifest)
    evaluate(config, StageJob(tmp_path / "evaluate", "e", inputs), base=base, compute=Compute(device="cpu", threads=1))
    return tmp_path / "evaluate"


def test_blends_are_scored_like_checkpoints(run: Path) -> None:
    names = [blend_title(one.step, one.blend) for one in read(run / "candidates.jsonl")]
    assert names == ["step 5", "step 10", "mean of steps 5, 10", "0.5 x step 10 + 0.5 x base"]
    average, mixed = (
        read_likelihoods(run / f"held_out/{name}.parquet") for name in ("average-of-2", "interpolation-0.500")
    )
    # Step 5 is the base, so both blends are the same network: each weight times 1.25.
    assert average["nll"].to_pylist() == pytest.approx(mixed["nll"].to_pylist(), rel=1e-5)
    ends = [read_likelihoods(run / f"held_out/step-{step:06d}.parquet")["nll"].to_pylist() for step in (5, 10)]
    assert all(average["nll"].to_pylist() != end for end in ends)
    assert [one.step for one in read(run / "scores.jsonl")] == [5, 10], "checkpoints alone stay what they were"


def test_the_halves_share_no_document_and_are_all(run: Path) -> None:
    table = read_likelihoods(run / "held_out/step-000010.parquet")
    halves = [set(half_of(table, half)["id"].to_pylist()) for half in (0, 1)]
    assert halves[0] and halves[1] and not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(table["id"].to_pylist())
    choose, report, everything = (
        read(run / name)[1].of("held_out:papers", "new")
        for name in ("candidates_choose.jsonl", "candidates_report.jsonl", "candidates.jsonl")
    )
    assert choose and report and everything
    assert choose.items + report.items == everything.items
    assert choose.value != report.value
