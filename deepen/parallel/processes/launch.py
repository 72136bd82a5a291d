"""Starting the processes of one node, with torch elastic: it watches them, and starts all of them anew when one dies.

Signals to this process reach them all. How they ended comes back through outcome files, so that an error keeps its
hint and its exit code.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepen.errors import DeepenError, TrainingError
from deepen.parallel.config import Compute, Launch, Mesh
from deepen.parallel.mesh import num_processes
from deepen.parallel.processes.environment import Started
from deepen.parallel.processes.outcome import Outcome, RankError, cause, read_outcomes

OUTCOMES = "DEEPEN_OUTCOMES"
"""Variable that names the folder for outcomes."""

AGENT_VARIABLES = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""For torch elastic: how many seconds processes may take to finish their step and save when they are asked to stop; and
that each start of them has a store of its own."""


def processes_here(mesh: Mesh, settings: Launch, compute: Compute) -> int:
    """Processes to start on this node: as set; else one per GPU in whole groups of the mesh, without GPUs what the
    mesh asks for."""
    if settings.processes_per_node != "auto":
        return settings.processes_per_node
    available = 1
    if compute.device != "cpu":
        import torch

        available = max(1, torch.cuda.device_count())
    return num_processes(mesh, available)


def launch(command: Sequence[str], num_local: int, settings: Launch, folder: Path) -> None:
    """Run ``command`` (Python arguments, such as ``-m module``) ``num_local`` times side by side, to a good end.

    A process that dies ends all of them; then all start again, at most ``settings.max_restarts`` times. Raises
    ``RankError`` with what the first process that failed had to say, and ``TrainingError`` when it was killed.
    """
    import sys

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_local,
        run_id=f"deepen-{os.getpid()}-{time.time_ns()}",
        rdzv_backend="c10d",
        # Any free port, so that several launches can share a machine.
        rdzv_endpoint="localhost:0",
        max_restarts=settings.max_restarts,
        monitor_interval=0.2,
        local_addr="localhost",
        signals_to_handle="SIGTERM,SIGINT",
    )
    with _environment(num_local, folder), _signals_restored():
        try:
            elastic_launch(config, sys.executable)(*command)
        except SignalException:
            raise _explained(folder, "stopped before the first step; nothing is lost", exit_code=3) from None
        except ChildFailedError as error:
            rank, exit_code = _first_to_die(error)
            text = f"rank {rank} on {socket.gethostname()} ended by {_ended(exit_code)}"
            raise _explained(folder, f"{text}; restarts: {settings.max_restarts}", 1) from None
    # Processes that were started again after a final outcome leave at once, which elastic takes for a good end.
    stopped = final_outcome(folder)
    if stopped is not None:
        raise RankError(stopped)


def final_outcome(folder: Path) -> Outcome | None:
    """The outcome after which no other start makes sense, if there is one."""
    return cause([outcome for outcome in read_outcomes(folder) if outcome.final])


def refuse_what_would_fail_again(folder: Path, started: Started, restarts: int) -> None:
    """Raise what ended an earlier start for good; a first start forgets what earlier launches left in ``folder``."""
    if restarts == 0:
        if started.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        return
    final = final_outcome(folder)
    if final is not None:
        raise DeepenError(f"it would fail again: {final.name}: {final.message}", hint=final.hint)


def cause_of(folder: Path) -> RankError | None:
    """What the processes that noted their end in ``folder`` ended by; of several starts the last one counts."""
    outcomes = read_outcomes(folder)
    last = max((outcome.restarts for outcome in outcomes), default=0)
    found = final_outcome(folder) or cause([outcome for outcome in outcomes if outcome.restarts == last])
    return RankError(found) if found is not None else None


def _explained(folder: Path, otherwise: str, exit_code: int) -> Exception:
    found = cause_of(folder)
    if found is not None and not found.outcome.is_echo:
        return found
    error = TrainingError(otherwise, hint="run the same command again: it goes on from the last checkpoint")
    error.exit_code = exit_code
    return error


def _first_to_die(error: Any) -> tuple[int, int]:
    """Rank and exit code of the process that began it: one that was killed, before those that then lost touch."""
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    killed = [rank for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM]
    rank = killed[0] if killed else error.get_first_failure()[0]
    return rank, codes[rank]


def _ended(exit_code: int) -> str:
    return f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"


@contextmanager
def _environment(num_local: int, folder: Path) -> Iterator[None]:
    """What the processes find: where outcomes go, time to save when stopped, one thread pool each of a fair size."""
    cores = len(os.sched_getaffinity(0))
    wanted = {
        OUTCOMES: str(folder),
        **AGENT_VARIABLES,
        "OMP_NUM_THREADS": str(max(1, cores // num_local)),
    }
    before = {name: os.environ.get(name) for name in wanted}
    for name, value in wanted.items():
        # What the user has set stays; the folder, set below, is always this launch's.
        os.environ.setdefault(name, value)
    os.environ[OUTCOMES] = str(folder)
    try:
        yield
    finally:
        for name, earlier in before.items():
            if earlier is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = earlier


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Put signal handlers back that torch elastic replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
