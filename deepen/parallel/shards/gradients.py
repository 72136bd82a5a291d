"""Gradients of processes that hold whole copies are added up here, and every layout's gradients are clipped here.

FSDP adds up its own gradients while backward runs; for whole copies it is one all-reduce per bucket afterwards, which
needs no wrapper, so that checkpoints, frozen weights and adapters see an ordinary model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from deepen.parallel.process import Process, ProcessMesh

T = TypeVar("T", bound=Tensor)

_BUCKET_BYTES = 64 * 2**20
"""Gradients that are added up in one go: large enough for the network's full speed, small beside a model."""


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its shard of a DTensor, an ordinary tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """The mesh over which a tensor is cut, None of an ordinary one; no operation takes tensors of several meshes."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


@torch.no_grad()
def add_up(gradients: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Replace gradients by their sums over ``group``, bucket by bucket, in place."""
    if group.size() == 1:
        return
    pending: list[tuple[dist.Work | None, Tensor, list[Tensor]]] = []
    for bucket in buckets([local(gradient) for gradient in gradients]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        # All are sent before the first is waited for, so that the network never idles.
        # The price is a second copy of the gradients until they are back.
        pending.append((dist.all_reduce(flat, group=group, async_op=True), flat, bucket))
    for work, flat, bucket in pending:
        if work is not None:
            work.wait()
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(into) for part, into in zip(parts, bucket, strict=True)])


def buckets(tensors: Sequence[T]) -> Iterator[list[T]]:
    """Gradients, or the parameters that have them, of one dtype, about ``_BUCKET_BYTES`` at a time."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[T] = []
        num_bytes = 0
        for tensor in tensors:
            if tensor.dtype != dtype:
                continue
            bucket.append(tensor)
            num_bytes += local(tensor).nbytes
            if num_bytes >= _BUCKET_BYTES:
                yield bucket
                bucket, num_bytes = [], 0
        if bucket:
            yield bucket


@torch.no_grad()
def clip_spread(
    gradients: Sequence[Tensor], largest_norm: float, process: Process, repeated: Sequence[Tensor] = ()
) -> float:
    """Scale gradients of any layout down to ``largest_norm`` if they are longer together; returns the norm before.

    Each number counts once: squares are added up over the mesh dimensions along which a gradient is cut, and over the
    stages of a pipeline, not over those along which it is repeated. ``repeated``: those that another stage counts.
    """
    assert process.mesh is not None, "a process alone has no mesh"
    shards: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = {}
    for gradient in gradients:
        if not any(gradient is other for other in repeated):
            shards.setdefault(_cut_along(gradient), []).append(local(gradient))
    squares = {
        # In fp32 at least: norms rounded to bfloat16 would be right to 0.4 % only.
        groups: torch.stack(torch._foreach_norm(members, 2.0, dtype=_wide(members[0]))).double().square().sum()
        for groups, members in shards.items()
    }
    square = _over_shards(squares, torch.zeros((), dtype=torch.float64, device=process.device), process.mesh)
    norm = math.sqrt(float(square)) if square.isfinite() else float(square)
    if norm > largest_norm:
        for members in (*shards.values(), [local(gradient) for gradient in repeated]):
            if members:
                torch._foreach_mul_(members, largest_norm / (norm + 1e-6))
    return norm


@torch.no_grad()
def add_over_shards(parts: Sequence[tuple[Tensor, Tensor]], process: Process) -> Tensor:
    """The sum of what each process found in its shard of some tensors: (tensor, found), all found alike in shape.

    As with the norm of gradients, what is repeated counts once; the sum has the same bits on every process.
    """
    first = parts[0][1]
    if process.mesh is None:
        return torch.stack([found for _, found in parts]).sum(0)
    sums: dict[tuple[dist.ProcessGroup, ...], Tensor] = {}
    for tensor, found in parts:
        groups = _cut_along(tensor)
        sums[groups] = sums[groups] + found if groups in sums else found
    zeros = torch.zeros(first.shape, dtype=first.dtype, device=process.device)
    return _over_shards(sums, zeros, process.mesh)


def _over_shards(sums: dict[tuple[dist.ProcessGroup, ...], Tensor], zeros: Tensor, mesh: ProcessMesh) -> Tensor:
    """Sums of shards, by the groups that these make wholes over, added up over those and over stages."""
    total = zeros
    # In one order everywhere: two processes in two different collectives would wait for each other.
    for groups in sorted(sums, key=len):
        part = sums[groups].to(zeros.device)
        for group in groups:
            dist.all_reduce(part, group=group)
        total += part
    # Stages have weights of their own, each sum of which is whole by now.
    if mesh.sizes.pipeline > 1:
        dist.all_reduce(total, group=mesh.devices.get_group("pipeline"))
    dist.broadcast(total, src=0)  # the same bits everywhere, since decisions hang on them
    return total


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _cut_along(gradient: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """The groups over which the shards of a gradient make up the whole."""
    if not isinstance(gradient, DTensor):
        return ()
    mesh = gradient.device_mesh
    return tuple(
        mesh.get_group(dimension)
        for dimension, placement in enumerate(gradient.placements)
        if not placement.is_replicate() and mesh.size(dimension) > 1  # FSDP over tensor makes a shard of another kind
    )
