"""Where the parts of a data stage run: in processes of this machine, on a Ray cluster, as one share of a job array.

None of this changes a byte of what a stage writes; it only says how the work is spread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Share:
    """One of ``count`` shares of the parts, counted from 1, and the run's lock, which shares hold in turns."""

    number: int
    count: int
    leave: Callable[[], None]
    """Give the lock to the other shares, before working on parts."""
    come_back: Callable[[], bool]
    """Take the lock again, if it is free."""
    alone: bool = False
    """Set once all shares' parts are finished: this one goes on by itself."""


@dataclass(frozen=True)
class Workers:
    """How parts are run; a plain number means so many processes."""

    processes: int = 1
    ray: str | None = None
    """Address of a Ray cluster, which then takes the place of local processes."""
    share: Share | None = None


def as_workers(workers: int | Workers) -> Workers:
    """The long form."""
    return workers if isinstance(workers, Workers) else Workers(workers)
