"""The lock of a run directory: one writer at a time.

On one host the operating system's file lock decides (it vanishes with its process, also under SIGKILL). Between hosts
the heartbeat does: a lock whose heartbeat is older than two minutes is taken over with a message.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepen.errors import RunError
from deepen.progress import say

_HEARTBEAT_SECONDS = 10.0
_STALE_SECONDS = 120.0


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the lock of ``run``; raises ``RunError`` when another live process holds it."""
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
