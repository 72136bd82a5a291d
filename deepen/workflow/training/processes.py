"""Training in several processes: started here, or by torchrun, ``accelerate launch`` or ``srun``.

One process makes the data stages and writes the order: which run, which inputs, under which fingerprint. Every process
rebuilds from it the same job with the same callables, and trains. Run as
``python -m deepen.workflow.training.processes ORDER`` it is one of those processes.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.errors import DeepenError, RunError
from deepen.formats.files.atomic import write_json
from deepen.formats.manifest import InputEntry, Manifest, StageJob, open_artifact, read_manifest
from deepen.model.config import RandomInit, ResolvedBase
from deepen.parallel.processes.environment import Started, read_environment
from deepen.parallel.processes.gang import Gang, gathered, process_name
from deepen.parallel.processes.launch import OUTCOMES, final_outcome, launch, processes_here
from deepen.parallel.processes.outcome import cause, outcome_of, read_outcomes, write_outcome
from deepen.progress import say
from deepen.recipe.reading import load
from deepen.settings import Settings

if TYPE_CHECKING:
    from deepen.workflow.setup import Setup

FOLDER = ".processes"
"""Folder in a run where its processes find their order and leave how they ended."""


class TrainOrder(Settings):
    """All that a process needs to train beside others."""

    run: str
    """The run directory; it holds recipe and machine file, every default written out."""
    out: str
    fingerprint: str
    inputs: dict[str, str]
    """Directories of the finished stages by name."""
    raw_inputs: dict[str, InputEntry]
    seed: int
    identity: dict[str, Any]
    core: str | None = None
    marks: dict[str, str] = {}
    base_name: str
    base_path: str | None
    base_init: RandomInit | None
    base_fingerprint: str


def train_together(setup: Setup, job: StageJob) -> Manifest:
    """Train with as many processes as the machine file asks for; the manifest is that of rank 0.

    Beside others already (``setup.gang``): tell them, and be rank 0. Alone: start them, or do without where one is
    enough.
    """
    from deepen.workflow.training.here import train_here

    machine = setup.machine
    num_local = 1 if setup.gang is not None else processes_here(machine.mesh, machine.launch, machine.compute)
    if setup.gang is None and num_local == 1:
        return train_here(setup, job)
    run = job.out.parent.resolve()
    folder = run / FOLDER / f"{os.getpid()}-{time.time_ns()}"
    order = folder / "order.json"
    write_json(order, order_of(setup, job, run).model_dump(mode="json"))
    try:
        if setup.gang is not None:
            setup.gang.announce(str(order))
            return train_here(setup, job)
        say(f"train: starting {num_local} processes")
        launch(("-m", "deepen.workflow.training.processes", str(order)), num_local, machine.launch, folder)
    finally:
        if setup.gang is None:
            shutil.rmtree(folder, ignore_errors=True)
    made = read_manifest(job.out)
    assert made is not None, "the processes of a training ended well without a manifest"
    return made


def order_of(setup: Setup, job: StageJob, run: Path) -> TrainOrder:
    """The order for the other processes of this training."""
    base = setup.base
    return TrainOrder(
        run=str(run),
        out=str(job.out.resolve()),
        fingerprint=job.fingerprint,
        inputs={name: str(artifact.path.resolve()) for name, artifact in job.inputs.items()},
        raw_inputs=dict(job.raw_inputs),
        seed=job.seed,
        identity=dict(job.identity or {}),
        core=job.core,
        marks=dict(job.marks),
        base_name=base.name,
        base_path=str(base.path.resolve()) if base.path is not None else None,
        base_init=base.init,
        base_fingerprint=base.fingerprint,
    )


def carry_out(file: Path) -> Manifest:
    """Train as the order in ``file`` says, beside the other processes that do the same."""
    from deepen.workflow.setup import Setup
    from deepen.workflow.training.here import train_here

    order = TrainOrder.model_validate_json(file.read_bytes(), strict=False)
    loaded = load(Path(order.run))
    base = ResolvedBase(
        order.base_name,
        Path(order.base_path) if order.base_path is not None else None,
        order.base_init,
        order.base_fingerprint,
    )
    inputs = {}
    for name, path in order.inputs.items():
        artifact = open_artifact(Path(path))
        if artifact is None:
            raise RunError(f"`{path}` is not there", hint="all nodes need the run under the same path")
        inputs[name] = artifact
    setup = Setup(loaded.recipe, loaded.machine, base, loaded.recipe.ingest, order.raw_inputs)
    job = StageJob(
        out=Path(order.out),
        fingerprint=order.fingerprint,
        inputs=inputs,
        raw_inputs=order.raw_inputs,
        seed=order.seed,
        identity=order.identity,
        core=order.core,
        marks=order.marks,
    )
    return train_here(setup, job)


@contextmanager
def together(run: Path) -> Iterator[Gang | None]:
    """The processes of the launcher that started this one, for a command on ``run``; None when it was started alone.

    They all must see the same ``run``. An error is told with the rank and host that it happened on; one that another
    start would only meet again is met again at once.
    """
    started = read_environment()
    if started is None:
        yield None
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _die_with_parent()
    name, restarts = process_name(started.rank), _restarts()
    name_of_launch = os.environ.get("TORCHELASTIC_RUN_ID") or os.environ.get("SLURM_JOB_ID") or "launcher"
    folder = launch_folder(run, name_of_launch)
    try:
        with gathered(started) as gang:
            gang.check_storage(run / FOLDER)
            _meet_again(folder, started, restarts)
            yield gang
    except Exception as error:
        write_outcome(folder, outcome_of(error, name, started.rank, restarts))
        if isinstance(error, DeepenError):
            error.message = f"{name}: {error.message}"
        raise


def launch_folder(run: Path, identity: str) -> Path:
    """Where the processes that a launcher started for ``run`` leave how they ended."""
    return run.resolve() / FOLDER / f"by-{identity}"


def _meet_again(folder: Path, started: Started, restarts: int) -> None:
    """Raise what ended an earlier start for good; a first start forgets what earlier launches left."""
    if restarts == 0:
        if started.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        return
    final = final_outcome(folder)
    if final is not None:
        raise DeepenError(f"it would fail again: {final.name}: {final.message}", hint=final.hint)


def follow(gang: Gang) -> None:
    """Be one of the processes beside rank 0: wait for its order, train, and leave."""
    order = gang.wait_for_order()
    if order is not None:
        carry_out(Path(order))


def main() -> None:
    """Be one process of a training that ``deepen`` started on this machine: ``worker ORDER``."""
    _die_with_parent()
    started = read_environment()
    assert started is not None, "a worker is started with the variables of torchrun"
    folder, restarts = Path(os.environ[OUTCOMES]), _restarts()
    if restarts and final_outcome(folder) is not None:
        return
    if restarts and started.rank == 0:
        why = cause([outcome for outcome in read_outcomes(folder) if outcome.restarts == restarts - 1])
        known = why is not None and not why.is_echo
        reason = f"{why.name}: {why.message}" if why is not None and known else "a process was killed or lost"
        say(f"train: all processes start again ({restarts}) after {reason}")
    try:
        carry_out(Path(sys.argv[1]))
    except Exception as error:
        outcome = outcome_of(error, process_name(started.rank), started.rank, restarts)
        write_outcome(folder, outcome)
        sys.stderr.flush()
        os._exit(outcome.exit_code)  # an orderly end would wait for partners that are gone


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _die_with_parent() -> None:
    """Be killed when the agent that watches this process is: nobody would end it when its partners die."""
    parent = os.getppid()
    with_parent = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(with_parent, int(signal.SIGKILL))
    if os.getppid() != parent or parent == 1:
        os._exit(1)


if __name__ == "__main__":
    main()
