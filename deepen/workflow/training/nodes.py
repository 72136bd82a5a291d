"""Putting a run on several nodes: the script for Slurm is handed to ``sbatch``; ssh is watched until all agents end."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepen.errors import RecipeError, RunError, TrainingError
from deepen.formats.files.atomic import write_bytes
from deepen.parallel.processes.jobs import (
    Job,
    host_commands,
    job_problems,
    pid_file,
    processes_per_node,
    read_hosts,
    sbatch_script,
)
from deepen.parallel.processes.launch import cause_of
from deepen.progress import say
from deepen.recipe.models import Machine
from deepen.workflow.training.processes import FOLDER, launch_folder

SCRIPT = "job.sbatch"
_LOOK_SECONDS = 0.5

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=30")


@dataclass(frozen=True)
class Launching:
    """What was asked for on the command line."""

    name: str
    arguments: tuple[str, ...]
    """Of ``deepen``, as every node runs it."""
    directory: Path
    """The run's."""
    nodes: int | None
    host_file: Path | None
    """None: Slurm chooses the hosts."""


@dataclass(frozen=True)
class Made:
    """A job that is ready to be started."""

    job: Job
    text: str
    """What is run: the script, or one line for each host."""
    run: Path
    identity: str = ""
    commands: dict[str, str] | None = None
    """By host."""


def job_for(machine: Machine, asked: Launching) -> Made:
    """The job for a run on ``machine``; raises ``RecipeError`` when its mesh does not fit the nodes."""
    hosts = read_hosts(asked.host_file) if asked.host_file is not None else None
    nodes = asked.nodes or (len(hosts) if hosts else machine.launch.nodes)
    if hosts is not None and len(hosts) < nodes:
        raise RunError(f"`{asked.host_file}` names {len(hosts)} hosts, not {nodes}", hint="name more, or --nodes fewer")
    found = job_problems(machine.mesh, machine.launch, nodes)
    if found:
        raise RecipeError(found)
    on_gpus = machine.compute.device != "cpu"
    run = asked.directory.resolve()
    job = Job(
        name=f"deepen-{asked.name}",
        arguments=asked.arguments,
        directory=Path.cwd(),
        folder=run / FOLDER,
        nodes=nodes,
        processes_per_node=processes_per_node(machine.mesh, machine.launch, nodes, on_gpus=on_gpus),
        on_gpus=on_gpus,
        launch=machine.launch,
    )
    if hosts is None:
        return Made(job, sbatch_script(job), run)
    identity = f"{os.getpid()}-{time.time_ns()}"
    commands = host_commands(job, hosts[:nodes], identity)
    lines = [shlex.join([*_SSH, host, command]) for host, command in commands.items()]
    return Made(job, "\n".join(lines), run, identity, commands)


def submit_script(made: Made) -> str:
    """Write the script into the run and hand it to ``sbatch``; returns what that says."""
    script = made.job.folder / SCRIPT
    write_bytes(script, made.text.encode())
    try:
        done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise RunError("there is no `sbatch` here", hint=f"submit `{script}` where Slurm is") from error
    if done.returncode != 0:
        raise RunError(
            f"sbatch refused `{script}`: {done.stderr.strip()}", hint="see `launch.slurm` in the machine file"
        )
    return f"{done.stdout.strip()}\nscript: {script}"


def over_ssh(made: Made) -> None:
    """Run the agents of all hosts and wait for them; SIGTERM and Ctrl-C ask them to finish the step and save.

    With ``min_nodes`` as many agents must end well, otherwise all. Raises what the processes reported.
    """
    assert made.commands is not None, "a job over ssh has a command for each host"
    agents = {host: _start(host, command) for host, command in made.commands.items()}
    readers = [threading.Thread(target=_relay, args=(host, agent), daemon=True) for host, agent in agents.items()]
    for reader in readers:
        reader.start()
    with _asking_to_stop(made):
        codes = _ended(made, agents)
    for reader in readers:
        reader.join(timeout=10)
    ended_well = sum(code == 0 for code in codes.values())
    if ended_well < (made.job.launch.min_nodes or made.job.nodes):
        raise _failed(made, codes)


def _ended(made: Made, agents: dict[str, subprocess.Popen[str]]) -> dict[str, int]:
    """The exit codes of all agents. When more have failed than can be done without, the others are asked to stop: they
    would wait for those."""
    spare, asked = made.job.nodes - (made.job.launch.min_nodes or made.job.nodes), False
    while any(agent.poll() is None for agent in agents.values()):
        failed = [host for host, agent in agents.items() if agent.poll() not in (None, 0)]
        if len(failed) > spare and not asked:
            asked = True
            _ask_to_stop(made, [host for host, agent in agents.items() if agent.poll() is None])
        time.sleep(_LOOK_SECONDS)
    return {host: agent.wait() for host, agent in agents.items()}


def _ask_to_stop(made: Made, hosts: Iterable[str]) -> None:
    for host in hosts:
        note = shlex.quote(str(pid_file(made.job, host, made.identity)))
        subprocess.Popen([*_SSH, host, f"kill -TERM $(cat {note})"], stdin=subprocess.DEVNULL)


def _start(host: str, command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*_SSH, host, command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C reaches us alone; we ask the agents
    )


def _relay(host: str, agent: subprocess.Popen[str]) -> None:
    assert agent.stdout is not None, "agents are started with a pipe"
    for line in agent.stdout:
        say(f"{host}: {line.rstrip()}")


@contextmanager
def _asking_to_stop(made: Made) -> Iterator[None]:
    """Pass the first SIGTERM or Ctrl-C on to every agent, on its own host."""
    assert made.commands is not None

    def ask(_number: int, _frame: object) -> None:
        _ask_to_stop(made, made.commands or ())

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for host in made.commands:
            pid_file(made.job, host, made.identity).unlink(missing_ok=True)


def _failed(made: Made, codes: dict[str, int]) -> Exception:
    explained = cause_of(launch_folder(made.run, made.identity))
    if explained is not None:
        return explained
    ended = ", ".join(f"{host} with {code}" for host, code in codes.items() if code != 0)
    return TrainingError(f"agents ended before training did: {ended}", hint="their messages are above")
