"""What all processes try together and, if it goes wrong for one of them, give up together.

A process that stopped in the middle would leave the others waiting for it in a collective. So all ask each other at the
beginning of every call of the model, and at the end: does somebody give up? An alarm that rings in between asks at
once, one that rings inside a call waits for the next. A process that breaks down inside a call, or hangs there, is not
helped by this: its partners notice after ``mesh.timeout_seconds``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

from deepen.parallel.process import Process

P = ParamSpec("P")
T = TypeVar("T")


class GivenUpError(BaseException):
    """Somebody gives up what all try; no `except Exception` in what is tried swallows it."""


@dataclass
class _Attempt:
    """The attempt under way."""

    process: Process
    is_over: bool = False
    """This process wants to give up."""
    in_call: bool = False
    """It is inside a call that all make."""


_now: list[_Attempt] = []
"""The attempt under way in this process, if any."""


def attempt_together(process: Process, work: Callable[[], T]) -> T | None:
    """What ``work`` returns, or None where some process gave up; raises what ``work`` raises on this process.

    All processes call it. Returns or raises on all of them at the same point.
    """
    attempt = _Attempt(process)
    _now.append(attempt)
    try:
        found = work()
        attempt.in_call = True  # nothing more to interrupt
        return None if _ask(attempt) else found
    except GivenUpError:
        return None
    except BaseException:
        attempt.in_call = attempt.is_over = True
        _ask(attempt)
        raise
    finally:
        _now.remove(attempt)


def give_up() -> None:
    """Called by an alarm, at any moment: all give up what they try now, at the latest at the next call of the model."""
    if not _now:
        return
    attempt = _now[-1]
    attempt.is_over = True
    # Between calls: this question is the one that the others ask at their next call, so that all have asked as often.
    if not attempt.in_call:
        attempt.in_call = True
        _ask(attempt)
        raise GivenUpError


def asking_first(call: Callable[P, T]) -> Callable[P, T]:
    """A call that all processes make; with it, ``GivenUpError`` is raised on all if one of them wants to give up."""

    @wraps(call)
    def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        # A call within a call: the outer one has asked.
        if not _now or _now[-1].in_call:
            return call(*args, **kwargs)
        attempt = _now[-1]
        attempt.in_call = True
        try:
            if _ask(attempt):
                raise GivenUpError
            return call(*args, **kwargs)
        finally:
            attempt.in_call = False

    return asked


def _ask(attempt: _Attempt) -> bool:
    (is_over,) = attempt.process.any_of(attempt.is_over)
    return is_over
