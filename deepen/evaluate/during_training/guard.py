"""Measuring without risk: a probe that raises or hangs is given up, and the run goes on.

The time limit is an alarm signal, which also ends waiting for a process or the network; it exists in the main thread
of a process only, elsewhere a probe runs without limit. Of several processes that share a model all give up together.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from deepen.errors import DeepenError
from deepen.progress import say

if TYPE_CHECKING:
    from deepen.parallel.process import Process

T = TypeVar("T")


class OverTimeError(BaseException):
    """A probe took longer than its limit; no `except Exception` inside the probe swallows it."""


@dataclass(frozen=True)
class Failure:
    """A probe that could not be measured."""

    reason: str


def attempt(
    label: str, seconds: float | None, measure: Callable[[], T], process: Process | None = None, *, what: str = "probe"
) -> T | Failure:
    """What ``measure`` returns, or why there is nothing; the reason is also told to the user, of ``what`` and
    ``label``. ``seconds`` None: without limit.

    With the ``process`` of a model that several share, all call it, and all have a result or none has.
    """
    if process is not None and process.mesh is not None:
        found = _together(seconds, measure, process)
    else:
        found = _alone(seconds, measure)
    if isinstance(found, Failure):
        say(f"{what} `{label}` failed: {found.reason}")
    return found


def _alone(seconds: float | None, measure: Callable[[], T]) -> T | Failure:
    try:
        with _limited(seconds, _raise, again=_RAISE_AGAIN_SECONDS):
            return measure()
    except OverTimeError:
        return Failure(_over_time(seconds))
    except (Exception, SystemExit) as error:  # whatever a probe does must not end a run of weeks
        return Failure(reason_of(error))


def _together(seconds: float | None, measure: Callable[[], T], process: Process) -> T | Failure:
    """As ``_alone`` on all processes; the reason is that of the first one that has any."""
    from deepen.parallel.processes.attempts import GivenUpError, attempt_together, give_up

    rang: list[bool] = []

    def ring() -> None:
        rang.append(True)
        give_up()

    reason: str | None = None
    found: list[T] | None = None
    try:
        with _limited(seconds, ring, again=_RING_AGAIN_SECONDS):
            # In a list, which tells what was measured from the None of giving up.
            found = attempt_together(process, lambda: [measure()])
    except GivenUpError:
        pass
    except (Exception, SystemExit) as error:
        reason = reason_of(error)
    if found is not None:
        return found[0]
    reasons = process.from_all(reason or (_over_time(seconds) if rang else None))
    return Failure(next(filter(None, reasons), "was given up"))


def _over_time(seconds: float | None) -> str:
    return f"took longer than its limit of {seconds or 0:g} s"


def reason_of(error: BaseException) -> str:
    """What to write down of an exception, in a line."""
    if isinstance(error, DeepenError):
        return error.message
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _raise() -> None:
    raise OverTimeError


_RING_AGAIN_SECONDS = 1.0
_RAISE_AGAIN_SECONDS = 5.0
"""A probe may swallow whatever is raised in it, and has so long to clean up after itself."""


@contextmanager
def _limited(seconds: float | None, ring: Callable[[], None], *, again: float) -> Iterator[None]:
    """Call ``ring`` after so long, and once more every ``again`` seconds if it did not help. None: never."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(_signal: int, _frame: FrameType | None) -> None:
        ring()

    before = signal.signal(signal.SIGALRM, heard)
    signal.setitimer(signal.ITIMER_REAL, seconds, again)
    try:
        yield
    finally:
        # Off before its handler goes: what an alarm does without one is to end the process.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
