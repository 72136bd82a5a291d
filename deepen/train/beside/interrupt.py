"""SIGTERM and Ctrl-C: finish the step, save, stop. A second signal stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from deepen.errors import TrainingError


class StoppedError(TrainingError):
    """The run was asked to stop; everything up to the last finished step is saved."""

    exit_code = 3
    asked_by_signal = False
    """Whether starting again goes on at once; after a limit it would stop again."""


@dataclass
class StopRequest:
    """Whether somebody asked the run to stop."""

    requested: bool = False
    because: str = "as asked"

    def heed_limit(self, elapsed_seconds: float, limit_seconds: float | None) -> None:
        """Ask the run to stop when it has taken as long as it may."""
        if limit_seconds is not None and elapsed_seconds >= limit_seconds and not self.requested:
            self.requested = True
            self.because = f"after {elapsed_seconds / 3600:.2f} hours, as the machine file limits it"


def stopped(stop: StopRequest, step: int, total_steps: int) -> StoppedError:
    """The error that ends a run that was asked to stop, everything being saved."""
    hint = "run the same command again to go on"
    if stop.because != "as asked":
        hint = f"raise `limit` in the machine file and {hint}"
    error = StoppedError(f"stopped after step {step} of {total_steps}, {stop.because}; everything is saved", hint=hint)
    error.asked_by_signal = stop.because == "as asked"
    return error


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Note the first SIGTERM or SIGINT instead of dying of it; later ones act as usual. Main thread only."""
    stop = StopRequest()
    # Python lets no other thread set a handler.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(_number: int, _frame: FrameType | None) -> None:
        stop.requested = True
        restore()

    for number in previous:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
