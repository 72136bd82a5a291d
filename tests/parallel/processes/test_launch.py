"""The same command trains in one process, in several that it starts, and in several that a launcher started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.parallel.gang import free_port
from tests.parallel.runs import (
    deepen,
    end,
    finish,
    losses,
    machine,
    marked,
    started,
    status_of,
    torchrun,
    wait_until,
    write_inputs,
)

TRAIN = ("train", "recipe.yaml", "--machine", "machine.yaml", "--offline")
TWO = "launch: {processes_per_node: 2, max_restarts: 0}\n"
FAULTS = str(Path(__file__).parent / "faults")
ASKED = 1 << (signal.SIGTERM - 1)
"""The bit of a signal that waits to be taken."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data stages are done."""
    root = tmp_path_factory.mktemp("data")
    write_inputs(root)
    machine(root, "")
    finish(deepen("baseline", *TRAIN[1:]), root)
    return root


@pytest.fixture
def root(data: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(data, tmp_path / "work"))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of one process."""
    root = Path(shutil.copytree(data, tmp_path_factory.mktemp("alone") / "work"))
    finish(deepen(*TRAIN), root)
    return losses(root)


def test_processes_are_started_where_the_machine_file_asks_for_them(root: Path, alone: list[float]) -> None:
    machine(root, TWO)
    output = finish(deepen(*TRAIN), root)
    assert "starting 2 processes" in output
    assert output.count("trained 10 steps") == 1, "one process speaks"
    assert losses(root) == pytest.approx(alone, rel=1e-5)
    checkpoint = root / "runs/tiny/train/checkpoints/step-000010"
    assert len(list(checkpoint.glob("model-*-of-00002.safetensors"))) == 2
    assert json.loads((root / "runs/tiny/train/manifest.json").read_text())["counts"]["steps"] == 10
    assert not list((root / "runs/tiny/.processes").glob("*-*")), "nothing is left behind"
    undisturbed = losses(root)
    go_back(root, 5)  # where the model was measured right before it was saved
    assert "resuming after step 5" in finish(deepen(*TRAIN), root)
    assert losses(root) == undisturbed


@pytest.mark.slow
def test_every_checkpoint_is_a_place_to_go_on_from(root: Path) -> None:
    machine(root, TWO)
    finish(deepen(*TRAIN), root)
    undisturbed = losses(root)
    for step in (9, 6, 5, 4, 1):
        go_back(root, step)
        assert f"resuming after step {step}" in finish(deepen(*TRAIN), root)
        assert losses(root) == undisturbed, step


def go_back(root: Path, step: int) -> None:
    """As if training had been killed right after this checkpoint."""
    train = root / "runs/tiny/train"
    (train / "manifest.json").unlink()
    for path in (train / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


@pytest.mark.slow
def test_torchrun_starts_no_further_processes(root: Path, alone: list[float]) -> None:
    machine(root, TWO)
    output = finish([*torchrun(2), *TRAIN], root)
    assert "starting 2 processes" not in output
    assert losses(root) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_under_torchrun_rank_0_makes_the_data_stages_once(tmp_path: Path, alone: list[float]) -> None:
    write_inputs(tmp_path)
    machine(tmp_path, TWO)
    output = finish([*torchrun(2), "run", *TRAIN[1:]], tmp_path)
    assert output.count("ingest: starting") == output.count("export: starting") == 1
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-5)
    again = finish([*torchrun(2), "run", *TRAIN[1:]], tmp_path)
    assert "train is up to date" in again


@pytest.mark.slow
def test_accelerate_launch(root: Path, alone: list[float]) -> None:
    machine(root, TWO)
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    options = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    command = [accelerate, "launch", *options, f"--main_process_port={free_port()}", "-m", "deepen.cli", *TRAIN]
    output = finish(command, root)
    assert "starting 2 processes" not in output
    assert losses(root) == pytest.approx(alone, rel=1e-5)


SRUN = """\
#!{python}
# Stands in for srun: tasks of one step, side by side, with the variables that Slurm sets.
import os, subprocess, sys
count = int(sys.argv[1].partition("=")[2])
tasks = [
    subprocess.Popen(sys.argv[2:], env={{**os.environ, "SLURM_JOB_ID": "{job}", "SLURM_STEP_ID": "0",
    "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_TASKS": str(count),
    "SLURM_STEP_TASKS_PER_NODE": f"{{count}}(x1)", "SLURM_STEP_NODELIST": "localhost"}})
    for rank in range(count)
]
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.mark.slow
def test_srun(root: Path, alone: list[float]) -> None:
    machine(root, TWO)
    script = root / "srun"
    script.write_text(SRUN.format(python=sys.executable, job=free_port() - 20_000))
    script.chmod(0o755)
    finish([str(script), "--ntasks=2", *deepen(*TRAIN)], root)
    assert losses(root) == pytest.approx(alone, rel=1e-5)


def ranks_0(fault: dict[str, str]) -> set[int]:
    """The first processes of the training that has this fault."""
    return {*marked(f"DEEPEN_FAULT={fault['DEEPEN_FAULT']}")} & {*marked("RANK=0")}


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["own", "torchrun"])
def test_asked_to_stop_all_finish_the_step_and_save(root: Path, alone: list[float], shape: str) -> None:
    machine(root, "launch: {processes_per_node: 2, max_restarts: 3}\n")
    command = deepen(*TRAIN) if shape == "own" else [*torchrun(2), *TRAIN]
    fault = {"PYTHONPATH": FAULTS, "DEEPEN_FAULT": "0:train_step:4:SIGSTOP"}  # in a step, until all were told to stop
    with started(command, root, **fault) as process:
        wait_until(lambda: any(status_of(one, "State").startswith("T") for one in ranks_0(fault)), root)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: all(int(status_of(one, "ShdPnd"), 16) & ASKED for one in ranks_0(fault)), root)
        for one in ranks_0(fault):
            os.kill(one, signal.SIGCONT)
        output = end(process, root, 3 if shape == "own" else 1)
    assert "stopped after step" in output
    assert "run the same command again to go on" in output
    finish(command, root)
    assert losses(root) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_the_error_of_one_rank_ends_all_with_its_name_and_its_hint(root: Path) -> None:
    machine(root, "launch: {processes_per_node: 2, max_restarts: 1}\nmesh: {shard: 1, replicate: 3}\n")
    output = finish(deepen(*TRAIN), root, 2)
    assert "error: rank " in output and "needs 3 processes, there are 2" in output and "hint: " in output
    machine(root, "launch: {processes_per_node: 2, max_restarts: 1}\nmesh: {timeout_seconds: 60}\n")
    output = finish(deepen(*TRAIN), root, 0, PYTHONPATH=FAULTS, DEEPEN_FAULT="1:train_step:3:raise")
    assert "start again (1) after rank 1 on" in output and "struck by a test" in output
    assert not marked("DEEPEN_FAULT=1:train_step:3:raise")
