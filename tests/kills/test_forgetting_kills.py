"""Killed while it decides, the forgetting monitor decides the same: the rerun equals the undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys

import pytest
from test_kills import HERE, WORDS, assert_same, snapshot

BASE = """\
name: base
base: {init: random, hidden_size: 32, layers: 2, heads: 2, intermediate_size: 64, max_length: 32}
ingest: {sources: [{name: prose, role: domain, path: prose.jsonl}, {name: code, role: watch, path: code.jsonl}]}
curate: {steps: [normalize], held_out: {share: 5%, at_least: 6 documents, cap: 2k tokens}}
tokenize: {vocabulary: {train: 400}}
mix: {sequence_length: 32, max_epochs: 16}
train: {tokens: 19200, batch_tokens: 192, learning_rate: 1e-2, save: {milestones: null}}
evaluate: {every: 100%}
"""
RECIPE = """\
name: tiny
base: {run: FOLDER/runs/base}
ingest: {sources: [{name: code, role: domain, path: code.jsonl}, {name: prose, role: replay, path: prose.jsonl}]}
curate: {steps: [normalize], held_out: {share: 5%, at_least: 6 documents, cap: 2k tokens}}
mix: {sequence_length: 32, domain_share: 1.0, max_epochs: 16}
train:
  tokens: 4608
  batch_tokens: 192
  learning_rate: 2e-2
  schedule: {use: constant, warmup: 1 steps}
  save: {every: 2 steps, keep: 2, milestones: null}
evaluate:
  every: 1 steps
  forgetting:
    budget: 1%
    grace: 0
    patience: 1
    actions: [{use: more_replay, by: 4 points, times: 1}, {use: lower_learning_rate, times: 1}, rewind]
"""


def write_inputs(root):
    """Two kinds of text that share words but not the letters behind them."""
    generator = random.Random(5)
    for name in ("code", "prose"):
        texts = [" ".join(f"{generator.choice(WORDS)}{name[0] * 2}" for _ in range(40)) for _ in range(80)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (root / "machine.yaml").write_text("workers: 1\ncompute: {threads: 1}\n")


def deepen(root, recipe, **environment):
    """`deepen run`, in a process that may be killed at a file event."""
    command = [sys.executable, "-m", "deepen.cli", "run", recipe, "--machine", "machine.yaml", "--offline"]
    command += [] if recipe == "base.yaml" else ["--until", "train"]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    values = {**os.environ, "PYTHONPATH": path, **{key: str(value) for key, value in environment.items()}}
    done = subprocess.run(command, cwd=root, env=values, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The base, the snapshot of an undisturbed run on it, its decisions and its file events."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_inputs(root)
    (root / "base.yaml").write_text(BASE)
    (root / "recipe.yaml").write_text(RECIPE.replace("FOLDER", str(root)))
    code, output = deepen(root, "base.yaml")
    assert code == 0, output
    code, output = deepen(root, "recipe.yaml", DEEPEN_KILL_UNDER=root / "runs/tiny", DEEPEN_KILL_LOG=root / "events")
    assert code == 0, output
    decisions = [json.loads(line) for line in (root / "runs/tiny/train/decisions.jsonl").read_text().splitlines()]
    return root, snapshot(root / "runs/tiny"), decisions, (root / "events").read_text().splitlines()


@pytest.mark.slow
def test_the_monitor_goes_through_its_actions(undisturbed):
    _, _, decisions, _ = undisturbed
    done = [one["action"] for one in decisions if one["by"] == "forgetting" and not one["cannot"]]
    assert done[:2] == ["more_replay", "lower_learning_rate"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("needle", "which", "after"),
    [
        ("decisions.jsonl", 1, 0),  # before the first decision is written
        ("decisions.jsonl", 1, 1),  # between writing and doing
        ("decisions.jsonl", -1, 1),
        ("/train/order/", 1, 1),
        ("/train/checkpoints/", -3, 0),
    ],
)
def test_killed_in_the_middle_it_decides_the_same(undisturbed, tmp_path, needle, which, after):
    root, expected, _, events = undisturbed
    write_inputs(tmp_path)
    (tmp_path / "recipe.yaml").write_text((root / "recipe.yaml").read_text())
    matching = [number for number, event in enumerate(events, 1) if needle in event]
    at = matching[which] + after
    code, output = deepen(tmp_path, "recipe.yaml", DEEPEN_KILL_UNDER=tmp_path / "runs/tiny", DEEPEN_KILL_AT=at)
    assert code == -signal.SIGKILL, output
    code, output = deepen(tmp_path, "recipe.yaml")
    assert code == 0, output
    assert_same(snapshot(tmp_path / "runs/tiny"), expected)
