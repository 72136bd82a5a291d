"""SIGKILL at the n-th file event or after some time, then a rerun: the result must be as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

HERE = Path(__file__).parent
WORDS = (
    "time person year way day thing man world life hand part child eye woman place work week case point group".split()
)
TIMING = {
    "tokens_per_second", "data_wait_seconds", "elapsed_seconds", "memory_bytes", "seconds", "checkpoint_stall_seconds",
    "model_flops_per_second", "mfu", "training_seconds", "share_of_training",
}  # fmt: skip

RECIPE = """\
name: tiny
base: {init: random, hidden_size: 32, layers: 2, heads: 2, intermediate_size: 64, max_length: 32}
ingest:
  sources:
    - {name: code, role: domain, path: code.jsonl}
    - {name: prose, role: replay, path: prose.jsonl}
    - {name: other, role: watch, path: other.jsonl}
curate: {steps: [normalize, exact_duplicates], held_out: {share: 5%, at_least: 5 documents, cap: 2k tokens}}
tokenize: {vocabulary: {train: 400}}
mix: {sequence_length: 32, domain_share: 0.6, max_epochs: 16}
train:
  tokens: 1920
  batch_tokens: 192
  learning_rate: 1e-2
  schedule: {use: wsd, warmup: 1 steps, decay: 20%}
  save: {every: 2 steps, keep: 2}
evaluate: {every: 50%}
"""


def write_inputs(root):
    generator = random.Random(5)
    for name in ("code", "prose", "other"):
        lines = []
        for index in range(60):
            words = [
                f"{generator.choice(WORDS)}{name[0] * generator.randint(0, 3)}"
                for _ in range(generator.randint(20, 60))
            ]
            lines.append(json.dumps({"text": f"{name} {index} " + " ".join(words)}) + "\n")
        (root / f"{name}.jsonl").write_text("".join(lines))
    (root / "recipe.yaml").write_text(RECIPE)
    (root / "machine.yaml").write_text("workers: 1\ncompute: {threads: 1}\n")


def deepen(root, **environment):
    command = [sys.executable, "-m", "deepen.cli", "run", "recipe.yaml", "--machine", "machine.yaml", "--offline"]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    values = {**os.environ, "PYTHONPATH": path, **{key: str(value) for key, value in environment.items()}}
    return subprocess.Popen(command, cwd=root, env=values, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def without_times(value):
    if isinstance(value, dict):
        return {
            key: without_times(item)
            for key, item in value.items()
            if key not in TIMING | {"started", "finished", "code", "digest"}
        }
    return [without_times(item) for item in value] if isinstance(value, list) else value


def snapshot(run):
    """Every file of a run in a form that must not depend on when, how often or from which commit it was started."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or name in ("lock", "report.html"):
            continue
        if path.suffix == ".safetensors" and "checkpoints" in name:
            found[name] = {key: tensor.tobytes() for key, tensor in load_file(path).items()}
        elif path.name == "manifest.json":
            manifest = without_times(json.loads(path.read_text()))
            # their records hold times
            loose = ("metrics.jsonl", "rolled_back.jsonl", "deepen.json", "probes/times.jsonl")
            manifest["files"] = [entry for entry in manifest.get("files", []) if entry["path"] not in loose]
            found[name] = manifest
        elif path.name == "deepen.json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.name == "times.jsonl":  # a measurement that is made again is noted again
            found[name] = sorted({json.loads(line)["step"] for line in path.read_text().splitlines()})
        elif path.suffix == ".jsonl":
            found[name] = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """An undisturbed run: its snapshot and the list of its file events."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_inputs(root)
    log = root / "events.log"
    finish(deepen(root, DEEPEN_KILL_UNDER=root / "runs", DEEPEN_KILL_LOG=log))
    return snapshot(root / "runs" / "tiny"), log.read_text().splitlines()


def kill_and_rerun(root, at):
    write_inputs(root)
    process = deepen(root, DEEPEN_KILL_UNDER=root / "runs", DEEPEN_KILL_AT=at)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == -signal.SIGKILL, output
    finish(deepen(root))
    return snapshot(root / "runs" / "tiny")


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    different = [name for name in expected if found[name] != expected[name]]
    assert not different


def pick(events, needle, seed):
    """The number (from 1) of one event whose line contains ``needle``."""
    matching = [number for number, event in enumerate(events, 1) if needle in event]
    assert matching, f"no file event of {needle}"
    return random.Random(seed).choice(matching)


@pytest.mark.parametrize("needle", ["/curate/", "/train/checkpoints/", "/export/"])
def test_a_killed_run_ends_as_if_nothing_had_happened(undisturbed, tmp_path, needle):
    expected, events = undisturbed
    assert_same(kill_and_rerun(tmp_path, pick(events, needle, seed=1)), expected)


STAGES = ["ingest", "curate", "tokenize", "mix", "baseline", "train", "evaluate", "select", "export"]
SLOW = [
    *((f"/{stage}/", 7) for stage in STAGES),
    ("/train/checkpoints/", 8),
    ("/train/checkpoints/", 9),
    ("rename", 10),
    ("open", 11),
]


@pytest.mark.slow
@pytest.mark.parametrize(("needle", "seed"), SLOW)
def test_many_kills(undisturbed, tmp_path, needle, seed):
    expected, events = undisturbed
    assert_same(kill_and_rerun(tmp_path, pick(events, needle, seed)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ingest", "tokenize", "train", "evaluate"])
def test_kills_at_a_moment(undisturbed, tmp_path, stage):
    expected, _ = undisturbed
    for number in range(9):  # again where it has ended before the kill came
        root = tmp_path / str(number)
        root.mkdir()
        write_inputs(root)
        process = deepen(root)
        begun = root / "runs" / "tiny" / stage / "unfinished.json"
        while not begun.exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(random.Random(stage).uniform(0, 0.2))
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            break
    assert process.returncode == -signal.SIGKILL
    finish(deepen(root))
    assert_same(snapshot(root / "runs" / "tiny"), expected)


@pytest.mark.slow
def test_three_kills_in_one_run(undisturbed, tmp_path):
    expected, events = undisturbed
    write_inputs(tmp_path)
    for at in (pick(events, "/tokenize/", 3), pick(events, "/train/checkpoints/", 4) // 4, 60):
        process = deepen(tmp_path, DEEPEN_KILL_UNDER=tmp_path / "runs", DEEPEN_KILL_AT=at)
        process.communicate(timeout=900)
        assert process.returncode == -signal.SIGKILL
    finish(deepen(tmp_path))
    assert_same(snapshot(tmp_path / "runs" / "tiny"), expected)
