"""Runs over several nodes: two agents on the loopback device, started by stand-ins for ssh and for Slurm's commands."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from deepen.errors import RecipeError, RunError
from deepen.parallel.config import Launch, Mesh
from deepen.parallel.processes.gang import Gang
from deepen.parallel.processes.jobs import job_problems, processes_per_node, read_hosts
from tests.parallel.gang import free_port
from tests.parallel.runs import deepen, end, finish, losses, machine, marked, started, wait_for_step, write_inputs

FAULTS = str(Path(__file__).parent / "faults")
LAUNCH = ("launch", "recipe.yaml", "--machine", "machine.yaml", "--offline", "--until", "train")
STAND_INS = {
    # ssh -o A -o B HOST COMMAND: a shell on that host
    "ssh": 'shift 4; host="$1"; shift; echo "$host" >> hosts.log; AGENT_OF="$host" exec bash -c "$*"',
    # sbatch SCRIPT: where Slurm would put it in a queue, it runs here
    "sbatch": 'grep -c "^#SBATCH" "$1" > head.log; export SLURM_JOB_ID={job} SLURM_JOB_NODELIST=localhost,127.0.0.1; '
    'bash "$1" > job.log 2>&1 || exit 1; echo "Submitted batch job {job}"',
    "scontrol": "echo localhost; echo 127.0.0.1",
    # srun OPTION COMMAND: once on each node
    "srun": 'shift; "$@" & first=$!; "$@" & second=$!; wait $first || exit 1; wait $second',
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run for two nodes of one process each, and the stand-ins on the path."""
    write_inputs(tmp_path)
    (tmp_path / "hosts").write_text("localhost slots=1\n\n127.0.0.1  # the same machine\n")
    machine(tmp_path, f"launch: {{processes_per_node: 1, nodes: 2, max_restarts: 2, port: {free_port()}}}\n")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in STAND_INS.items():
        (folder / name).write_text("#!/bin/bash\n" + text.replace("{job}", str(free_port())) + "\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_printed_commands_are_those_of_torchrun(root: Path) -> None:
    output = finish(deepen(*LAUNCH, "--ssh", "hosts"), root)
    first, second = (line for line in output.splitlines() if line.startswith("ssh "))
    assert " localhost " in first and " 127.0.0.1 " in second
    assert "is_host=1" in first and "is_host=0" in second
    assert all("--nnodes=2:2" in line and "--rdzv-backend=c10d" in line for line in (first, second))
    assert "nothing was started" in output
    script = finish(deepen(*LAUNCH, "--slurm", "--nodes", "3", "--set", "machine.launch.min_nodes=2"), root)
    assert "#SBATCH --nodes=2-3" in script and "--nnodes=2:3" in script and "#SBATCH --signal=TERM@" in script


@pytest.mark.slow
def test_over_ssh_two_agents_train_together(root: Path) -> None:
    output = finish(deepen(*LAUNCH, "--ssh", "hosts", "--submit"), root)
    assert (root / "hosts.log").read_text().split() == ["localhost", "127.0.0.1"]
    assert output.count("trained 10 steps") == 1
    together = losses(root)
    finish(deepen("train", "recipe.yaml", "--offline", "--runs", "alone"), root)
    assert together == pytest.approx(losses(root, "alone"), rel=1e-5)


@pytest.mark.slow
def test_slurm_runs_the_script(root: Path) -> None:
    output = finish(deepen(*LAUNCH, "--slurm", "--submit"), root)
    assert "Submitted batch job" in output
    assert int((root / "head.log").read_text()) >= 5
    losses(root)


@pytest.mark.slow
def test_an_error_comes_back_from_the_nodes(root: Path) -> None:
    text = (root / "machine.yaml").read_text().replace("max_restarts: 2", "max_restarts: 0")
    (root / "machine.yaml").write_text(text)
    command = deepen(*LAUNCH, "--ssh", "hosts", "--submit")
    output = finish(command, root, 1, PYTHONPATH=FAULTS, DEEPEN_FAULT="1:train_step:2:raise")
    assert "\nerror: rank 1 on" in output and "struck by a test" in output
    assert not marked("DEEPEN_FAULT=1:train_step:2:raise")


@pytest.mark.slow
def test_with_fewer_nodes_it_goes_on(root: Path) -> None:
    text = (root / "machine.yaml").read_text().replace("nodes: 2,", "nodes: 2, min_nodes: 1,")
    (root / "machine.yaml").write_text(text)
    with started(deepen(*LAUNCH, "--ssh", "hosts", "--submit"), root) as process:
        wait_for_step(root, 2)
        for number in marked("AGENT_OF=127.0.0.1"):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        end(process, root)
    finish(deepen("train", "recipe.yaml", "--offline", "--runs", "alone"), root)
    assert losses(root) == pytest.approx(losses(root, "alone"), rel=1e-5)


@pytest.mark.slow
def test_storage_that_is_not_shared_is_named(root: Path) -> None:
    """The second node works in a directory of its own."""
    other = root / "elsewhere"
    other.mkdir()
    for name in ("recipe.yaml", "machine.yaml", "code.jsonl", "prose.jsonl"):
        shutil.copy(root / name, other / name)
    there = f'[ "$host" = localhost ] || set -- "$(sed "s#{root}#{other}#g" <<< "$*")"; AGENT_OF='
    ssh = (root / "bin/ssh").read_text().replace("AGENT_OF=", there)
    (root / "bin/ssh").write_text(ssh)
    output = finish(deepen(*LAUNCH, "--ssh", "hosts", "--submit", "--set", "machine.launch.max_restarts=0"), root, 1)
    assert "is not seen on" in output and "storage that they share" in output


def test_a_mesh_that_does_not_fit_the_nodes_is_refused() -> None:
    assert not job_problems(Mesh(), Launch(processes_per_node=8), 4)
    (found,) = job_problems(Mesh(tensor=3), Launch(processes_per_node=8), 2)
    assert "multiple of 3" in found.message
    (found,) = job_problems(Mesh(shard=16), Launch(min_nodes=1), 2)
    assert "fixed size" in found.message
    (found,) = job_problems(Mesh(), Launch(min_nodes=3), 2)
    assert found.path == "launch.min_nodes"
    (found,) = job_problems(Mesh(tensor=2), Launch(processes_per_node=3, min_nodes=1), 2)
    assert "there are 3" in found.message, "with fewer nodes it would not fit any more"
    assert processes_per_node(Mesh(shard=4), Launch(), 2, on_gpus=False) == 2
    assert processes_per_node(Mesh(), Launch(), 2, on_gpus=True) is None
    with pytest.raises(RecipeError):
        processes_per_node(Mesh(shard=3), Launch(), 2, on_gpus=False)


def test_host_files(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("a\n# b\nc slots=4\n")
    assert read_hosts(file) == ["a", "c"]
    for text in ("", "a\na\n"):
        file.write_text(text)
        with pytest.raises(RunError):
            read_hosts(file)
    with pytest.raises(RunError):
        read_hosts(tmp_path / "none")


def test_who_waits_for_rank_0_learns_that_there_is_nothing_to_do() -> None:
    from torch.distributed import HashStore

    from deepen.parallel.processes.environment import Started

    store = HashStore()
    first, second = (Gang(Started(rank, 2, rank, 2, "localhost", 1), store) for rank in (0, 1))
    first.announce("order")
    assert second.wait_for_order() == "order"
    first.dismiss()
    other = HashStore()
    first, second = Gang(first.started, other), Gang(second.started, other)
    other.set("deepen/order", "-")
    assert second.wait_for_order() is None
