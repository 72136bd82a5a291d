"""A thread that notices a step which does not end: it writes down where every thread stands, and may end the process.

A step is stuck when it takes far longer than the steps before it and longer than a floor that no healthy step reaches;
evaluating and saving have a longer limit of their own. Only what a thread can see without the help of the stuck one is
used: a clock, and Python's own dump of all stacks, which works while native code hangs.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import Field, field_validator

from deepen.progress import say
from deepen.settings import Amount, AmountSetting, Settings

_STUCK = "stuck.txt"
STUCK_EXIT_CODE = 75
"""``EX_TEMPFAIL``: try again; a launcher starts the process anew."""
_OTHER_WORK = "evaluating or saving"


class Watchdog(Settings):
    """When a step counts as stuck, and what then happens. Our choice, all of it."""

    after: AmountSetting = Amount(1800, "seconds")
    """A step takes at least this long before it is called stuck: longer than compiling kernels takes."""
    times_median: float = Field(default=20.0, gt=1)
    """And this many times the median of the last 100 steps."""
    other_work: AmountSetting = Amount(6 * 3600, "seconds")
    """The same for evaluating and saving, which take as long as the models and probes make them."""
    stop: bool = False
    """End the process with exit code 75 when the step goes on as long again, so that a launcher starts it anew."""

    @field_validator("after", "other_work", mode="after")
    @classmethod
    def _is_time(cls, amount: Amount) -> Amount:
        if amount.unit != "seconds" or amount.value <= 0:
            raise ValueError("give a time such as `30min`")
        return amount


@dataclass
class _Now:
    """What the training thread is doing."""

    what: str
    since: float
    limit_seconds: float
    told: bool = False


class StepAlarm:
    """Looks after the thread that calls ``step_begins``; a ``with`` block ends it. Without settings nothing is done."""

    def __init__(
        self, settings: Watchdog | None, out: Path, *, rank: int = 0, end: Callable[[int], None] = os._exit
    ) -> None:
        """``stuck.txt`` in ``out`` gets the stacks (``stuck.RANK.txt`` of other processes); ``end`` leaves."""
        self._settings = settings
        self._file = out / (_STUCK if rank == 0 else f"stuck.{rank}.txt")
        self._rank = rank
        # `os._exit`: in a process that is stuck nothing would run what `sys.exit` raises.
        self._end = end
        self._now: _Now | None = None
        self._recent: deque[float] = deque(maxlen=100)
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begin to look."""
        if self._settings is not None:
            self._thread = threading.Thread(target=self._look_on, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look no more."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def step_begins(self, step: int) -> None:
        """A step begins; the one before has ended."""
        if self._settings is not None:
            # A new record each time, put in place by one assignment: the thread that looks at it needs no lock.
            self._now = _Now(f"step {step}", time.monotonic(), self.step_limit())

    def step_ends(self) -> None:
        """The step has ended; evaluating and saving may follow."""
        if self._settings is not None and self._now is not None:
            self._recent.append(time.monotonic() - self._now.since)
            self._now = _Now(_OTHER_WORK, time.monotonic(), self._settings.other_work.value)

    def step_limit(self) -> float:
        """Seconds after which a step is stuck."""
        assert self._settings is not None, "there is no limit"
        median = statistics.median(self._recent) if self._recent else 0.0
        return max(self._settings.after.value, self._settings.times_median * median)

    def _look_on(self) -> None:
        assert self._settings is not None, "there is no limit"
        shortest = min(self._settings.after.value, self._settings.other_work.value)
        while not self._done.wait(min(10.0, shortest / 4)):
            now = self._now
            if now is None:
                continue
            taken = time.monotonic() - now.since
            if taken > now.limit_seconds and not now.told:
                now.told = True
                self._tell(now, taken)
            if taken > 2 * now.limit_seconds and self._settings.stop:
                say(f"train: {now.what} is still stuck after {taken:,.0f} s: the process ends with {STUCK_EXIT_CODE}")
                self._end(STUCK_EXIT_CODE)

    def _tell(self, now: _Now, taken: float) -> None:
        where = f"rank {self._rank} on {socket.gethostname()}, process {os.getpid()}"
        say(f"train: {now.what} has been going on for {taken:,.0f} s ({where}); what it does stands in `{self._file}`")
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {now.what}, {taken:,.0f} s, {where}\n")
                # The dump goes to the descriptor itself, past what Python still holds back.
                file.flush()
                faulthandler.dump_traceback(file=file, all_threads=True)
                file.write("\n")
        except OSError as error:  # a full disk may be the very reason
            say(f"train: `{self._file}` cannot be written: {error}")
