"""The lock of a run directory: one writer at a time.

On one host the operating system's file lock decides (it vanishes with its process, also under SIGKILL). Between hosts
the heartbeat does: a lock whose heartbeat is older than two minutes is taken over with a message. Shares of a job array
hold it in turns; locks of files in ``.parts`` keep out a whole run, a share twice, and shares of another count.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from deepen.errors import RunError
from deepen.formats.workers import Share
from deepen.progress import say

_HEARTBEAT_SECONDS = 10.0
_STALE_SECONDS = 120.0
_WAIT_SECONDS = 0.5
_PARTS = ".parts"


@contextmanager
def locked(run: Path, *, shares: bool = False) -> Iterator[None]:
    """Hold the lock of ``run``; raises ``RunError`` when another live process holds it.

    Without ``shares`` it is also refused while shares of a job array, which let go of the lock, work on their parts.
    """
    with ExitStack() as stack:
        stack.enter_context(_held(run))
        if not shares:
            stack.enter_context(
                _flocked(run / _PARTS / "all", fcntl.LOCK_EX, f"shares of a job array are at work in `{run}`")
            )
        yield


@contextmanager
def hold(run: Path, share: tuple[int, int] | None) -> Iterator[Share | None]:
    """Hold the lock of ``run``: alone, or (share 2 of 8: ``(2, 8)``) in turns with the other shares of a job array."""
    if share is None:
        with locked(run):
            yield None
    else:
        with Turn(run, *share) as turn:
            yield Share(*share, turn.leave, turn.come_back)


class Turn:
    """The lock of a run as shares of a job array hold it: in turns, and not while they work on parts."""

    def __init__(self, run: Path, number: int, count: int) -> None:
        self._run, self._number, self._count = run, number, count
        self._present, self._turn = ExitStack(), ExitStack()

    def __enter__(self) -> Turn:
        """Wait for the lock; raises ``RunError`` when this share, or a run of another kind, is at work already."""
        own = f"{self._number}-of-{self._count}"
        try:
            self._present.enter_context(
                _flocked(self._run / _PARTS / own, fcntl.LOCK_EX, f"share {self._number} is at work in `{self._run}`")
            )
            self._present.enter_context(_counted(self._run / _PARTS / "all", self._count))
            waits = False
            while not self.come_back():
                if not waits:
                    say(f"waiting for the other shares to let go of `{self._run}`")
                waits = True
                time.sleep(_WAIT_SECONDS)
        except BaseException:
            self._present.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._turn.close()
        self._present.close()

    def leave(self) -> None:
        """Let the other shares have the lock."""
        self._turn.close()

    def come_back(self) -> bool:
        """Take the lock again; False when it is not free."""
        try:
            self._turn.enter_context(locked(self._run, shares=True))
        except RunError:
            return False
        return True


@contextmanager
def _flocked(path: Path, kind: int, message: str) -> Iterator[int]:
    """Hold a file lock; raises ``RunError`` with ``message`` when others hold it in a way that does not allow it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(message, hint="wait for it, or stop it") from None
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _counted(path: Path, count: int) -> Iterator[None]:
    """Be one of ``count`` shares; raises ``RunError`` when shares of another count, or a whole run, are at work."""
    with suppress(RunError), _flocked(path, fcntl.LOCK_EX, ""):  # nobody is here: what they were does not matter
        path.write_text(str(count))
    with _flocked(path, fcntl.LOCK_SH, "another run is at work in this directory") as descriptor:
        others = os.pread(descriptor, 100, 0).decode()
        if others != str(count):
            raise RunError(f"other shares at work cut the run into {others}, not {count}", hint="use the same number")
        yield


@contextmanager
def _held(run: Path) -> Iterator[None]:
    run.mkdir(parents=True, exist_ok=True)
    path = run / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        holder = _read(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(run, holder) from None
        _refuse_live_holder_elsewhere(run, holder)
        stop = threading.Event()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        _beat(descriptor, since)
        thread = threading.Thread(target=_keep_beating, args=(descriptor, since, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> dict[str, Any]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        return dict(json.loads(os.read(descriptor, 4096) or b"{}"))
    except ValueError:
        return {}


def _refuse_live_holder_elsewhere(run: Path, holder: dict[str, Any]) -> None:
    if not holder or holder.get("host") == socket.gethostname():
        return
    age_seconds = time.time() - float(holder.get("heartbeat", 0))
    if age_seconds < _STALE_SECONDS:
        raise _refusal(run, holder)
    say(f"the lock of `{run}` was left behind by {holder['host']} {age_seconds:.0f} s ago; taking it over")


def _refusal(run: Path, holder: dict[str, Any]) -> RunError:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', 'this host')}"
    return RunError(
        f"another run is at work in `{run}` ({who}, since {holder.get('since', 'just now')})",
        hint="wait for it, stop it, or give this run another `name`",
    )


def _beat(descriptor: int, since: str) -> None:
    record = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "heartbeat": time.time()}
    text = json.dumps(record).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


def _keep_beating(descriptor: int, since: str, stop: threading.Event) -> None:
    while not stop.wait(_HEARTBEAT_SECONDS):
        _beat(descriptor, since)
