"""Before the first step: can the checkpoints of this run be written where they are to lie, and read back?

A whole checkpoint (with stand-ins for the moments, which do not exist yet) goes to the run's own folder and comes back;
every bit is compared. It costs one save and one load, and finds a disk that lies, a full one, a weight of a kind that
cannot be stored, or a part of the state that saving forgets, before days of work depend on it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from deepen.errors import DeepenError, TrainingError
from deepen.formats.training.checkpoints import CheckpointInfo
from deepen.model.weights.pieces import local_part
from deepen.parallel.process import Process
from deepen.progress import readable, say
from deepen.train.checkpoints.files import Marks, Snapshot, load_checkpoint, snapshot_of, write_checkpoint
from deepen.train.run import CHECKPOINTS, Run

_FOLDER = "self-test"


def self_test(run: Run) -> None:
    """Save the state of ``run`` before its first step, overwrite it, load it and compare every bit.

    Afterwards the run is as it was. Raises ``TrainingError`` when something does not come back as it went.
    """
    started = time.perf_counter()
    folder = run.out / CHECKPOINTS / _FOLDER
    model, optimizer, process = run.trainee.model.model, run.trainee.optimizer, run.trainee.process
    with _stand_ins(optimizer), _removed_afterwards(folder, process):
        whole = snapshot_of(model, optimizer, {"step": 0, "fingerprint": run.fingerprint}, Marks())
        _check_complete(model, whole)
        # Hashes and no copies: a second state may not fit into memory, least of all on a GPU.
        before = digests(whole)
        snapshot, shards = run.saver.take(model, optimizer, whole.state, whole.marks), run.saver.shards
        try:
            info = write_checkpoint(folder, snapshot) if shards is None else shards.write_into(folder, snapshot)
            _forget_pages(info)
            _overwrite(whole, optimizer)
            process.barrier()
            load_checkpoint(info, model, optimizer, process.rank)
        except (OSError, KeyError, DeepenError, SafetensorError) as error:
            raise _unfit(folder, f"it failed with {type(error).__name__}: {error}") from error
        after = digests(snapshot_of(model, optimizer, {"step": 0}, Marks()))
        differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if differing:
            raise _unfit(folder, f"{len(differing)} of {len(before)} tensors came back different, {differing[0]} first")
    seconds = time.perf_counter() - started
    say(f"train: a checkpoint of {readable(snapshot.num_bytes)} bytes was written and read back in {seconds:.1f} s")


def digests(snapshot: Snapshot) -> dict[str, str]:
    """A hash of the bytes, shape and precision of every tensor, or of what this process has of it."""
    tensors = {**snapshot.weights, **{f"optimizer/{name}": tensor for name, tensor in snapshot.optimizer.items()}}
    return {name: digest_of(local_part(tensor)) for name, tensor in tensors.items()}


def digest_of(tensor: Tensor) -> str:
    """A hash of the bytes, shape and precision of one tensor."""
    # Compared as bytes: NaN equals itself then, and -0.0 is not 0.0.
    plain = tensor.cpu().contiguous().reshape(-1)
    hashed = xxhash.xxh3_128_hexdigest(plain.view(torch.uint8).numpy().data) if plain.numel() else ""
    return f"{hashed} {tuple(tensor.shape)} {tensor.dtype}"


@contextmanager
def _stand_ins(optimizer: Optimizer) -> Iterator[None]:
    """Moments as the first step will make them, of numbers that are easily told from zeros; gone afterwards."""
    assert not optimizer.state, "the self-test is for a run that has not begun"
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            weights = parameter.detach()
            step = torch.tensor(7.0, device=parameter.device)
            optimizer.state[parameter] = {"step": step, "exp_avg": weights * 0.5, "exp_avg_sq": weights.square()}
    try:
        yield
    finally:
        optimizer.state.clear()


@contextmanager
def _removed_afterwards(folder: Path, process: Process) -> Iterator[None]:
    with process.main_first():
        if process.is_main:
            shutil.rmtree(folder, ignore_errors=True)  # of a start that was killed in its test
    try:
        yield
        process.barrier()  # until all have read it
    finally:
        if process.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _check_complete(model: nn.Module, snapshot: Snapshot) -> None:
    stored = {id(tensor) for tensor in snapshot.weights.values()}
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    missing = [name for name, parameter in trained if id(parameter) not in stored]
    if missing:
        raise TrainingError(
            f"self-test of checkpoints: {len(missing)} trained weights would not be saved, {missing[0]} first",
            hint="please report this with the name of the base",
        )


def _forget_pages(info: CheckpointInfo) -> None:
    """Let the system drop what it remembers of the files, so that reading asks the disk (where it can be asked to)."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in info.path.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            # Drops clean pages only, and these are: the files were synced as they were written.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


@torch.no_grad()
def _overwrite(snapshot: Snapshot, optimizer: Optimizer) -> None:
    """Leave nothing of the state in memory that loading could be mistaken for having brought."""
    for tensor in snapshot.weights.values():
        local_part(tensor).zero_()
    optimizer.state.clear()


def _unfit(folder: Path, why: str) -> TrainingError:
    return TrainingError(
        f"self-test of checkpoints in `{folder.parent}`: a checkpoint was written and read back, and {why}",
        hint="check disk and file system (room, quota, errors in the system's log), or train in another folder; "
        "`train.save.self_test: false` starts without this test",
    )
