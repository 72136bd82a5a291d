"""A stuck step is noticed, told and, if asked for, ended; ordinary steps and long evaluations are left alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from deepen.settings import Amount
from deepen.train.beside import watchdog
from deepen.train.beside.watchdog import STUCK_EXIT_CODE, StepAlarm, Watchdog

STUCK_RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from deepen.train.beside.interrupt import StopRequest
from deepen.formats.manifest import StageJob
from deepen.settings import Amount
from deepen.train.beside.hooks import Hooks
from deepen.train.beside.watchdog import Watchdog
from tests.train import conftest

root = Path({folder!r})
inputs = conftest.make_inputs(root / "data")
init = conftest.RandomInit(init="random", hidden_size=16, layers=2, heads=2, max_length=32)
base = conftest.ResolvedBase("tiny", None, init, "base")
config = conftest.TrainConfig.model_validate(
    {{"tokens": 512, "batch_tokens": 64, "learning_rate": 1e-2, "save": {{"every": "2 steps", "milestones": None}}}}
)

from types import SimpleNamespace
from deepen.model.loss.model import LossModel
from deepen.train.beside import watchdog

# A clock that stands still until a step hangs: no other step can seem stuck, however busy the machine is.
clock = [0.0]
watchdog.time = SimpleNamespace(monotonic=lambda: clock[0], strftime=time.strftime)
forward, calls = LossModel.forward, []

def hangs_in_a_forward(self, *inputs):
    calls.append(1)
    if self.training and len(calls) == {hangs}:
        clock[0] = 1000.0
        time.sleep(1000)
    return forward(self, *inputs)

LossModel.forward = hangs_in_a_forward
after = Amount(0.2, "seconds")  # of that clock; on the real one the watchdog looks four times as often
hooks = Hooks(watchdog=Watchdog(after=after, times_median=2.0, stop=True))
compute = conftest.Compute(device="cpu", threads=1, micro_batch_rows=4)
conftest.train(config, StageJob(root / "train", "run", inputs), base=base, compute=compute, hooks=hooks)
"""


def test_a_stuck_step_is_told_with_all_stacks_and_ends_with_its_own_code(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])

    def start(hangs: int) -> subprocess.CompletedProcess[str]:
        code = STUCK_RUN.format(root=root, folder=str(tmp_path), hangs=hangs)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)

    stuck = start(8)
    assert stuck.returncode == STUCK_EXIT_CODE, stuck.stderr
    assert "has been going on for" in stuck.stderr and "rank 0 on" in stuck.stderr
    written = (tmp_path / "train/stuck.txt").read_text()
    assert "hangs_in_a_forward" in written and "Thread" in written
    again = start(0)
    assert again.returncode == 0 and "resuming after step" in again.stderr, again.stderr


class Clock:
    """Stands where it is put, and tells when somebody has looked at it."""

    strftime = staticmethod(time.strftime)

    def __init__(self) -> None:
        self.now, self.looks = 0.0, threading.Semaphore(0)

    def monotonic(self) -> float:
        """As ``time.monotonic``."""
        if threading.current_thread() is not threading.main_thread():
            self.looks.release()
        return self.now

    def is_seen(self) -> None:
        """Return when the watchdog has acted on this time, which it has when it looks once more."""
        while self.looks.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self.looks.acquire(timeout=600), "nobody watches"


def test_only_a_step_beyond_its_limit_is_told_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    limits = {"after": Amount(0.1, "seconds"), "other_work": Amount(60, "seconds"), "times_median": 1.1}
    settings = Watchdog(**limits, stop=True)
    file, clock = tmp_path / "stuck.txt", Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    with StepAlarm(settings, tmp_path, end=ended.append) as alarm:
        alarm.step_begins(1)
        clock.now += 0.09
        clock.is_seen()
        alarm.step_ends()
        clock.now += 59  # evaluating, saving
        clock.is_seen()
        assert not file.exists() and not ended
        alarm.step_begins(2)
        clock.now += 0.15
        clock.is_seen()
        assert "step 2" in file.read_text() and not ended
        clock.now += 0.1
        clock.is_seen()
    assert ended and set(ended) == {STUCK_EXIT_CODE}
    assert file.read_text().count("step 2") == 1


def test_steps_that_are_slow_by_nature_raise_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    alarm = StepAlarm(Watchdog(after=Amount(10, "seconds"), times_median=3.0), tmp_path)
    assert alarm.step_limit() == 10
    for step, seconds in enumerate((5.0, 90.0, 6.0), 1):
        alarm.step_begins(step)
        clock[0] += seconds
        alarm.step_ends()
    assert alarm.step_limit() == 18


def test_only_times_are_taken() -> None:
    with pytest.raises(ValidationError, match="30min"):
        Watchdog.model_validate({"after": "30 steps"})
