"""The lock of a run directory: one writer at a time.

On one host the operating system's file lock decides (it vanishes with its process, also under SIGKILL). Between hosts
the heartbeat does: a lock whose heartbeat is older than two minutes is taken over with a message. Shares of a job array
hold it in turns; locks of files in ``.parts`` keep out a whole run, a share twice, and shares of another count.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import stat
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
_COUNT_TRIES, _COUNT_WAIT_SECONDS = 20, 0.1
"""A share holds the count alone only while it writes it; whoever holds it longer is a whole run."""
_PARTS = ".parts"


class HeldError(RunError):
    """Somebody else holds a lock, or held it a moment ago: it may be free later."""


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
        except HeldError:  # any other refusal will not pass by waiting
            return False
        return True


@contextmanager
def _flocked(path: Path, kind: int, message: str) -> Iterator[int]:
    """Hold a file lock; raises ``RunError`` with ``message`` when others hold it in a way that does not allow it."""
    descriptor = _opened(path)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(message, hint="wait for it, or stop it") from None
        except OSError as error:
            raise _no_locks(path, error) from error
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _counted(path: Path, count: int) -> Iterator[None]:
    """Be one of ``count`` shares; raises ``RunError`` when shares of another count, or a whole run, are at work."""
    with suppress(HeldError), _flocked(path, fcntl.LOCK_EX, ""):  # nobody is here: what they were does not matter
        path.write_text(str(count))
    with ExitStack() as stack:
        for tries_left in reversed(range(_COUNT_TRIES)):
            try:
                shared = _flocked(path, fcntl.LOCK_SH, "another run is at work in this directory")
                descriptor = stack.enter_context(shared)
                break
            except HeldError:  # perhaps a share that is just noting the count, above
                if tries_left == 0:
                    raise
                time.sleep(_COUNT_WAIT_SECONDS)
        others = os.pread(descriptor, 100, 0).decode(errors="replace")
        if others != str(count):
            raise RunError(f"other shares at work cut the run into {others}, not {count}", hint="use the same number")
        yield


@contextmanager
def _held(run: Path) -> Iterator[None]:
    path = run / "lock"
    descriptor = _opened(path)
    try:
        holder = _read(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(run, holder) from None
        except OSError as error:
            raise _no_locks(path, error) from error
        if not _is_at(path, descriptor):
            raise HeldError(f"the lock of `{run}` was removed or replaced just now", hint="run the same command again")
        _refuse_live_holder_elsewhere(run, holder)
        stop = threading.Event()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        _beat(descriptor, since)
        thread = threading.Thread(target=_keep_beating, args=(path, descriptor, since, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    """A descriptor of a lock file, which is made where it is missing; raises ``RunError`` where that is not allowed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without O_NONBLOCK a pipe in the place of the file would be waited for.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise RunError(f"`{path}` cannot be opened for writing: {error.strerror}", hint=_why_not(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunError(f"`{path}` is no ordinary file", hint="remove it: it is made anew")
    return descriptor


def _no_locks(path: Path, error: OSError) -> RunError:
    return RunError(
        f"`{path}` cannot be locked: {error.strerror}", hint="put the runs on a file system with locks, with `--runs`"
    )


def _why_not(path: Path) -> str:
    with suppress(OSError):
        if path.is_dir():
            return f"`{path}` must be a file: move that folder away"
        if path.exists() and not os.access(path, os.W_OK):
            owner = path.stat().st_uid
            return f"it belongs to user {owner}, and this is user {os.getuid()}: allow writing it, or use `--runs`"
    return f"may this user write in `{path.parent}`? If not, choose another folder with `--runs`"


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the file that is locked is still the one that others would find at ``path``."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _read(descriptor: int) -> dict[str, Any]:
    """Who wrote the lock; empty when nobody did, or what stands there is none of ours."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_live_holder_elsewhere(run: Path, holder: dict[str, Any]) -> None:
    host, beat = holder.get("host"), holder.get("heartbeat")
    # What names no host or no time says nothing about anybody who lives: this host's own lock has decided already.
    if not isinstance(host, str) or host == socket.gethostname():
        return
    if isinstance(beat, bool) or not isinstance(beat, int | float) or not math.isfinite(beat):
        return
    age_seconds = time.time() - beat
    if age_seconds < -_STALE_SECONDS:
        age_seconds = _age_of_beats_from_the_future(run, holder, beat)
    if age_seconds < _STALE_SECONDS:
        raise _refusal(run, holder)
    say(f"the lock of `{run}` was left behind by {host} {age_seconds:.0f} s ago; taking it over")


def _age_of_beats_from_the_future(run: Path, holder: dict[str, Any], beat: float) -> float:
    """When a lock that is dated in the future was last written, by the clock of the file system."""
    ahead = beat - time.time()
    written = (run / "lock").stat().st_mtime
    if written - time.time() > _STALE_SECONDS:
        raise RunError(
            f"the lock of `{run}` was written by {holder['host']} {ahead:.0f} s in the future: a clock is wrong",
            hint=f"if nothing works in that run any more, remove `{run / 'lock'}`",
        )
    say(f"the clock of {holder['host']} is {ahead:.0f} s ahead of this one's: going by the time of the file")
    return time.time() - written


def _refusal(run: Path, holder: dict[str, Any]) -> HeldError:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', 'this host')}"
    return HeldError(
        f"another run is at work in `{run}` ({who}, since {holder.get('since', 'just now')})",
        hint="wait for it, stop it, or give this run another `name`",
    )


def _beat(descriptor: int, since: str) -> None:
    record = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "heartbeat": time.time()}
    text = json.dumps(record).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


def _keep_beating(path: Path, descriptor: int, since: str, stop: threading.Event) -> None:
    said = False
    while not stop.wait(_HEARTBEAT_SECONDS):
        # A beat that fails (a full disk, a file system that is away) must not end the beating: the next may go well.
        with suppress(OSError):
            _beat(descriptor, since)
        if not said and not _is_at(path, descriptor):
            said = True
            say(f"`{path}` was removed or replaced while this run is at work: nothing keeps a second run out any more")
