from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepen.formats.manifest import Artifact, StageJob
from deepen.formats.tokens.extension import NEW_ROWS, Extension, NewToken
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.new_rows import write_new_rows
from deepen.model.weights.load import load_model, load_run_model, unique_weights
from deepen.train.config import TrainConfig, problems
from deepen.train.schedule.new_rows import NewRowsFirst
from deepen.train.schedule.schedules import Shape
from deepen.train.starting.resolved import prepare_continuation, read_resolved
from tests.train.conftest import LENGTH, ROWS, VOCABULARY, make_inputs, read_metrics, read_tensors

OLD = 80
EXTENSION = Extension(
    base_vocabulary_size=OLD,
    vocabulary_size=VOCABULARY,
    tokens=tuple(
        NewToken(id=number, token=str(number), text=None, old_ids=(number - OLD, 3)) for number in range(80, 97)
    ),
)
FIRST = {"new_rows_first": "3 steps", "save": {"every": "1 steps", "keep": 99}}


@pytest.fixture(params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> ResolvedBase:
    """A pretrained base with 80 ids."""
    init = RandomInit(init="random", hidden_size=16, layers=2, heads=2, max_length=32, tied=request.param == "tied")
    load_model(ResolvedBase("r", None, init, ""), vocabulary_size=OLD, seed=3).save_pretrained(tmp_path / "base")
    return ResolvedBase("here", tmp_path / "base", None, "base")


@pytest.fixture
def inputs(base: ResolvedBase, tmp_path: Path) -> dict[str, Artifact]:
    """The tiny corpus, with a vocabulary that grew from 80 to 97 ids."""
    found = make_inputs(tmp_path / "data")
    assert base.path is not None
    write_new_rows(base.path, found["tokenize"].path, EXTENSION)
    return found


@pytest.fixture
def job(inputs: dict[str, Artifact], tmp_path: Path) -> Callable[..., StageJob]:
    """A train job over those inputs."""
    return lambda name="train", fingerprint="run": StageJob(tmp_path / name, fingerprint, inputs)


def weights_at(directory: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(directory / f"checkpoints/step-{step:06d}/model.safetensors")


def test_at_first_nothing_moves_but_the_new_rows(
    run: Any, settings: Any, inputs: Any, base: Any, tmp_path: Path
) -> None:
    run(settings(**FIRST, weight_decay=0.5))
    before = unique_weights(load_run_model(base, inputs["tokenize"], seed=17))
    after, later = weights_at(tmp_path / "train", 3), weights_at(tmp_path / "train", 8)
    tables = {name for name, value in before.items() if len(value) == 128}
    assert len(tables) == 1 + ("lm_head.weight" in before)
    for name, value in before.items():
        if name in tables:
            assert torch.equal(after[name][:OLD], value[:OLD]) and torch.equal(after[name][97:], value[97:])
            assert (after[name][OLD:97] != value[OLD:97]).any(1).sum() > 10, "rows of tokens that were seen"
        else:
            assert torch.equal(after[name], value), name
        assert not torch.equal(later[name], value), "in the end everything moved"


@pytest.mark.parametrize("crash_at", [2, 3, 4])
def test_a_kill_before_at_and_after_the_change_leaves_no_trace(
    run: Any, settings: Any, tmp_path: Path, crash_at: int
) -> None:
    config = settings(**FIRST)
    run(config, "whole", crash_at=99)
    run(config, "torn", crash_at=crash_at)
    run(config, "torn", crash_at=99)
    for step in (3, 4, 8):
        assert read_tensors(tmp_path / "torn", step) == read_tensors(tmp_path / "whole", step)
    assert read_metrics(tmp_path / "torn") == read_metrics(tmp_path / "whole")


def test_no_moment_of_an_old_row_is_touched(run: Any, settings: Any, tmp_path: Path) -> None:
    run(settings(**FIRST))
    stored = load_file(tmp_path / "train/checkpoints/step-000003/optimizer.safetensors")
    moments = {name: value for name, value in stored.items() if name.startswith("exp_avg")}
    assert moments and all(len(value) == 128 for value in moments.values()), "the tables of tokens and nothing else"
    for value in moments.values():
        assert not value[:OLD].any() and not value[VOCABULARY:].any() and value[OLD:VOCABULARY].any()


def test_moments_of_the_first_time_are_forgotten(run: Any, settings: Any, tmp_path: Path) -> None:
    run(settings(**FIRST))
    optimizer = {step: read_tensors(tmp_path / "train", step) for step in (3, 4)}
    names = {
        step: {name.rpartition("step/")[2] for name in found if ":step/" in name} for step, found in optimizer.items()
    }
    assert names[3] < names[4]
    assert {value for name, value in optimizer[4].items() if ":step/" in name} == {torch.tensor(1.0).numpy().tobytes()}


def test_the_rate_is_multiplied_then_warmed_up_again(run: Any, settings: Any, tmp_path: Path) -> None:
    schedule = {"use": "wsd", "warmup": "2 steps", "decay": "1 steps"}
    run(settings(new_rows_first="3 steps", new_rows_learning_rate=4, schedule=schedule))
    rates = [record["learning_rate"] / 1e-2 for record in read_metrics(tmp_path / "train")]
    assert rates == pytest.approx([2, 4, 4, 0.5, 1, 1, 1, 1])


def test_without_that_time_the_factor_is_one() -> None:
    assert [NewRowsFirst(0, 5.0).factor(step, Shape(8, 2, 1)) for step in (0, 1, 7)] == [1, 1, 1]


def test_a_vocabulary_that_did_not_grow_is_said_and_trained_as_ever(
    run: Any, settings: Any, inputs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inputs["tokenize"].path / NEW_ROWS).unlink()
    random = ResolvedBase("r", None, RandomInit(init="random", hidden_size=16, layers=1, heads=2, max_length=32), "")
    manifest = run(settings(new_rows_first="3 steps"), base=random)
    assert manifest.counts["new_rows_steps"] == 0
    assert "did not grow" in capsys.readouterr().err


def test_a_continuation_keeps_the_steps_of_that_time(run: Any, settings: Any, tmp_path: Path) -> None:
    changes = {"new_rows_first": "25%", "schedule": {"use": "wsd", "warmup": "1 steps", "decay": "25%"}}
    short, long = settings(8, **changes), settings(16, **changes)
    run(short)
    assert prepare_continuation(tmp_path / "train", short, long) == 6
    resolved = read_resolved(tmp_path / "train")
    assert resolved is not None and resolved.new_rows_steps == 2
    manifest = run(long)
    assert manifest.counts["steps"] == 16


@pytest.mark.parametrize(
    ("first", "message"), [("10min", "may not depend on time"), ("100%", "do not fit"), ("8 steps", "do not fit")]
)
def test_a_time_that_leaves_nothing_is_refused(first: str, message: str) -> None:
    config = TrainConfig.model_validate(
        {"tokens": 8 * ROWS * LENGTH, "batch_tokens": ROWS * LENGTH, "learning_rate": 1e-2, "new_rows_first": first}
    )
    (problem,) = problems(config, sequence_length=LENGTH, base_name="x")
    assert problem.path == "train.new_rows_first" and message in problem.message


@pytest.mark.parametrize("crash_at", [2, 3, 6])
def test_beside_adapters_new_rows_move_first_then_adapters_and_tables(
    run: Any, settings: Any, inputs: Any, base: Any, tmp_path: Path, crash_at: int
) -> None:
    config = settings(**FIRST, weight_decay=0.5, method={"use": "lora", "rank": 2})
    manifest = run(config, "whole")
    before = unique_weights(load_run_model(base, inputs["tokenize"], seed=17))
    tables = {name for name, value in before.items() if len(value) == 128}
    at_change, end = weights_at(tmp_path / "whole", 3), weights_at(tmp_path / "whole", 8)
    assert {name for name in end if ".lora_" not in name} == tables
    assert manifest.counts["adapters"]["tables"] == (["input", "output"] if len(tables) == 2 else ["input"])
    for name in tables:
        assert torch.equal(at_change[name][:OLD], before[name][:OLD])
        assert not torch.equal(end[name][:OLD], at_change[name][:OLD])
    untouched = [name for name in end if "lora_B" in name]
    assert untouched and not any(at_change[name].any() for name in untouched)
    assert all(end[name].any() for name in untouched)
    run(config, "broken", crash_at=crash_at)
    run(config, "broken")
    assert read_tensors(tmp_path / "whole", 8) == read_tensors(tmp_path / "broken", 8)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "broken")
