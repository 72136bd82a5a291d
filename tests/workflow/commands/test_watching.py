"""`deepen evaluate RUN --watch`: scores from another process, beside a training and after it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deepen.cli import app
from deepen.errors import RunError
from deepen.evaluate import stage
from deepen.evaluate.tables import tables_beside_training
from deepen.formats.files.records import append_record, read_records
from deepen.formats.training.checkpoints import list_checkpoints, remove_checkpoint
from deepen.formats.training.decisions import read_decisions
from deepen.recipe.reading import load
from deepen.runs.lock import locked
from deepen.workflow.commands import score_beside as watching
from deepen.workflow.run import RunOptions, run_pipeline
from tests.train.conftest import read_metrics, read_tensors

ROOT = Path(__file__).parents[3]
LAG = """\
evaluate:
  every: 2 steps
  lag: 3 steps
  wait: 1800s
  forgetting: {budget: 0.1%, patience: 1, grace: 0, actions: [{use: lower_learning_rate, times: 2}, rewind]}
"""


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run of which nothing was evaluated."""
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(finished_run, copy)
    for name in ("evaluate", "select", "export"):
        shutil.rmtree(copy / name)
    return copy


def watch(run: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["evaluate", str(run), "--watch", *options])


def evaluate(run: Path) -> list[dict[str, Any]]:
    loaded = load(run)
    run_pipeline(loaded.recipe, loaded.machine, run, RunOptions(last="evaluate", offline=True))
    return list(read_records(run / "evaluate" / "scores.jsonl"))


def test_a_finished_run_is_scored_once_and_not_again_by_evaluate(
    run: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = watch(run)
    assert done.exit_code == 0, done.output
    expected = list(read_records(finished_run / "evaluate" / "scores.jsonl"))
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == [f"step {one['step']}" for one in expected]
    assert "held_out new" in lines[0] and "held_out kept" in lines[0]
    scored = list(read_records(run / "watch" / "scores.jsonl"))
    assert [one["scores"] for one in scored] == [one["scores"] for one in expected]

    again = watch(run, "--json")
    assert json.loads(again.stdout)["scored"] == []

    damaged = run / "watch" / "held_out" / "step-000002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    measured: list[str] = []
    measure = stage._measured

    def counted(probe: Any, material: Any, model: Any, what: str) -> Any:
        measured.append(what)
        return measure(probe, material, model, what)

    monkeypatch.setattr(stage, "_measured", counted)
    capfd.readouterr()
    assert evaluate(run) == expected
    assert measured == ["evaluate step 2"]
    assert f"{len(expected) - 1} tables were measured by" in capfd.readouterr().err


def test_scores_are_those_of_this_checkpoint_and_probe_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for info in list_checkpoints(run / "train" / "checkpoints")[1:]:
        remove_checkpoint(info)
    (info,) = list_checkpoints(run / "train" / "checkpoints")
    assert "1 checkpoints scored" in watch(run).stdout
    manifest = info.path / "manifest.json"
    text = manifest.read_text()
    weights = next(entry["hash"] for entry in json.loads(text)["files"] if entry["path"] == "model.safetensors")
    scorer = watching.open_scorer(run, load(run))
    assert scorer.knows(info)
    manifest.write_text(text.replace(weights, "xxh3:0"))
    assert not scorer.knows(info)
    manifest.write_text(text)
    tables, subject = tables_beside_training(run / "watch", [info]), scorer.models.checkpoint(info)
    (probe,), (mark,) = scorer.config.all_probes, scorer.marks.values()
    assert not tables.link(probe, subject, "another probe", run / "it.parquet") and not (run / "it.parquet").exists()
    assert tables.link(probe, subject, mark, run / "it.parquet") and (run / "it.parquet").is_file()


def test_damaged_and_vanishing_checkpoints_are_passed_over(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third, *others = list_checkpoints(run / "train" / "checkpoints")
    for info in others:
        remove_checkpoint(info)
    (first.path / "model.safetensors").write_bytes(b"half of it")
    verify = watching.verify

    def pruned_meanwhile(info: Any) -> list[str]:
        found = verify(info)
        if info == second:
            remove_checkpoint(info)
        return found

    monkeypatch.setattr(watching, "verify", pruned_meanwhile)
    told: list[int] = []
    said: list[str] = []
    monkeypatch.setattr(watching, "say", said.append)
    count = watching.score_beside(run, None, [], offline=True, tell=lambda scores: told.append(scores.step))
    assert (count, told) == (1, [third.step])
    assert len(said) == 1 and "step-000001 is passed over: `" in said[0] and "model.safetensors" in said[0]


def test_a_start_goes_on_where_the_one_before_it_was_killed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for info in list_checkpoints(run / "train" / "checkpoints")[2:]:
        remove_checkpoint(info)
    work = watching.append_record

    def killed(path: Path, record: dict[str, Any], *, sync: bool) -> None:
        if record["step"] == 2:
            with path.open("a") as file:
                file.write('{"step": 2, "half a li')
            raise KeyboardInterrupt
        append_record(path, record, sync=sync)

    monkeypatch.setattr(watching, "append_record", killed)
    with pytest.raises(watching.StoppedError, match="stopped after 1 checkpoints") as error:
        watching.score_beside(run, None, [], offline=True, tell=lambda _scores: None)
    assert error.value.exit_code == 3
    monkeypatch.setattr(watching, "append_record", work)
    monkeypatch.setattr(stage, "_measured", None)  # the table was there already
    told: list[int] = []
    watching.score_beside(run, None, [], offline=True, tell=lambda scores: told.append(scores.step))
    assert told == [2]
    assert [one["step"] for one in read_records(run / "watch" / "scores.jsonl")] == [1, 2]


def test_one_watcher_at_a_time_and_beside_a_run(run: Path) -> None:
    for info in list_checkpoints(run / "train" / "checkpoints")[1:]:
        remove_checkpoint(info)
    with locked(run):
        assert watch(run).exit_code == 0
    with locked(run / "watch"), pytest.raises(RunError, match="is watched already: .*at work in") as error:
        watching.score_beside(run, None, [], offline=True, tell=lambda _scores: None)
    assert "one watcher" in str(error.value.hint)


def test_two_watchers_one_refused_and_the_other_stopped_before_anything_was_there(tiny: Path) -> None:
    """A run that has not begun to train: the watcher says that it waits, and Ctrl-C ends it in order."""
    run = tiny.parent / "runs" / "tiny"
    run.mkdir(parents=True)
    shutil.copy(tiny, run / "recipe.yaml")
    first = start(tiny.parent, "evaluate", "runs/tiny", "--watch")
    try:
        said = [""]
        while "waiting for the training" not in said[-1]:
            said.append(first.stdout.readline())  # type: ignore[union-attr]
            assert said[-1], said
        second = start(tiny.parent, "evaluate", "runs/tiny", "--watch")
        refused = ended(second, 1)
        assert "is watched already" in refused and "one watcher" in refused and "Traceback" not in refused
        time.sleep(1.2)  # it looks every half a second, and could say it once more
        first.send_signal(signal.SIGINT)
        output = "".join(said) + ended(first, 3)
    finally:
        first.kill()
    assert "waiting for the training" in output and output.count("waiting for") == 1
    assert "stopped after 0 checkpoints" in output and "Traceback" not in output
    assert not (run / "train").exists() and {path.name for path in (run / "watch").iterdir()} <= {
        "lock",
        "scores.jsonl",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--base-only"], "--base-only has no meaning with --watch"),
        (["--redo"], "--redo has no meaning"),
        (["--set", "evaluate.every=2 steps"], "--set of the recipe has no meaning"),
    ],
)
def test_what_makes_something_does_not_go_with_watching(tmp_path: Path, options: list[str], message: str) -> None:
    done = watch(tmp_path, *options)
    assert done.exit_code == 1 and message in str(done.exception)


def test_only_a_run_can_be_watched(tmp_path: Path) -> None:
    (tmp_path / "recipe.txt").write_text("")
    assert "is no directory" in str(watch(tmp_path / "recipe.txt").exception)
    assert "is no run directory" in str(watch(tmp_path).exception)


_started: list[subprocess.Popen[str]] = []


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    """Whatever the test starts has ended after it."""
    yield
    for process in _started:
        if process.poll() is None:
            process.kill()
            process.communicate()
    _started.clear()


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command of deepen in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "deepen.cli", *arguments, "--offline"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    _started.append(process)
    return process


def train(folder: Path) -> subprocess.Popen[str]:
    return start(folder, "train", "recipe.yaml", "--set", "machine.workers=1", "--set", "machine.compute.threads=1")


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 600
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, "nothing happens"
        time.sleep(0.02)


def told(out: Path) -> list[Any]:
    decisions = [one.model_copy(update={"parent_step": 0}) for one in read_decisions(out / "decisions.jsonl")]
    return [decisions, list(read_records(out / "scores.jsonl")), read_metrics(out), read_tensors(out, 10)]


@pytest.fixture
def with_lag(tiny: Path) -> Path:
    """The tiny recipe scored by another process; returns its folder."""
    text = tiny.read_text().replace("evaluate: {every: 50%}\n", LAG)
    tiny.write_text(text.replace("learning_rate: 1e-2", "learning_rate: 1e-1"))  # so that it forgets
    return tiny.parent


@pytest.mark.slow
@pytest.mark.usefixtures("no_leftovers")
def test_two_processes_decide_the_same_however_fast_and_whoever_is_killed(with_lag: Path, tmp_path: Path) -> None:
    run, saved = with_lag / "runs" / "tiny", tmp_path / "expected"
    training = train(with_lag)
    until((run / "recipe.yaml").is_file, training)
    watcher = start(with_lag, "evaluate", "runs/tiny", "--watch")  # before there is a checkpoint
    ended(training)
    assert "step 10: held_out" in ended(watcher)
    expected = told(run / "train")
    assert {one.action for one in expected[0]} >= {"lower_learning_rate"}
    (run / "train").rename(saved)

    training = train(with_lag)  # these scores are there at once
    ended(training)
    assert told(run / "train") == expected

    shutil.rmtree(run / "train")
    shutil.rmtree(run / "watch")
    checkpoints, scores = run / "train" / "checkpoints", run / "watch" / "scores.jsonl"
    training = train(with_lag)
    until(lambda: len(list_checkpoints(checkpoints)) > 3, training)  # it waits at step 5
    watcher = start(with_lag, "evaluate", "runs/tiny", "--watch")
    until(lambda: scores.is_file() and "\n" in scores.read_text(), watcher)
    for process in (watcher, training):
        process.kill()
        ended(process, -signal.SIGKILL)
    watcher, training = start(with_lag, "evaluate", "runs/tiny", "--watch"), train(with_lag)
    until(lambda: len(scores.read_text().splitlines()) > 3, watcher)
    watcher.send_signal(signal.SIGINT)
    assert "stopped after" in ended(watcher, 3)
    watcher = start(with_lag, "evaluate", "runs/tiny", "--watch")
    ended(training)
    ended(watcher)
    assert told(run / "train") == expected


@pytest.mark.slow
@pytest.mark.usefixtures("no_leftovers")
def test_several_processes_take_the_same_scores_at_the_same_step(with_lag: Path) -> None:
    (with_lag / "machine.yaml").write_text(
        "workers: 1\ncompute: {threads: 1, device: cpu}\nlaunch: {processes_per_node: 2, max_restarts: 0}\n"
    )
    out = with_lag / "runs" / "tiny" / "train"
    training = start(with_lag, "train", "recipe.yaml", "--machine", "machine.yaml")
    until(lambda: len(list_checkpoints(out / "checkpoints")) > 3, training)  # all of them wait at step 5
    watcher = start(with_lag, "evaluate", "runs/tiny", "--watch")
    assert "step 5: waiting for the scores of step 2" in ended(training)
    ended(watcher)
    known = [(record["step"], record["known_at"]) for record in read_records(out / "scores.jsonl")]
    assert known == [(2, 5), (4, 7), (6, 9)]
    made = [(one.step, one.action) for one in read_decisions(out / "decisions.jsonl") if one.by == "forgetting"]
    assert made[0] == (5, "lower_learning_rate")
    assert (out / "checkpoints" / "step-000002" / "layout.json").is_file()
