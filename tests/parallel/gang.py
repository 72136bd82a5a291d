"""Several processes that work through a list of cells together, started once per test session and world size."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

Cell = Callable[..., Any]


def free_port() -> int:
    """A port that nobody has, below those that the system gives away by itself."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def run_gang(world_size: int, cells: Mapping[str, tuple[Cell, tuple[Any, ...]]], folder: Path) -> dict[str, list[Any]]:
    """What each cell returned on each rank (or the text of its error), by the cell's name.

    Cells are functions of a module; rank, world size and the rest come from the environment, as with torchrun.
    """
    multiprocessing.set_forkserver_preload(["tests.parallel.networks"])  # what takes longest is imported once for all
    multiprocessing.start_processes(
        _work, args=(world_size, free_port(), dict(cells), str(folder)), nprocs=world_size, start_method="forkserver"
    )
    per_rank = [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(world_size)]
    return {name: [found[name] for found in per_rank] for name in cells}


def _work(rank: int, world_size: int, port: int, cells: dict[str, tuple[Cell, tuple[Any, ...]]], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    found = {name: function(*arguments) for name, (function, arguments) in cells.items()}
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    if torch.distributed.is_initialized():  # a whole run leaves by itself
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
