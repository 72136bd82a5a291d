"""Processes that one launcher started: how those beside rank 0 learn what to do, and that they see the same files.

Rank 0 makes the data stages while the others wait at a store (a small server that the launcher or rank 0 runs); no
collective is open in that time, so nothing can time out, however long it takes.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from deepen.errors import RunError
from deepen.parallel.processes.environment import Started
from deepen.progress import say

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_CONNECT = timedelta(minutes=10)
"""How long processes may come one after the other."""
_LOOK = timedelta(seconds=60)
_SEEN_SECONDS = 60.0
"""A shared file system shows a new file within seconds; NFS may remember for a minute that it was not there."""
_ORDER, _STORAGE, _LEFT, _END = "deepen/order", "deepen/storage", "deepen/left", "-"


def process_name(rank: int) -> str:
    """For messages: ``rank 3 on node-17``."""
    return f"rank {rank} on {socket.gethostname()}"


@dataclass(frozen=True)
class Gang:
    """This process among those of one launcher."""

    started: Started
    store: Store

    def announce(self, order: str) -> None:
        """Rank 0: give every other process its order."""
        self.store.set(_ORDER, order)

    def wait_for_order(self) -> str | None:
        """The order of rank 0, however long it takes; None when there is nothing (more) to do."""
        from torch.distributed import DistStoreError

        since = time.monotonic()
        while True:
            try:
                # Short waits again and again: there is no longest time that data stages may take.
                self.store.wait([_ORDER], _LOOK)
            except DistStoreError as error:
                if "imeout" not in str(error) and "imed out" not in str(error):
                    raise self._lost() from error
            except RuntimeError as error:  # the connection broke: whoever runs the store is gone
                raise self._lost() from error
            else:
                break
            if self.started.rank == 1:
                minutes = (time.monotonic() - since) / 60
                say(f"rank 1 waits for rank 0 since {minutes:.0f} min")
        order = self.store.get(_ORDER).decode()
        self.store.add(_LEFT, 1)
        return None if order == _END else order

    def dismiss(self) -> None:
        """Rank 0, at its end: let go whoever still waits; those that got an order have left already."""
        if not self.store.check([_ORDER]):
            self.store.set(_ORDER, _END)
        # The store may live in this process: who waits must have read the answer before it ends.
        deadline = time.monotonic() + 10
        with suppress(RuntimeError):  # who runs the store may have left before us
            while self.store.add(_LEFT, 0) < self.started.world_size - 1 and time.monotonic() < deadline:
                time.sleep(0.05)

    def _lost(self) -> RunError:
        return RunError(
            f"{process_name(self.started.rank)} lost rank 0 while it waited for it",
            hint="the messages of rank 0 say what happened",
        )

    def check_storage(self, folder: Path) -> None:
        """See that all processes have the same ``folder``: what rank 0 writes must appear everywhere.

        Raises ``RunError`` on every process, naming the hosts that do not see it.
        """
        if self.started.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            proof = folder / f".seen-{time.time_ns()}"
            proof.touch()
            self.store.set(_STORAGE, proof.name)
        # Waits until the key is there, and rank 0 names the file when it has written it.
        name = self.store.get(_STORAGE).decode()
        seen = _appears(folder / name)
        self.store.set(f"{_STORAGE}/{self.started.rank}", "" if seen else socket.gethostname())
        blind = [self.store.get(f"{_STORAGE}/{rank}").decode() for rank in range(self.started.world_size)]
        if self.started.rank == 0:
            (folder / name).unlink(missing_ok=True)
        if any(blind):
            raise RunError(
                f"a file that rank 0 wrote into `{folder}` is not seen on {', '.join(sorted({*blind} - {''}))}",
                hint="all nodes need the folder of runs under the same path on storage that they share (NFS, Lustre); "
                "start every process in the same working directory",
            )


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _SEEN_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            if path.name in {found.name for found in path.parent.iterdir()}:  # listing passes by cached absences
                return True
        time.sleep(0.2)
    return False


def meeting_store(started: Started) -> Store:
    """Where the processes of one start meet; raises ``RunError`` when they cannot find each other.

    torch elastic keeps one store through all starts (as of torch 2.13), in which a new start would find addresses of
    processes that are dead: every start has names of its own in it.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    with _patience():
        where = f"tcp://{started.address}:{started.port}"
        store, _, _ = next(rendezvous(where, started.rank, started.world_size, timeout=_CONNECT))
        return PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def gathered(started: Started) -> Iterator[Gang]:
    """The processes beside this one while the block runs; rank 0 lets those that still wait go at its end."""
    gang = Gang(started, meeting_store(started))
    try:
        yield gang
    finally:
        if started.rank == 0:
            gang.dismiss()


@contextmanager
def _patience() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"the processes of this run cannot find each other: {error}",
            hint="MASTER_ADDR and MASTER_PORT must lead from every node to the node of rank 0",
        ) from error
