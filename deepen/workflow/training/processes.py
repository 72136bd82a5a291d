"""Training in several processes: started here, or by torchrun, ``accelerate launch`` or ``srun``.

One process makes the data stages and writes the order: which run, which inputs, under which fingerprint. Every process
rebuilds from it the same job with the same callables, and trains (``worker.py``).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepen.errors import DeepenError
from deepen.formats.files.atomic import write_json
from deepen.formats.manifest import InputEntry, Manifest, StageJob, read_manifest
from deepen.model.config import RandomInit
from deepen.parallel.processes.environment import die_with_parent, num_restarts, read_environment
from deepen.parallel.processes.gang import Gang, gathered, process_name
from deepen.parallel.processes.launch import launch, processes_here, refuse_what_would_fail_again
from deepen.parallel.processes.outcome import outcome_of, write_outcome
from deepen.progress import say
from deepen.settings import Settings
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


def train_together(setup: Setup, job: StageJob, train_here: Callable[[Setup, StageJob], Manifest]) -> Manifest:
    """Train with as many processes as the machine file asks for; the manifest is that of rank 0.

    Beside others already (``setup.gang``): tell them, and be rank 0. Alone: start them, or do without where one is
    enough. ``train_here`` is what each process does.
    """
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
        launch(("-m", "deepen.workflow.training.worker", str(order)), num_local, machine.launch, folder)
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
        die_with_parent()
    name, restarts = process_name(started.rank), num_restarts()
    name_of_launch = os.environ.get("TORCHELASTIC_RUN_ID") or os.environ.get("SLURM_JOB_ID") or "launcher"
    folder = launch_folder(run, name_of_launch)
    try:
        with gathered(started) as gang:
            gang.check_storage(run / FOLDER)
            refuse_what_would_fail_again(folder, started, restarts)
            yield gang
    except Exception as error:
        write_outcome(folder, outcome_of(error, name, started.rank, restarts))
        if isinstance(error, DeepenError):
            error.message = f"{name}: {error.message}"
        raise


def launch_folder(run: Path, identity: str) -> Path:
    """Where the processes that a launcher started for ``run`` leave how they ended."""
    return run.resolve() / FOLDER / f"by-{identity}"
