"""Jobs over several nodes as text: the script for ``sbatch``, or one command for each host of ``ssh``.

Each node runs one agent of torch elastic (torchrun); the agents meet at the first node and start the processes, again
when one dies, with fewer nodes where that is allowed. What runs in the end is the same ``deepen run`` as on one node.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepen.errors import Problem, RecipeError, RunError
from deepen.parallel.config import Launch, Mesh
from deepen.parallel.mesh import fixed_processes, problems
from deepen.parallel.processes.launch import AGENT_VARIABLES

_WARNING_SECONDS = 300
"""How long before the end of its time Slurm asks a job to stop, so that it can save."""


@dataclass(frozen=True)
class Job:
    """A command of deepen on several nodes."""

    name: str
    arguments: tuple[str, ...]
    """Of ``deepen``: ``run``, the recipe, options."""
    directory: Path
    """Working directory on every node."""
    folder: Path
    """For logs and notes; on storage that all nodes share."""
    nodes: int
    processes_per_node: int | None
    """None: one per GPU."""
    on_gpus: bool
    launch: Launch


def job_problems(mesh: Mesh, launch: Launch, nodes: int) -> list[Problem]:
    """What cannot work: a mesh that does not fit the nodes, or fewer of them."""
    fewest = nodes if launch.min_nodes is None else launch.min_nodes
    if fewest > nodes:
        message = f"is more than the {nodes} nodes there are"
        return [Problem("launch.min_nodes", message, "make it smaller", str(fewest))]
    if fewest < nodes and mesh.shard != "auto":
        message = "a mesh of fixed size cannot go on with fewer nodes"
        return [Problem("launch.min_nodes", message, "set `mesh.shard: auto`, or leave it out", str(fewest))]
    if launch.processes_per_node == "auto":
        return []
    return [
        problem
        for count in range(fewest, nodes + 1)
        for problem in problems(mesh, world_size=count * launch.processes_per_node)
    ][:1]


def processes_per_node(mesh: Mesh, launch: Launch, nodes: int, *, on_gpus: bool) -> int | None:
    """Processes of each node, or None where its GPUs decide; raises ``RecipeError`` when they do not come out even."""
    if launch.processes_per_node != "auto":
        return launch.processes_per_node
    if on_gpus:
        return None
    if fixed_processes(mesh) % nodes:
        message = f"{fixed_processes(mesh)} processes do not divide over {nodes} nodes"
        raise RecipeError([Problem("launch.processes_per_node", message, "set it")])
    return fixed_processes(mesh) // nodes


def read_hosts(file: Path) -> list[str]:
    """Hosts of a host file, one a line; what MPI's files add (``slots=8``) and comments are passed over."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"the host file `{file}` cannot be read: {error}", hint="one host a line") from error
    hosts = [line.split("#")[0].split()[0] for line in lines if line.split("#")[0].strip()]
    twice = sorted({host for host in hosts if hosts.count(host) > 1})
    if not hosts or twice:
        what = f"names {', '.join(twice)} twice" if twice else "names no host"
        raise RunError(f"the host file `{file}` {what}", hint="one host a line, each once")
    return hosts


def agent(job: Job, identity: str, endpoint: str, *, is_first: bool | None = None) -> list[str]:
    """The command of one node. ``identity`` and ``endpoint`` (host:port of the first node) are words for a shell.

    The agents meet at the node that ``is_first``; None: each finds out by its host name, which an alias hides.
    """
    fewest = job.launch.min_nodes or job.nodes
    return [
        shlex.quote(sys.executable), "-m", "torch.distributed.run",
        f"--nnodes={fewest}:{job.nodes}",
        f"--nproc-per-node={job.processes_per_node or 'gpu'}",
        f"--max-restarts={job.launch.max_restarts}",
        "--rdzv-backend=c10d", f"--rdzv-id={identity}", f"--rdzv-endpoint={endpoint}",
        *([] if is_first is None else [f"--rdzv-conf=is_host={int(is_first)}"]),
        "-m", "deepen.cli", *map(shlex.quote, job.arguments),
    ]  # fmt: skip


def sbatch_script(job: Job) -> str:
    """The script for ``sbatch``: one agent on each node, a timely signal before the end, and a place in the queue again
    when a node fails."""
    fewest = job.launch.min_nodes or job.nodes
    nodes = str(job.nodes) if fewest == job.nodes else f"{fewest}-{job.nodes}"
    head = [
        f"--job-name={re.sub(r'[^A-Za-z0-9._-]', '-', job.name)}", f"--nodes={nodes}", "--ntasks-per-node=1",
        f"--output={job.folder / 'slurm-%j.log'}", "--open-mode=append", "--requeue",
        f"--signal=TERM@{_WARNING_SECONDS}",
        *([f"--gpus-per-node={job.processes_per_node}"] if _asks_for_gpus(job) else []),
        *job.launch.slurm,
    ]  # fmt: skip
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in head),
            "set -eu",
            f"cd {shlex.quote(str(job.directory))}",
            *job.launch.setup,
            *_exports(),
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            # Else, where Slurm is set up so, one agent that fails ends the others, which could go on without it.
            "exec srun --kill-on-bad-exit=0 " + " ".join(agent(job, '"$SLURM_JOB_ID"', f'"$first:{job.launch.port}"')),
            "",
        ]
    )


def _asks_for_gpus(job: Job) -> bool:
    given = any(re.match(r"--(gpus|gres)", line) for line in job.launch.slurm)
    return job.on_gpus and job.processes_per_node is not None and not given


def host_commands(job: Job, hosts: Sequence[str], identity: str) -> dict[str, str]:
    """For each host the line that a shell on it runs. It notes its process, so that it can be asked to stop."""
    endpoint = f"{hosts[0].rpartition('@')[2]}:{job.launch.port}"
    lines = {}
    for host in hosts:
        command = " ".join(agent(job, identity, endpoint, is_first=host == hosts[0]))
        parts = [
            f"cd {shlex.quote(str(job.directory))}",
            f"mkdir -p {shlex.quote(str(job.folder))}",
            *job.launch.setup,
            *_exports(),
            # `exec` in the next line keeps this number: it is then the agent's.
            f"echo $$ > {shlex.quote(str(pid_file(job, host, identity)))}",
            f"exec {command}",
        ]
        lines[host] = " && ".join(parts)
    return lines


def pid_file(job: Job, host: str, identity: str) -> Path:
    """Where the agent on ``host`` notes the number of its process."""
    return job.folder / f"{identity}-{host}.pid"


def _exports() -> list[str]:
    return [f"export {name}={value}" for name, value in AGENT_VARIABLES.items()]
