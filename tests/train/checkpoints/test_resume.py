from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepen.errors import RunError, TrainingError
from deepen.formats.files.records import read_records
from deepen.formats.training.checkpoints import list_checkpoints, newest_intact, verify
from deepen.formats.training.scores import Score
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.weights.load import load_model
from deepen.settings import Amount, Interval
from deepen.train.beside.hooks import Hooks
from deepen.train.beside.interrupt import StoppedError
from tests.train.conftest import read_metrics, read_tensors

Run = Callable[..., Any]
Configure = Callable[..., Any]
EVERY_TWO = {"save": {"every": "2 steps", "keep": 2, "milestones": None}}


def same_result(one: Path, other: Path, step: int = 8) -> None:
    assert read_tensors(one, step) == read_tensors(other, step)
    assert read_metrics(one) == read_metrics(other)
    assert [record["step"] for record in read_metrics(one)] == list(range(1, step + 1))


@pytest.mark.parametrize("crashes", [[5], [1], [8], [3, 6, 7]])
def test_resumed_is_bit_equal_to_undisturbed(run: Run, settings: Configure, tmp_path: Path, crashes: list[int]) -> None:
    config = settings(**EVERY_TWO)
    whole = run(config, "whole")
    for step in crashes:
        assert run(config, "broken", crash_at=step) is None
    resumed = run(config, "broken")
    assert resumed.counts == whole.counts
    same_result(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("crash", [4, 5, 7])
def test_spikes_are_found_alike_after_a_crash(run: Run, settings: Configure, tmp_path: Path, crash: int) -> None:
    strict = {"deviations": 0.3, "at_least": 2, "window": 3, "believe_after": 3}
    config = settings(**EVERY_TWO, skip_spikes=strict)
    run(config, "whole")
    run(config, "broken", crash_at=crash)
    run(config, "broken")
    same_result(tmp_path / "whole", tmp_path / "broken")
    whole, broken = (
        [{**record, "parent_step": None} for record in read_records(tmp_path / name / "decisions.jsonl")]
        for name in ("whole", "broken")
    )  # the broken run was scored at every step, so it has more checkpoints for decisions to rest on
    assert whole == broken and [decision["action"] for decision in whole].count("skip_batch") >= 2


def test_dropout_goes_on_with_the_same_random_numbers(run: Run, settings: Configure, tmp_path: Path) -> None:
    init = RandomInit(init="random", architecture="gpt2", hidden_size=16, layers=1, heads=2, max_length=32)
    model = load_model(ResolvedBase("r", None, init, ""), vocabulary_size=97, seed=0)
    model.config.resid_pdrop = model.config.embd_pdrop = 0.2
    model.save_pretrained(tmp_path / "base")
    base = ResolvedBase("base", tmp_path / "base", None, "")
    config = settings(**EVERY_TWO)
    run(config, "whole", base=base)
    run(config, "broken", crash_at=5, base=base)
    run(config, "broken", base=base)
    same_result(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("rename", [20, *(pytest.param(n, marks=pytest.mark.slow) for n in (16, 17, 18, 19, 21, 22))])
def test_a_killed_process_leaves_only_whole_checkpoints(
    run: Run, settings: Configure, tmp_path: Path, rename: int
) -> None:
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from tests.train import conftest
from pathlib import Path
from deepen.formats.manifest import StageJob
renames, replace = [], Path.replace
def replace_or_die(self, target):
    renames.append(self)
    if len(renames) == {rename}:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = replace_or_die
root = Path({str(tmp_path)!r})
inputs = conftest.make_inputs(root / "data")
init = conftest.RandomInit(init="random", hidden_size=16, layers=2, heads=2, max_length=32)
config = conftest.TrainConfig.model_validate({settings(**EVERY_TWO).model_dump(mode="json")!r})
compute = conftest.Compute(device="cpu", threads=1, micro_batch_rows=3)
base = conftest.ResolvedBase("tiny", None, init, "base")
renames.clear()
conftest.train(config, StageJob(root / "killed", "run", inputs), base=base, compute=compute)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    checkpoints = tmp_path / "killed/checkpoints"
    assert list_checkpoints(checkpoints) and not any(map(verify, list_checkpoints(checkpoints)))
    assert rename != 20 or any(path.name.endswith(".tmp") for path in checkpoints.rglob("*"))
    config = settings(**EVERY_TWO)
    manifest = run(config, "killed")
    assert not any(".tmp" in entry.path for entry in manifest.files)
    run(config, "whole")
    same_result(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_message(
    run: Run, settings: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    config = settings(**EVERY_TWO)
    run(config, "whole")
    run(config, "broken", crash_at=7)
    path = tmp_path / "broken/checkpoints/step-000006" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    run(config, "broken")
    assert "step-000006 is damaged and passed over" in capsys.readouterr().err
    same_result(tmp_path / "whole", tmp_path / "broken")


def test_when_all_checkpoints_are_damaged_the_run_begins_anew(run: Run, settings: Configure, tmp_path: Path) -> None:
    config = settings(**EVERY_TWO)
    run(config, "whole")
    run(config, "broken", crash_at=3)
    for info in list_checkpoints(tmp_path / "broken/checkpoints"):
        os.truncate(info.weights, 10)
    assert newest_intact(tmp_path / "broken/checkpoints", lambda _: None) is None
    run(config, "broken")
    same_result(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_with_exit_code_3(
    run: Run, settings: Configure, tmp_path: Path, number: signal.Signals
) -> None:
    config = settings(save={"every": "100 steps", "milestones": None})

    def evaluate(_model: Any, step: int, _tokens: int) -> list[Score]:
        if step == 4:
            os.kill(os.getpid(), number)
        return []

    with pytest.raises(StoppedError, match="after step 4 of 8") as stopped:
        run(config, "broken", hooks=Hooks(evaluate, Interval((Amount(4, "steps"),))))
    assert stopped.value.exit_code == 3
    run(config, "broken")
    run(config, "whole")
    same_result(tmp_path / "whole", tmp_path / "broken")


def test_scores_after_the_checkpoint_are_dropped(run: Run, settings: Configure, tmp_path: Path) -> None:
    config = settings(**EVERY_TWO)
    run(config, crash_at=5)
    stale = '{"step": 5, "tokens": 9, "scores": []}\n{"step": 6'
    with (tmp_path / "train/scores.jsonl").open("a") as file:
        file.write(stale)
    run(config)
    lines = (tmp_path / "train/scores.jsonl").read_text().splitlines()
    assert [line[:10] for line in lines] == ['{"step": 1', '{"step": 2', '{"step": 3', '{"step": 4']


def test_a_run_of_another_length_is_not_taken_for_this_one(run: Run, settings: Configure) -> None:
    run(settings(steps=6))
    with pytest.raises(RunError, match="6 steps, not 8"):
        run(settings(steps=8))


def test_evaluation_changes_no_bit_of_training(run: Run, settings: Configure, tmp_path: Path) -> None:
    def evaluate(model: Any, _step: int, _tokens: int) -> list[Score]:
        torch.rand(3)
        assert not model.training
        return []

    run(settings(), "whole")
    run(settings(), "scored", hooks=Hooks(evaluate, Interval((Amount(0.5, "share"),))))
    assert read_tensors(tmp_path / "whole", 8) == read_tensors(tmp_path / "scored", 8)


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(run: Run, settings: Configure, tmp_path: Path) -> None:
    config = settings(**EVERY_TWO)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(_model: Any, step: int, _tokens: int) -> list[Score]:
        if step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return []

    try:
        with pytest.raises(TrainingError, match="after step (4|6).*File too large"):
            run(config, "broken", hooks=Hooks(fill_disk, Interval((Amount(6, "steps"),))))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run(config, "broken")
    run(config, "whole")
    same_result(tmp_path / "whole", tmp_path / "broken")


def test_a_limit_of_time_stops_saved_and_counts_earlier_starts(run: Run, settings: Configure, tmp_path: Path) -> None:
    config = settings(save={"every": "100 steps", "milestones": None})
    for step in (1, 2):  # the second start finds the limit already reached after its first step
        with pytest.raises(StoppedError, match=rf"after step {step} of 8, after 0\.0\d hours") as stopped:
            run(config, "limited", hooks=Hooks(stop_after_seconds=1e-9))
        assert "raise `limit`" in stopped.value.hint
    run(config, "limited", hooks=Hooks(stop_after_seconds=3600))
    run(config, "whole")
    same_result(tmp_path / "whole", tmp_path / "limited")
