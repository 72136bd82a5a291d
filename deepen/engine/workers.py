"""Worker processes that end when their parent does, whose death is noticed, and which name the part they died on.

Workers are spawned (not forked: forking a process with threads, as numpy and pyarrow have, can deadlock) and take one
part at a time from their pipe. A worker ignores Ctrl-C, because the parent stops it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from deepen.errors import DeepenError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SHOWN_CHARACTERS = 300
_JOIN_SECONDS = 5.0


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    job: tuple[int, Any] | None = None


def run_in_workers(
    function: Callable[[Any], dict[str, Any]],
    jobs: Sequence[tuple[int, Any]],
    *,
    workers: int,
    commit: Callable[[int, dict[str, Any]], None],
) -> None:
    """Run ``function`` on the part of every ``(index, part)`` job; call ``commit(index, result)`` here as they end."""
    waiting = list(reversed(jobs))  # taken from the end, so in their order
    pool: list[_Worker] = []
    try:
        for _ in range(workers):
            pool.append(_start(function))
        for worker in pool:
            _hand_out(worker, waiting)
        while busy := [worker for worker in pool if worker.job is not None]:
            ready = wait([worker.pipe for worker in busy])
            for worker in (worker for worker in busy if worker.pipe in ready):
                index, result = _collect(worker)
                commit(index, result)
                _hand_out(worker, waiting)
    finally:
        _stop(pool)


def _start(function: Callable[[Any], dict[str, Any]]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, function, os.getpid()), daemon=True)
    process.start()
    there.close()  # so that the worker's death shows as the end of our side of the pipe
    return _Worker(process, here)


def _hand_out(worker: _Worker, waiting: list[tuple[int, Any]]) -> None:
    worker.job = waiting.pop() if waiting else None
    if worker.job is None:
        return
    try:
        worker.pipe.send(worker.job[1])
    except OSError as error:
        raise _died(worker) from error


def _collect(worker: _Worker) -> tuple[int, dict[str, Any]]:
    assert worker.job is not None, "only busy workers are waited for"
    try:
        result, error = worker.pipe.recv()
    except (EOFError, OSError) as broken:
        raise _died(worker) from broken
    if error is not None:
        raise error
    return worker.job[0], result


def _died(worker: _Worker) -> DeepenError:
    worker.process.join(_JOIN_SECONDS)  # the pipe closes a moment before the exit code is known
    code = worker.process.exitcode
    how = f"exit code {code}"
    if code is not None and code < 0:
        how = signal.Signals(-code).name
    return DeepenError(
        f"a worker process died ({how}) while working on {shown(worker.job[1] if worker.job else None)}",
        hint="if memory ran out (SIGKILL), use fewer workers; finished parts are kept, so run the command again",
    )


def shown(part: Any) -> str:
    """A part as messages name it."""
    text = repr(part)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " ..."


def _stop(pool: list[_Worker]) -> None:
    """End all workers; whatever they were writing is a temporary file that the next run overwrites."""
    for worker in pool:
        worker.process.kill()  # not `terminate`, which a library may catch or ignore
    for worker in pool:
        worker.process.join()
        worker.process.close()
        worker.pipe.close()


def _serve(pipe: Connection, function: Callable[[Any], dict[str, Any]], parent: int) -> None:
    """The life of a worker: take a part, send ``(result, None)`` or ``(None, error)``, until the pipe closes."""
    _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            part = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(answer(function, part))


def answer(function: Callable[[Any], dict[str, Any]], part: Any) -> tuple[dict[str, Any] | None, Exception | None]:
    """What ``function`` returns for a part, or the error that it raised in a form that can be sent."""
    try:
        return function(part), None
    except Exception as error:
        return None, _portable(error, part)


def _end_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends; elsewhere the closed pipe ends it after its present part."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent was gone before we asked
        os._exit(1)


def _portable(error: Exception, part: Any) -> Exception:
    """The error in a form that survives the pipe; unexpected ones carry their traceback and part as a note."""
    text = "".join(traceback.format_exception(error))
    if not isinstance(error, DeepenError):
        error.add_note(f"in a worker process, on {shown(part)}:\n{text}")
    try:
        pickle.loads(pickle.dumps(error))  # some errors are written and cannot be read: they would break the parent
    except Exception:
        return RuntimeError(f"in a worker process, on {shown(part)}:\n{text}")
    return error
