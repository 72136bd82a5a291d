"""One process of a training that has several: it finds its order, rebuilds the job from it, and trains with the others.

Run as ``python -m deepen.workflow.training.worker ORDER``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from deepen.errors import RunError
from deepen.formats.manifest import Manifest, StageJob, open_artifact
from deepen.model.config import ResolvedBase
from deepen.parallel.processes.environment import die_with_parent, num_restarts, read_environment
from deepen.parallel.processes.gang import Gang, process_name
from deepen.parallel.processes.launch import OUTCOMES, final_outcome
from deepen.parallel.processes.outcome import cause, outcome_of, read_outcomes, write_outcome
from deepen.progress import say
from deepen.recipe.reading import load
from deepen.workflow.setup import Setup
from deepen.workflow.stages import train_here
from deepen.workflow.training.processes import TrainOrder


def carry_out(file: Path) -> Manifest:
    """Train as the order in ``file`` says, beside the other processes that do the same."""
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


def follow(gang: Gang) -> None:
    """Be one of the processes beside rank 0: wait for its order, train, and leave."""
    order = gang.wait_for_order()
    if order is not None:
        carry_out(Path(order))


def main() -> None:
    """Be one process of a training that ``deepen`` started on this machine: ``worker ORDER``."""
    die_with_parent()
    started = read_environment()
    assert started is not None, "a worker is started with the variables of torchrun"
    folder, restarts = Path(os.environ[OUTCOMES]), num_restarts()
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


if __name__ == "__main__":
    main()
