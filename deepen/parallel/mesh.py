"""The grid of processes as arithmetic: sizes, places and groups, and which grids cannot work. No torch.

Ranks count through (pipeline, replicate, shard, context, tensor) with the last fastest, so that the processes that talk
most are neighbours: tensor groups first, then context, then the shards of one copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from deepen.errors import Problem
from deepen.formats.architecture import Architecture, architecture_from_config
from deepen.parallel.axes.families import CONTEXT, PIPELINE, TENSOR
from deepen.parallel.config import Mesh

DIMENSIONS = ("pipeline", "replicate", "shard", "context", "tensor")


@dataclass(frozen=True)
class Grid:
    """Numbers along the dimensions: the sizes of the grid, or the place of one process in it."""

    pipeline: int = 1
    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1

    @property
    def numbers(self) -> tuple[int, ...]:
        """In the order of ``DIMENSIONS``."""
        return tuple(getattr(self, name) for name in DIMENSIONS)

    @property
    def num_processes(self) -> int:
        """Processes of a grid with these sizes."""
        return self.pipeline * self.replicate * self.shard * self.context * self.tensor

    @property
    def num_data(self) -> int:
        """Processes that each take rows of their own."""
        return self.replicate * self.shard

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are split over shard x context."""
        return self.shard > 1

    def __str__(self) -> str:
        sizes = [f"{field.name} {getattr(self, field.name)}" for field in fields(self) if getattr(self, field.name) > 1]
        return ", ".join(sizes) or "one process"


def fixed_processes(mesh: Mesh) -> int:
    """Processes that all dimensions but an automatic ``shard`` ask for."""
    shard = 1 if mesh.shard == "auto" else mesh.shard
    return mesh.replicate * shard * mesh.context * mesh.tensor * mesh.pipeline


def num_processes(mesh: Mesh, available: int) -> int:
    """Processes to start where ``available`` devices are free: all of them, in whole groups, if ``shard`` is ``auto``.

    At least what the other dimensions ask for.
    """
    fixed = fixed_processes(mesh)
    return fixed if mesh.shard != "auto" else fixed * max(1, available // fixed)


def grid_of(mesh: Mesh, world_size: int) -> Grid:
    """The sizes for ``world_size`` processes; raises ``ValueError`` for a number that ``problems`` refuses."""
    fixed = fixed_processes(mesh)
    if world_size % fixed or (mesh.shard != "auto" and world_size != fixed):
        raise ValueError(f"{world_size} processes do not fill a mesh of {fixed}")
    shard = world_size // fixed if mesh.shard == "auto" else mesh.shard
    return Grid(mesh.pipeline, mesh.replicate, shard, mesh.context, mesh.tensor)


def coordinates(sizes: Grid, rank: int) -> Grid:
    """Where process ``rank`` stands, each number from 0."""
    numbers = []
    # The last dimension counts fastest: it is the first remainder.
    for size in reversed(sizes.numbers):
        rank, number = divmod(rank, size)
        numbers.append(number)
    return Grid(*reversed(numbers))


def groups_along(sizes: Grid, *dimensions: str) -> list[list[int]]:
    """Groups of ranks that differ in nothing but ``dimensions``, each in the order of its ranks."""
    kept = [name for name in DIMENSIONS if name not in dimensions]
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank, numbers in enumerate(product(*map(range, sizes.numbers))):
        place = dict(zip(DIMENSIONS, numbers, strict=True))
        groups.setdefault(tuple(place[name] for name in kept), []).append(rank)
    return list(groups.values())


def data_index(sizes: Grid, here: Grid) -> int:
    """Which share of a batch's rows belongs to a process: 0 to ``sizes.num_data - 1``."""
    return here.replicate * sizes.shard + here.shard


def problems(mesh: Mesh, *, world_size: int) -> list[Problem]:
    """Everything about a mesh that cannot work with so many processes."""
    return [*_size_problems(mesh, world_size), *combination_problems(mesh)]


def model_problems(mesh: Mesh, config: Mapping[str, Any], sequence_lengths: Iterable[int]) -> list[Problem]:
    """Everything about a mesh that cannot work with the model of this ``config.json`` and rows of these lengths."""
    found = list(_family_problems(mesh, str(config.get("model_type"))))
    with suppress(KeyError, TypeError):  # of a shape that we cannot read, only the family is known
        found += _shape_problems(mesh, architecture_from_config(config))
    for length in sorted(set(sequence_lengths)):
        found += _length_problems(mesh, length)
    return found


def combination_problems(mesh: Mesh) -> Iterator[Problem]:
    """Dimensions of a mesh that do not go together."""
    for name in ("context", "tensor"):
        size = getattr(mesh, name)
        if mesh.pipeline > 1 and size > 1:
            message = f"stages of a pipeline share neither rows nor matrices (`mesh.{name}: {size}`)"
            yield Problem("mesh.pipeline", message, f"use `{name}: 1`, or `pipeline: 1`", str(mesh.pipeline))
    if mesh.pipeline > 1 and mesh.offload:
        yield Problem("mesh.pipeline", "does not go with `mesh.offload`", "use one of them", str(mesh.pipeline))


def _size_problems(mesh: Mesh, world_size: int) -> Iterator[Problem]:
    fixed = fixed_processes(mesh)
    if mesh.shard != "auto" and world_size != fixed:
        rest = fixed // mesh.shard
        remedy = f"start {fixed} processes"
        if world_size % rest == 0:
            remedy += f", or set `mesh.shard: {world_size // rest}` or `auto`"
        yield Problem("mesh", f"needs {fixed} processes, there are {world_size}", remedy)
    elif world_size % fixed:
        below, above = world_size // fixed * fixed, (world_size // fixed + 1) * fixed
        counts = " or ".join(str(count) for count in (below, above) if count)
        message = f"needs a multiple of {fixed} processes, there are {world_size}"
        yield Problem("mesh", message, f"start {counts}, or make replicate, context, tensor or pipeline smaller")


def _family_problems(mesh: Mesh, model_type: str) -> Iterator[Problem]:
    for name, known in (("tensor", TENSOR), ("context", CONTEXT), ("pipeline", PIPELINE)):
        size = getattr(mesh, name)
        if size > 1 and model_type not in known:
            message = f"`{model_type}` is not among the families that can be spread so: {', '.join(sorted(known))}"
            yield Problem(f"mesh.{name}", message, f"use `shard` and `{name}: 1`", str(size))


def _shape_problems(mesh: Mesh, architecture: Architecture) -> Iterator[Problem]:
    heads, kv_heads = architecture.num_heads, architecture.num_kv_heads
    counts = (heads, kv_heads, architecture.intermediate_size)
    if any(count % mesh.tensor for count in counts):
        valid = [size for size in range(1, kv_heads + 1) if not any(count % size for count in counts)]
        message = f"does not divide {heads} heads, {kv_heads} key-value heads and a feed-forward of {counts[2]:,}"
        yield Problem("mesh.tensor", message, _nearest(valid, mesh.tensor), str(mesh.tensor))
    if mesh.pipeline > architecture.num_layers:
        message = f"there are {architecture.num_layers} layers, each process needs one at least"
        yield Problem("mesh.pipeline", message, f"at most {architecture.num_layers}", str(mesh.pipeline))


def _length_problems(mesh: Mesh, length: int) -> Iterator[Problem]:
    parts = 2 * mesh.context
    if mesh.context > 1 and length % parts:
        valid = [size for size in range(1, length // 2 + 1) if size == 1 or length % (2 * size) == 0]
        message = f"rows of {length:,} tokens do not divide into {parts} equal parts (two for each process)"
        yield Problem("mesh.context", message, _nearest(valid, mesh.context), str(mesh.context))


def _nearest(valid: list[int], asked: int) -> str:
    below = max((size for size in valid if size < asked), default=None)
    above = min((size for size in valid if size > asked), default=None)
    return "use " + " or ".join(str(size) for size in (below, above) if size is not None)
