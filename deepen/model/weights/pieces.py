"""Tensors that lie in pieces: over processes (DTensor) and over files. A piece is a box of its tensor.

Every way from one layout to another is the same few lines: the box that a process needs is put together from the
boxes that files have, and nothing else is read. So a checkpoint of any mesh loads into any other, and weights go from a
base's files into shards without ever being whole in any process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from deepen.errors import DamageError
from deepen.formats.training.checkpoints import LAYOUT

_INDEX = ".index.json"
_MAPPED_BYTES = 64 * 2**20
"""How much is read of files before they are opened anew: what was read of a mapped file counts as memory until then."""


@dataclass(frozen=True)
class Box:
    """A part of a tensor: from ``offset``, of ``shape``; one number for each dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Numbers in it."""
        return torch.Size(self.shape).numel()

    @property
    def slices(self) -> tuple[slice, ...]:
        """For indexing the whole tensor."""
        return tuple(slice(start, start + size) for start, size in zip(self.offset, self.shape, strict=True))

    def within(self, other: Box) -> Box:
        """The same part, counted from where ``other`` begins."""
        offset = tuple(start - begin for start, begin in zip(self.offset, other.offset, strict=True))
        return Box(offset, self.shape)

    def overlap(self, other: Box) -> Box | None:
        """What both have; None when that is nothing."""
        start = tuple(map(max, self.offset, other.offset))
        end = tuple(
            min(a + n, b + m) for a, n, b, m in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        )
        shape = tuple(stop - begin for begin, stop in zip(start, end, strict=True))
        return Box(start, shape) if all(size > 0 for size in shape) else None


def whole(tensor: Tensor) -> Box:
    """All of a tensor."""
    return Box((0,) * tensor.ndim, tuple(tensor.shape))


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, sharing its memory: itself, unless it is a DTensor."""
    plain: Tensor = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
    return plain.detach()


def local_box(tensor: Tensor) -> Box:
    """Where in the whole tensor the part of this process lies.

    Dimensions are cut as ``torch.chunk`` cuts. Where FSDP cut what tensor parallelism had cut before
    (``_StridedShard``), the cut that was made first, which the placements name last, is followed first.
    """
    if not isinstance(tensor, DTensor):
        return whole(tensor)
    mesh: DeviceMesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None, "a process holds a part of a tensor whose mesh it is not in"
    cuts = [(number, placement) for number, placement in enumerate(tensor.placements) if hasattr(placement, "dim")]
    offset, shape = [0] * tensor.ndim, list(tensor.shape)
    for number, placement in sorted(cuts, key=lambda cut: hasattr(cut[1], "split_factor")):
        parts, which, dim = mesh.size(number), coordinate[number], placement.dim % tensor.ndim
        # Of 5 rows over 4 processes these are 2, 2, 1 and 0.
        size = -(-shape[dim] // parts)
        start = min(which * size, shape[dim])
        offset[dim] += start
        shape[dim] = min(size, shape[dim] - start)
    box = Box(tuple(offset), tuple(shape))
    assert tuple(tensor._local_tensor.shape) == box.shape, (
        f"{tensor.placements} give {box}, not {tensor._local_tensor.shape}"
    )
    return box


@dataclass(frozen=True)
class Piece:
    """A box of a tensor in a file, under the tensor's name."""

    file: str
    box: Box


@dataclass(frozen=True)
class Described:
    """A stored tensor: its whole shape and where its pieces are."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


class StoredTensors:
    """Tensors in safetensors files, read box by box; for ``with``, which closes the files.

    ``file`` is where the tensors would be if they were whole; beside it may lie a ``layout.json`` of pieces, or, as in
    folders of Hugging Face, an index of several files.
    """

    def __init__(self, file: Path) -> None:
        """Raises ``DamageError`` when there is nothing to read."""
        self.folder, self.file = file.parent, file
        self._open: dict[str, Any] = {}
        self._bytes_read = 0
        self._stack = ExitStack()
        try:
            self.tensors = self._find()
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            self._stack.close()
            raise DamageError(f"`{file}` cannot be read: {error}", hint="put it back, or remove its folder") from error

    def _find(self) -> dict[str, Described]:
        layout = self.folder / LAYOUT
        if layout.is_file():
            return read_layout(json.loads(layout.read_bytes())["files"][self.file.name])
        index = self.file.with_name(self.file.name + _INDEX)
        if self.file.is_file() or not index.is_file():
            return self._whole(dict.fromkeys(self._file(self.file.name).keys(), self.file.name))
        return self._whole(json.loads(index.read_bytes())["weight_map"])

    def _whole(self, files: Mapping[str, str]) -> dict[str, Described]:
        found = {}
        for name, file in files.items():
            shape = tuple(self._file(file).get_slice(name).get_shape())
            found[name] = Described(shape, (Piece(file, Box((0,) * len(shape), shape)),))
        return found

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = self._stack.enter_context(safe_open(self.folder / name, framework="pt"))
        return self._open[name]

    def read(self, name: str, box: Box | None = None) -> Tensor:
        """A box of a tensor (or all of it), in the precision it is stored in; raises ``DamageError`` if not all of it
        is there."""
        if self._bytes_read > _MAPPED_BYTES:
            self._close()
        stored = self.tensors[name]
        box = box or Box((0,) * len(stored.shape), stored.shape)
        # A single number has no slices, and is never cut.
        if not box.shape:
            return self._cut(stored.pieces[0].file, name, box).clone()
        out: Tensor | None = None
        found = 0
        for piece in stored.pieces:
            common = box.overlap(piece.box)
            if common is None:
                continue
            part = self._cut(piece.file, name, common.within(piece.box))
            out = torch.empty(box.shape, dtype=part.dtype) if out is None else out
            out[common.within(box).slices] = part
            # Pieces do not overlap, each having one owner: a sum that falls short means a hole.
            found += common.num_elements
        if found < box.num_elements:
            raise DamageError(f"`{self.file}` does not have all of `{name}`", hint="remove its folder")
        return torch.empty(box.shape) if out is None else out

    def _cut(self, file: str, name: str, box: Box) -> Tensor:
        try:
            opened = self._file(file)
            part: Tensor = opened.get_slice(name)[box.slices] if box.shape else opened.get_tensor(name)
            self._bytes_read += part.numel() * part.element_size()
        except (OSError, SafetensorError) as error:
            raise DamageError(f"`{self.folder / file}` cannot be read: {error}") from error
        return part

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        self._open.clear()
        self._stack.close()
        self._bytes_read = 0


@torch.no_grad()
def fill(tensor: Tensor, stored: StoredTensors, name: str) -> None:
    """Put what this process has of ``tensor`` in from files; raises ``DamageError`` when shapes differ."""
    found = stored.tensors[name].shape
    if found != tuple(tensor.shape):
        raise DamageError(f"`{name}` in `{stored.file}` has shape {found}, not {tuple(tensor.shape)}")
    box = local_box(tensor)
    if box.num_elements:
        local_part(tensor).copy_(stored.read(name, box))


def layout_of(described: Mapping[str, Described]) -> dict[str, Any]:
    """Tensors in pieces as JSON: ``{name: {shape, pieces: [[file, offset, shape], ...]}}``."""
    return {
        name: {
            "shape": list(stored.shape),
            "pieces": [[piece.file, list(piece.box.offset), list(piece.box.shape)] for piece in stored.pieces],
        }
        for name, stored in described.items()
    }


def read_layout(values: Mapping[str, Any]) -> dict[str, Described]:
    """The reverse of ``layout_of``."""
    return {
        name: Described(
            tuple(stored["shape"]),
            tuple(Piece(file, Box(tuple(offset), tuple(shape))) for file, offset, shape in stored["pieces"]),
        )
        for name, stored in values.items()
    }
