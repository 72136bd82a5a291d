"""What a launcher told this process: torchrun and accelerate by RANK and friends, srun by SLURM_*. No torch.

A batch script of ``sbatch`` sees SLURM_NTASKS and SLURM_PROCID, too, but is no task of a step; only ``srun`` sets
SLURM_STEP_ID.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from deepen.errors import RunError

_PORTS = range(20_000, 40_000)
"""Where the port of a Slurm step is taken from, by the number of its job: two jobs on one node rarely meet."""


@dataclass(frozen=True)
class Started:
    """One of several processes that were started together."""

    rank: int
    world_size: int
    local_rank: int
    """Number of the process on its node, which is the number of its GPU."""
    local_world_size: int
    """Processes on its node."""
    address: str
    port: int
    """Where rank 0 is found."""


def read_environment(environment: Mapping[str, str] | None = None) -> Started | None:
    """How this process was started, or None when it was started alone.

    Raises ``RunError`` when a launcher set only some of its variables, or no numbers.
    """
    values = os.environ if environment is None else environment
    if "RANK" in values:
        world_size = _number(values, "WORLD_SIZE", "1")
        return None if world_size == 1 else _of_torchrun(values, world_size)
    if "SLURM_PROCID" in values and ("SLURM_STEP_ID" in values or "SLURM_STEPID" in values):
        return _of_srun(values)
    return None


def _of_torchrun(values: Mapping[str, str], world_size: int) -> Started:
    return Started(
        rank=_number(values, "RANK"),
        world_size=world_size,
        local_rank=_number(values, "LOCAL_RANK", "0"),
        local_world_size=_number(values, "LOCAL_WORLD_SIZE", "1"),
        address=values.get("MASTER_ADDR", "localhost"),
        port=_number(values, "MASTER_PORT"),
    )


def _of_srun(values: Mapping[str, str]) -> Started | None:
    world_size = _number(values, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in values else "SLURM_NTASKS")
    if world_size == 1:
        return None
    nodes = values.get("SLURM_STEP_NODELIST") or values.get("SLURM_JOB_NODELIST") or "localhost"
    per_node = values.get("SLURM_STEP_TASKS_PER_NODE") or values.get("SLURM_TASKS_PER_NODE") or "1"
    port = _PORTS[_number(values, "SLURM_JOB_ID", "0") % len(_PORTS)]
    return Started(
        rank=_number(values, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_number(values, "SLURM_LOCALID", "0"),
        # Like `4(x2),3`: counts by node. The first will do, since a mesh wants the same number on each.
        local_world_size=int(re.split(r"[(,]", per_node)[0]),
        address=values.get("MASTER_ADDR") or first_host(nodes),
        port=_number(values, "MASTER_PORT", str(port)),
    )


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: ``gpu[07-09,12],cpu1`` gives ``gpu07``."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def _number(values: Mapping[str, str], name: str, default: str | None = None) -> int:
    value = values.get(name, default)
    if value is None or not value.isdecimal():
        raise RunError(
            f"the launcher set {name}={value}, which is no number",
            hint="start with torchrun, accelerate launch or srun, or without any of them",
        )
    return int(value)


def num_restarts() -> int:
    """How often torch elastic has started this process anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def die_with_parent() -> None:
    """Be killed when the agent that watches this process is: nobody would end it when its partners die."""
    parent = os.getppid()
    with_parent = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(with_parent, int(signal.SIGKILL))
    if os.getppid() != parent or parent == 1:
        os._exit(1)
