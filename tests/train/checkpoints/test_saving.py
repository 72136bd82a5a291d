from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from deepen.errors import TrainingError
from deepen.formats.files.records import read_records
from deepen.parallel.config import Compute
from deepen.train.beside.hooks import Hooks
from deepen.train.checkpoints import copying, saving
from deepen.train.checkpoints.files import Marks, Snapshot
from deepen.train.checkpoints.saving import Saver
from deepen.train.schedule.optimizer import StochasticAdamW
from tests.train.conftest import read_metrics, read_tensors

Run = Callable[..., Any]
Configure = Callable[..., Any]
EVERY = {"every": "1 step", "keep": 8, "milestones": None}
CPU = torch.device("cpu")


def files_of(directory: Path) -> dict[str, bytes]:
    """All bytes of all checkpoints."""
    paths = sorted(path for path in (directory / "checkpoints").rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "pure_bf16"])
def test_background_writes_the_same_bytes_and_trains_the_same(
    run: Run, settings: Configure, tmp_path: Path, precision: str
) -> None:
    config = settings(save=EVERY, precision=precision)
    for name, background in (("behind", True), ("before", False)):
        compute = Compute(device="cpu", threads=1, micro_batch_rows=1, background_saves=background)
        run(config, name, compute=compute)
    assert files_of(tmp_path / "behind") == files_of(tmp_path / "before")
    assert len(files_of(tmp_path / "behind")) == 8 * 4
    assert read_metrics(tmp_path / "behind") == read_metrics(tmp_path / "before")
    tensors = [read_tensors(tmp_path / "behind", step) for step in range(1, 9)]
    assert all(a != b for a, b in zip(tensors, tensors[1:], strict=False))


class Clock:
    """Stands where it is put, and tells that somebody has begun to count on it."""

    def __init__(self) -> None:
        self.now, self.counting = 0.0, threading.Event()

    def perf_counter(self) -> float:
        """As ``time.perf_counter``."""
        now = self.now
        self.counting.set()
        return now


class Gate:
    """A writer that keeps what it is given, and waits until it is let through."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.written: list[Snapshot] = []
        self.at_once = self.most_at_once = 0

    def __call__(self, snapshot: Snapshot) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.entered.set()
        assert self.open.wait(600), "nobody opened the gate"
        self.written.append(snapshot)
        self.at_once -= 1


def snapshot(weights: Tensor, step: int = 1) -> Snapshot:
    return Snapshot({"weights": weights}, {"step": torch.tensor(float(step))}, {"step": step}, Marks())


def updater(weights: nn.Parameter, kind: type[AdamW] = AdamW) -> torch.optim.Optimizer:
    weights.grad = torch.ones_like(weights)
    return kind([weights], lr=1.0, weight_decay=0.0)


def test_training_goes_on_while_a_checkpoint_is_written_and_the_copy_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, gate = nn.Parameter(torch.zeros(1000)), Gate()
    saver = Saver(gate, CPU)
    saver.save(snapshot(weights))
    assert gate.entered.wait(600)
    optimizer = updater(weights)
    for _ in range(3):  # the writer still waits at its gate
        optimizer.step()
    assert not gate.written and float(weights[0].detach()) == pytest.approx(-3)
    gate.open.set()
    saver.wait()
    assert gate.written[0].weights["weights"].eq(0).all()


@pytest.mark.parametrize("kind", [AdamW, StochasticAdamW])
def test_an_update_waits_until_the_state_is_copied(monkeypatch: pytest.MonkeyPatch, kind: type[AdamW]) -> None:
    weights, gate, begun, stepped = nn.Parameter(torch.zeros(1000)), Gate(), threading.Event(), threading.Event()
    gate.open.set()
    really_copy, clock = copying._copy_all, Clock()

    def copy_slowly(*pairs: Any) -> None:
        begun.set()
        assert clock.counting.wait(600), "nobody waits for the copy"
        assert not stepped.wait(0.1), "the update did not wait for the copy"
        clock.now += 5.0
        really_copy(*pairs)

    monkeypatch.setattr(copying, "_copy_all", copy_slowly)
    optimizer, saver = updater(weights, kind), Saver(gate, CPU)
    saver.save(snapshot(weights))
    saver.take_stall_seconds()
    monkeypatch.setattr(saving, "time", clock)  # from here on only the update counts how long it waits
    assert begun.wait(600)
    optimizer.step()
    stepped.set()
    assert saver.take_stall_seconds() == 5.0
    saver.wait()
    assert gate.written[0].weights["weights"].eq(0).all() and weights.lt(-0.9).all()


def test_one_checkpoint_is_written_at_a_time_and_the_wait_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, weights, clock = Gate(), torch.zeros(10), Clock()
    monkeypatch.setattr(saving, "time", clock)
    saver = Saver(gate, CPU)
    saver.save(snapshot(weights, 1))
    saver.take_stall_seconds()
    clock.counting.clear()

    def open_later() -> None:
        assert clock.counting.wait(600), "nobody waits for the gate"
        clock.now += 5.0
        gate.open.set()

    threading.Thread(target=open_later).start()
    saver.save(snapshot(weights, 2))
    assert gate.written[0].state["step"] == 1
    assert saver.take_stall_seconds() == 5.0
    saver.wait()
    assert [one.state["step"] for one in gate.written] == [1, 2] and gate.most_at_once == 1


def test_the_copy_uses_its_memory_again_and_grows_with_the_state() -> None:
    copies, moved = copying.StateCopy(), threading.Event()
    first = copies.copy(snapshot(torch.ones(100)), None, moved.set)
    second = copies.copy(snapshot(torch.ones(100) * 2), None, moved.set)
    assert first.weights["weights"].data_ptr() == second.weights["weights"].data_ptr()
    assert copies.grows_by(snapshot(torch.ones(100))) == 0 < copies.grows_by(snapshot(torch.ones(200)))
    odd = {"bf16": torch.ones(3, dtype=torch.bfloat16), "turned": torch.arange(6.0).view(2, 3).T, "none": torch.ones(0)}
    copied = copies.copy(Snapshot(odd, {"one": torch.tensor(7)}, {"step": 1}, Marks()), None, moved.set)
    for name, tensor in odd.items():
        torch.testing.assert_close(copied.weights[name], tensor, rtol=0, atol=0)
    assert copied.optimizer["one"] == 7


@pytest.mark.parametrize("background", [True, False])
def test_what_fails_in_the_writer_is_raised_once_and_later_saves_work(background: bool) -> None:
    failing = [True]

    def write(_: Snapshot) -> None:
        if failing.pop() if failing else False:
            raise OSError(28, "No space left on device")

    saver = Saver(write, CPU, background=background)
    with pytest.raises(TrainingError, match="after step 6.*No space left") as raised:
        saver.save(snapshot(torch.zeros(3), 6))
        saver.wait()
    assert "goes on from the last checkpoint" in str(raised.value)
    saver.check()
    saver.save(snapshot(torch.zeros(3), 7))
    saver.wait()


def test_a_failed_write_stops_the_run_at_the_next_step(run: Run, settings: Configure, monkeypatch: Any) -> None:
    steps: list[int] = []

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_checkpoint", fail)

    def log(record: dict[str, Any]) -> None:
        steps.append(record["step"])
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()

    with pytest.raises(TrainingError, match="after step 3.*No space left"):
        run(settings(save={"every": "3 steps", "milestones": None}), hooks=Hooks(log=log))
    assert steps == [1, 2, 3]


def test_without_memory_for_the_copy_it_says_so_and_saves_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(copying, "available_memory_bytes", lambda: 100)
    monkeypatch.setattr(saving, "available_memory_bytes", lambda: 100)
    threads: list[str] = []
    saver = Saver(lambda _: threads.append(threading.current_thread().name), CPU)
    saver.save(snapshot(torch.zeros(1000)))
    saver.save(snapshot(torch.zeros(1000)))
    assert threads == [threading.main_thread().name] * 2
    message = capsys.readouterr().err
    assert message.count("stands still while it saves") == 1 and "compute.background_saves: false" in message


def test_available_memory_is_that_of_the_machine_or_less() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < copying.available_memory_bytes() <= total
    assert copying.fits_into_memory(1) and not copying.fits_into_memory(total * 2)


def test_the_stall_is_recorded_at_the_step_after(
    run: Run, settings: Configure, monkeypatch: Any, tmp_path: Path
) -> None:
    """On a clock on which only writing takes time; behind the training it takes as long as the next step."""
    really_write, clock = saving.write_checkpoint, Clock()
    monkeypatch.setattr(saving, "time", clock)
    told = {step: threading.Event() for step in range(1, 9)}

    def write_slowly(directory: Path, snapshot: Snapshot) -> Any:
        step = snapshot.state["step"]
        if threading.current_thread() is not threading.main_thread() and step < 8:  # nothing comes after the last
            assert told[step + 1].wait(600), "training did not go on"
        clock.now += 5.0
        return really_write(directory, snapshot)

    monkeypatch.setattr(saving, "write_checkpoint", write_slowly)
    stalls = {}
    for name, background in (("behind", True), ("before", False)):
        compute = Compute(device="cpu", threads=1, background_saves=background)
        hooks = Hooks(log=lambda record: told[record["step"]].set())
        run(settings(save={"every": "3 steps", "milestones": None}), name, compute=compute, hooks=hooks)
        records = read_records(tmp_path / name / "metrics.jsonl")
        stalls[name] = {record["step"]: record["checkpoint_stall_seconds"] for record in records}
    assert stalls["before"] == {step: 5.0 if step in (4, 7) else 0.0 for step in range(1, 9)}
    assert stalls["behind"] == dict.fromkeys(range(1, 9), 0.0)


def test_killed_while_a_checkpoint_is_written_and_training_is_ahead_of_it(
    run: Run, settings: Configure, tmp_path: Path
) -> None:
    code = f"""
import os, signal, sys, threading
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from pathlib import Path
from deepen.formats.manifest import StageJob
from deepen.train.checkpoints import files
from deepen.train.beside.hooks import Hooks
from tests.train import conftest
write_tensors, begun = files.write_tensors, threading.Event()
def write_half(path, tensors):
    entry = write_tensors(path, tensors)
    if path.parent.name.startswith("step-000004") and path.name.startswith("optimizer"):
        begun.set()
        threading.Event().wait()
    return entry
def log(record):
    if record["step"] == 5:
        assert begun.wait(600)
        os.kill(os.getpid(), signal.SIGKILL)
files.write_tensors = write_half
root = Path({str(tmp_path)!r})
init = conftest.RandomInit(init="random", hidden_size=16, layers=2, heads=2, max_length=32)
config = conftest.TrainConfig.model_validate({settings(save=EVERY | {"every": "2 steps"}).model_dump(mode="json")!r})
compute = conftest.Compute(device="cpu", threads=1, micro_batch_rows=3)
base = conftest.ResolvedBase("tiny", None, init, "base")
job = StageJob(root / "killed", "run", conftest.make_inputs(root / "data"))
conftest.train(config, job, base=base, compute=compute, hooks=Hooks(log=log))
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=600)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    checkpoints = tmp_path / "killed/checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000002", "step-000004.tmp"]
    assert [record["step"] for record in read_metrics(tmp_path / "killed")] == [1, 2, 3, 4, 5]
    config = settings(save=EVERY | {"every": "2 steps"})
    run(config, "killed")
    run(config, "whole")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
