"""Penalties made stronger on another process's scores: killed at any point, training and scoring decide the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from test_kills import HERE, WORDS, without_times

from tests.train.conftest import read_tensors

BASE = """\
name: base
base: {init: random, hidden_size: 32, layers: 2, heads: 2, intermediate_size: 64, max_length: 32}
ingest: {sources: [{name: prose, role: domain, path: prose.jsonl}, {name: other, role: domain, path: other.jsonl}]}
curate: {steps: [normalize], held_out: {share: 5%, at_least: 6 documents, cap: 2k tokens}}
tokenize: {vocabulary: {train: 400}}
mix: {sequence_length: 32, max_epochs: 16}
train: {tokens: 19200, batch_tokens: 192, learning_rate: 1e-2, save: {milestones: null}}
evaluate: {every: 100%}
"""
RECIPE = """\
name: tiny
base: {run: FOLDER/runs/base}
ingest:
  sources:
    - {name: code, role: domain, path: code.jsonl}
    - {name: prose, role: replay, path: prose.jsonl}
    - {name: other, role: watch, path: other.jsonl}
curate: {steps: [normalize], held_out: {share: 5%, at_least: 6 documents, cap: 2k tokens}}
mix: {sequence_length: 32, domain_share: 0.9, max_epochs: 16}
train:
  tokens: 3840
  batch_tokens: 192
  learning_rate: 2e-2
  schedule: {use: constant, warmup: 1 steps}
  retention: {kl: {strength: 0.2}, l2_sp: {strength: 0.001}, ewc: {strength: 1.0, sequences: 8}}
  save: {every: 3 steps, keep: 2, milestones: null}
evaluate:
  every: 2 steps
  lag: 3 steps
  wait: 1800s
  forgetting:
    budget: 1%
    grace: 0
    patience: 1
    actions: [{use: kl, by: 4x, times: 1}, {use: ewc, by: 3x, times: 1}, {use: l2_sp, by: 2x, times: 1}, rewind]
"""
STEPS = 20
STRONGER = ["kl", "ewc", "l2_sp"]


def write_inputs(root):
    """Three kinds of text that share words but not the letters behind them."""
    generator = random.Random(5)
    for name in ("code", "prose", "other"):
        texts = [" ".join(f"{generator.choice(WORDS)}{name[0] * 2}" for _ in range(40)) for _ in range(80)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (root / "machine.yaml").write_text("workers: 1\ncompute: {threads: 1}\n")


@contextmanager
def started(root, *arguments, **environment):
    """A command of deepen; it has ended when the block has."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    values = {**os.environ, "PYTHONPATH": path, **{key: str(value) for key, value in environment.items()}}
    with (root / f"output-{arguments[0]}").open("w") as output:
        command = [sys.executable, "-m", "deepen.cli", *arguments, "--machine", "machine.yaml", "--offline"]
        process = subprocess.Popen(command, cwd=root, env=values, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def ended(root, process, name, code=0):
    process.wait(timeout=900)
    assert process.returncode == code, (root / f"output-{name}").read_text()[-6000:]


def until(happened, process, what):
    limit = time.monotonic() + 900
    while not happened():
        assert process.poll() is None, f"it ended before {what}"
        assert time.monotonic() < limit, f"no {what}"
        time.sleep(0.02)


def lines(path):
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def made(root):
    """What a training decided and became, whoever waited for whom and however often it was started."""
    out = root / "runs/tiny/train"
    decisions = [{**one, "parent_step": 0} for one in lines(out / "decisions.jsonl")]
    scores, metrics = ([without_times(one) for one in lines(out / name)] for name in ("scores.jsonl", "metrics.jsonl"))
    return decisions, scores, metrics, read_tensors(out, STEPS)


def train(root, **environment):
    return started(root, "run", "recipe.yaml", "--until", "train", **environment)


def watch(root):
    return started(root, "evaluate", "runs/tiny", "--watch")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run whose scores come from another process, and the file events of the training."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_inputs(root)
    (root / "base.yaml").write_text(BASE)
    (root / "recipe.yaml").write_text(RECIPE.replace("FOLDER", str(root)))
    with started(root, "run", "base.yaml") as process:
        ended(root, process, "run")
    with train(root, DEEPEN_KILL_UNDER=root / "runs/tiny", DEEPEN_KILL_LOG=root / "events") as training:
        until((root / "runs/tiny/recipe.yaml").is_file, training, "the run")
        with watch(root) as watcher:
            ended(root, training, "run")
            ended(root, watcher, "evaluate")
    return root, made(root), (root / "events").read_text().splitlines()


@pytest.fixture
def again(undisturbed, tmp_path):
    """A folder in which the same run can be made."""
    write_inputs(tmp_path)
    (tmp_path / "recipe.yaml").write_text((undisturbed[0] / "recipe.yaml").read_text())
    return tmp_path


@pytest.mark.slow
def test_every_penalty_is_made_stronger_on_scores_that_came_late(undisturbed):
    _, (decisions, scores, metrics, _), _ = undisturbed
    done = [one for one in decisions if one["by"] == "forgetting" and not one["cannot"]]
    assert [one["details"].get("penalty") for one in done[:3]] == STRONGER
    assert all(one["known_at"] == one["step"] + 3 for one in scores)
    assert {one["step"] for one in done} <= {one["known_at"] for one in scores}
    first = done[0]["step"]
    of_kl = {record["step"]: record["penalties"]["kl"] for record in metrics}
    assert of_kl[first + 1] > 2 * of_kl[first], "four times the strength shows in the next step"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("needle", "which", "after"),
    [
        ("decisions.jsonl", 0, 1),  # between writing and doing
        ("decisions.jsonl", 2, 1),
        ("train/scores.jsonl", 3, 1),  # scores were taken, nothing was decided on them
    ],
)
def test_a_killed_training_decides_the_same(undisturbed, again, needle, which, after):
    _, expected, events = undisturbed
    at = [number for number, event in enumerate(events, 1) if needle in event][which] + after
    with train(again, DEEPEN_KILL_UNDER=again / "runs/tiny", DEEPEN_KILL_AT=at) as training:
        until((again / "runs/tiny/recipe.yaml").is_file, training, "the run")
        with watch(again) as watcher:
            ended(again, training, "run", -signal.SIGKILL)
            with train(again) as training:
                ended(again, training, "run")
            ended(again, watcher, "evaluate")
    assert_same(made(again), expected)


@pytest.mark.slow
def test_a_killed_watcher_changes_nothing(undisturbed, again):
    scores = again / "runs/tiny/watch/scores.jsonl"
    with train(again) as training:
        until((again / "runs/tiny/recipe.yaml").is_file, training, "the run")
        for wanted in (1, 3):
            with watch(again) as watcher:
                until(lambda: len(lines(scores)) >= wanted, watcher, "scores")  # noqa: B023 - used at once
                watcher.kill()
        with watch(again) as watcher:
            ended(again, training, "run")
            ended(again, watcher, "evaluate")
    assert_same(made(again), undisturbed[1])


def assert_same(found, expected):
    for name, ours, theirs in zip(("decisions", "scores", "metrics", "weights"), found, expected, strict=True):
        assert ours == theirs, name
