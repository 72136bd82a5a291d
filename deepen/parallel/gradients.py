"""Gradients of processes that hold whole copies are added up here, and every layout's gradients are clipped here.

FSDP adds up its own gradients while backward runs; for whole copies it is one all-reduce per bucket afterwards, which
needs no wrapper, so that checkpoints, frozen weights and adapters see an ordinary model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from deepen.parallel.process import Process

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
    for bucket in _buckets([local(gradient) for gradient in gradients]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        pending.append((dist.all_reduce(flat, group=group, async_op=True), flat, bucket))
    for work, flat, bucket in pending:
        if work is not None:
            work.wait()
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(into) for part, into in zip(parts, bucket, strict=True)])


def _buckets(gradients: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    """Gradients of one dtype, about ``_BUCKET_BYTES`` at a time."""
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        bucket: list[Tensor] = []
        for gradient in gradients:
            if gradient.dtype != dtype:
                continue
            bucket.append(gradient)
            if sum(member.nbytes for member in bucket) >= _BUCKET_BYTES:
                yield bucket
                bucket = []
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
    square = torch.zeros((), dtype=torch.float64, device=process.device)
    for groups in sorted(shards, key=len):
        norms = torch.stack(torch._foreach_norm(shards[groups], 2.0, dtype=_wide(shards[groups][0])))
        part = norms.double().square().sum().to(process.device)
        for group in groups:
            dist.all_reduce(part, group=group)
        square += part
    if process.mesh.sizes.pipeline > 1:
        dist.all_reduce(square, group=process.mesh.devices.get_group("pipeline"))
    dist.broadcast(square, src=0)  # the same bits everywhere, since decisions hang on them
    norm = math.sqrt(float(square)) if square.isfinite() else float(square)
    if norm > largest_norm:
        for members in (*shards.values(), [local(gradient) for gradient in repeated]):
            if members:
                torch._foreach_mul_(members, largest_norm / (norm + 1e-6))
    return norm


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
