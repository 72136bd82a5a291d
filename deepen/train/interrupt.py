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


@dataclass
class StopRequest:
    """Whether somebody asked the run to stop."""

    requested: bool = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Note the first SIGTERM or SIGINT instead of dying of it; later ones act as usual. Main thread only."""
    stop = StopRequest()
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
