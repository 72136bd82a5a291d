"""Faults of one process among four: all start again, or stop cleanly; nothing hangs, and losses are as undisturbed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from deepen.formats.training.checkpoints import list_checkpoints, verify
from tests.parallel.runs import deepen, finish, losses, machine, marked, write_inputs

pytestmark = pytest.mark.slow

TRAIN = ("train", "recipe.yaml", "--machine", "machine.yaml", "--offline")
FAULTS = str(Path(__file__).parent / "faults")
FOUR = "launch: {processes_per_node: 4, max_restarts: 2}\nmesh: {timeout_seconds: 20}\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_inputs(root)
    machine(root, FOUR)
    finish(deepen("baseline", *TRAIN[1:]), root)
    return root


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    root = Path(shutil.copytree(data, tmp_path_factory.mktemp("undisturbed") / "work"))
    finish(deepen(*TRAIN), root)
    return losses(root)


def drill(data: Path, folder: Path, fault: str, code: int = 0) -> tuple[Path, str]:
    """Train with a fault; whatever comes of it, no process is left and what is saved is intact."""
    root = Path(shutil.copytree(data, folder / "work"))
    output = finish(deepen(*TRAIN), root, code, PYTHONPATH=FAULTS, DEEPEN_FAULT=fault)
    deadline = time.monotonic() + 600
    while marked(f"DEEPEN_FAULT={fault}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not marked(f"DEEPEN_FAULT={fault}")
    checkpoints = list_checkpoints(root / "runs/tiny/train/checkpoints")
    assert checkpoints and not any(verify(info) for info in checkpoints)
    return root, output


@pytest.mark.parametrize(
    "fault",
    [
        "2:train_step:6:SIGKILL",  # in the middle of a step
        "2:_write_mine:3:SIGKILL",  # writing its part of a checkpoint (the first is that of the self-test)
        "0:_commit:3:SIGKILL",  # all parts are there, the manifest is not
        "1:token_nll:2:SIGKILL",  # in an evaluation
    ],
)
def test_a_killed_process_is_started_again_with_the_others(
    data: Path, undisturbed: list[float], tmp_path: Path, fault: str
) -> None:
    root, output = drill(data, tmp_path, fault)
    assert "all processes start again (1)" in output
    assert losses(root) == undisturbed


def test_a_process_that_hangs_is_given_up(data: Path, undisturbed: list[float], tmp_path: Path) -> None:
    root, output = drill(data, tmp_path, "3:train_step:6:SIGSTOP")
    assert "all processes start again (1)" in output
    assert losses(root) == undisturbed


def test_a_full_disk_stops_all_and_room_lets_them_go_on(data: Path, undisturbed: list[float], tmp_path: Path) -> None:
    root, output = drill(data, tmp_path, "0:train_step:4:full", code=1)
    assert "start again" not in output, "it would only fail again"
    assert "error: rank" in output and "make room" in output
    finish(deepen(*TRAIN), root)
    assert losses(root) == undisturbed


def test_without_restarts_the_command_ends_and_says_who_died(data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(data, tmp_path / "work"))
    machine(root, FOUR.replace("max_restarts: 2", "max_restarts: 0"))
    output = finish(deepen(*TRAIN), root, 1, PYTHONPATH=FAULTS, DEEPEN_FAULT="2:train_step:6:SIGKILL")
    assert "rank 2" in output and "SIGKILL" in output
