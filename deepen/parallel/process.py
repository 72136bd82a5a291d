"""Setting a process up for training or scoring: device, threads, reproducibility, and its group when it has one.

A process is alone unless a mesh is asked for and a launcher started several. Groups are made once per run; every
collective that is no part of the model goes through the few methods here and in ``gradients.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from deepen.errors import RecipeError, RunError
from deepen.formats.files.records import only_read
from deepen.parallel.config import Compute, Mesh
from deepen.parallel.mesh import Grid, coordinates, data_index, grid_of, groups_along, problems
from deepen.parallel.processes.environment import Started, read_environment
from deepen.parallel.processes.gang import meeting_store
from deepen.progress import quiet


@dataclass(frozen=True)
class ProcessMesh:
    """A process's place among others, and the groups that it talks to."""

    settings: Mesh
    sizes: Grid
    here: Grid
    """The coordinates of this process."""
    devices: DeviceMesh
    """(pipeline, replicate, shard, tensor); ``shard`` counts shard x context, over which parameters are split."""
    data: dist.ProcessGroup
    """Processes that differ in their rows only."""
    context: dist.ProcessGroup
    """Processes that share rows."""
    tensor: dist.ProcessGroup
    """Processes that share matrices."""
    gradients: dist.ProcessGroup
    """Processes whose gradients add up: replicate x shard x context."""
    control: dist.ProcessGroup
    """All processes, on CPUs."""

    @property
    def data_index(self) -> int:
        """Which share of a batch's rows is this process's."""
        return data_index(self.sizes, self.here)


@dataclass(frozen=True)
class Process:
    """What this process computes with."""

    device: torch.device
    threads: int
    """CPU threads of matrix products."""
    rank: int = 0
    world_size: int = 1
    mesh: ProcessMesh | None = None
    """None when the process is alone."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and speaks."""
        return self.rank == 0

    @property
    def num_data(self) -> int:
        """Processes among which the rows of a batch are dealt out."""
        return self.mesh.sizes.num_data if self.mesh else 1

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are DTensors of FSDP."""
        return self.mesh is not None and (self.mesh.sizes.is_sharded or self.mesh.settings.offload)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.mesh is not None:
            dist.barrier(self.mesh.control)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let rank 0 run the block before the others do: what it puts in order on the disk they find in order.

        What makes rank 0 fail in the block is left for the others to meet by themselves.
        """
        if not self.is_main:
            self.barrier()
        try:
            yield
        finally:
            if self.is_main:
                self.barrier()

    def from_main(self, value: Any) -> Any:
        """The ``value`` that rank 0 gives, on all processes: what one of them finds out for all."""
        if self.mesh is None:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=0, group=self.mesh.control)
        return told[0]

    def from_all(self, value: Any) -> list[Any]:
        """The values of all processes by rank, on all of them."""
        if self.mesh is None:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.mesh.control)
        return values

    def any_of(self, *yes: bool) -> tuple[bool, ...]:
        """For each question whether any process says yes; clocks and signals differ, and all must do the same."""
        if self.mesh is None:
            return yes
        answers = torch.tensor(yes, dtype=torch.int32)
        dist.all_reduce(answers, dist.ReduceOp.MAX, group=self.mesh.control)
        return tuple(bool(answer) for answer in answers.tolist())


def set_up(compute: Compute, mesh: Mesh | None = None) -> Process:
    """Choose the device, set the number of threads and make results repeatable; raises ``RunError`` without a GPU.

    With ``mesh`` and other processes started beside this one (or offload to the host) it also joins their group; raises
    ``RecipeError`` for a mesh that does not fit their number. The same machine with the same number of threads then
    gives the same bits. On a GPU that means deterministic kernels where they exist (a warning names an operation that
    has none).
    """
    has_gpu = torch.cuda.is_available()
    if compute.device == "cuda" and not has_gpu:
        raise RunError(
            "`device: cuda` was asked for, but there is no GPU that PyTorch can use", hint="use device: auto"
        )
    started = _started(mesh)
    device = torch.device("cuda" if has_gpu and compute.device != "cpu" else "cpu")
    # Cores that this process may use, which in a container or a batch job are fewer than the machine has.
    cores = len(os.sched_getaffinity(0)) // (started.local_world_size if started else 1)
    threads = max(1, cores) if compute.threads == "auto" else compute.threads
    torch.set_num_threads(threads)
    if device.type == "cuda":
        if started is not None:
            # Some launchers show each process its own GPU only.
            device = torch.device("cuda", started.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(device)
        # cuBLAS gives the same bits each time only in a workspace of fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(compute.deterministic, warn_only=True)
        # Filling new memory costs time and changes nothing that is read.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if started is None or mesh is None:
        return Process(device, threads)
    quiet(started.rank != 0)
    only_read(started.rank != 0)
    return Process(device, threads, started.rank, started.world_size, _join(mesh, started, device))


def _started(mesh: Mesh | None) -> Started | None:
    """How this process was started; offload alone needs a group of one."""
    if mesh is None:
        return None
    started = read_environment()
    found = problems(mesh, world_size=started.world_size if started else 1)
    if found:
        raise RecipeError(found)
    return Started(0, 1, 0, 1, "localhost", 0) if started is None and mesh.offload else started


def _join(mesh: Mesh, started: Started, device: torch.device) -> ProcessMesh:
    """Meet the other processes and make the groups, in the same order everywhere."""
    timeout = timedelta(seconds=mesh.timeout_seconds)
    if not dist.is_initialized():
        # gloo beside nccl: what is decided and recorded lies on the CPU.
        _meet(started, "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout)
    sizes = grid_of(mesh, started.world_size)

    def group(*dimensions: str) -> dist.ProcessGroup:
        own: dist.ProcessGroup
        own, _ = dist.new_subgroups_by_enumeration(  # type: ignore[no-untyped-call]
            groups_along(sizes, *dimensions), timeout=timeout
        )
        return own

    ranks = torch.arange(started.world_size).view(
        sizes.pipeline, sizes.replicate, sizes.shard * sizes.context, sizes.tensor
    )
    return ProcessMesh(
        settings=mesh,
        sizes=sizes,
        here=coordinates(sizes, started.rank),
        devices=_with_timeout(
            DeviceMesh(device.type, ranks, mesh_dim_names=("pipeline", "replicate", "shard", "tensor")), timeout
        ),
        data=group("replicate", "shard"),
        context=group("context"),
        tensor=group("tensor"),
        gradients=group("replicate", "shard", "context"),
        control=dist.new_group(backend="gloo", timeout=timeout),
    )


def _with_timeout(devices: DeviceMesh, timeout: timedelta) -> DeviceMesh:
    """The same mesh; the groups that it made for itself would wait half an hour for a process that hangs."""
    for group in devices.get_all_groups():
        dist.distributed_c10d._set_pg_timeout(timeout, group)
    return devices


def _meet(started: Started, backend: str, timeout: timedelta) -> None:
    if started.world_size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, timeout=timeout, store=store, rank=0, world_size=1)
        return
    dist.init_process_group(
        backend, timeout=timeout, store=meeting_store(started), rank=started.rank, world_size=started.world_size
    )


def leave(process: Process) -> None:
    """Part from the other processes, once all of them are here."""
    if process.mesh is not None and dist.is_initialized():
        process.barrier()
        dist.destroy_process_group()


def told_by_main(value: Any) -> Any:
    """``value`` as rank 0 has it, on all processes of a training; alone it is ``value``. All call it together."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision of a run: what ``auto`` means on ``device`` (bf16 where it computes in it, else fp32)."""
    if precision != "auto":
        return precision
    return "bf16" if computes_in_bf16(device) else "fp32"


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 products are faster than fp32 ones: a GPU, or a CPU with instructions for them (AVX512_BF16, AMX).

    Without such instructions bf16 is emulated, which is slow.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in known if hasattr(torch.cpu, name))


def memory_bytes(device: torch.device) -> int:
    """Largest memory use so far: allocated on the GPU, or resident of this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
