"""Measuring without risk: a probe that raises or hangs is given up, and the run goes on.

The time limit is an alarm signal, which also ends waiting for a process or the network; it exists in the main thread
of a process only, elsewhere a probe runs without limit.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from deepen.errors import DeepenError
from deepen.progress import say

T = TypeVar("T")


class OverTimeError(BaseException):
    """A probe took longer than its limit; no `except Exception` inside the probe swallows it."""


@dataclass(frozen=True)
class Failure:
    """A probe that could not be measured."""

    reason: str


def attempt(label: str, seconds: float | None, measure: Callable[[], T], *, what: str = "probe") -> T | Failure:
    """What ``measure`` returns, or why there is nothing; the reason is also told to the user, of ``what`` and
    ``label``. ``seconds`` None: without limit."""
    try:
        with _limited(seconds):
            return measure()
    except OverTimeError:
        reason = f"took longer than its limit of {seconds:g} s"
    except DeepenError as error:
        reason = error.message
    except Exception as error:  # whatever a probe does must not end a run of weeks
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    say(f"{what} `{label}` failed: {reason}")
    return Failure(reason)


@contextmanager
def _limited(seconds: float | None) -> Iterator[None]:
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise OverTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
