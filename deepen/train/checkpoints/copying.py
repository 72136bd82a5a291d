"""A second copy of a run's state, made while training computes, so that a checkpoint can be written from it at leisure.

One block of memory is reused from save to save (on a GPU registered with the driver, so that copies run beside the
computation). It takes as much memory as the checkpoint has bytes; that is the price of not standing still.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepen.train.checkpoints.files import Snapshot

# A view of the block in another dtype must begin at a multiple of that dtype's size; 64 fits all of them.
_ALIGNMENT = 64
_LEAVE_FREE = 0.05
"""Share of the free memory that copying does not touch."""


class StateCopy:
    """Copies snapshots into one reused block of CPU memory."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._registered = False

    def grows_by(self, snapshot: Snapshot) -> int:
        """Bytes of memory that copying ``snapshot`` takes beyond what the block has."""
        return max(0, _block_bytes(snapshot) - self._block.numel())

    def copy(self, snapshot: Snapshot, stream: torch.cuda.Stream | None, may_move: Callable[[], None]) -> Snapshot:
        """A copy of ``snapshot`` on the CPU. Calls ``may_move`` as soon as its tensors may change again.

        With a stream (tensors on a GPU) the copies are put on it, and ``may_move`` is called when all of them are: what
        changes the tensors must wait for the stream, not for this function.
        """
        self._reserve(_block_bytes(snapshot), pin=stream is not None)
        offset, parts = 0, []
        for tensors in (snapshot.weights, snapshot.optimizer):
            targets = {}
            for name, tensor in tensors.items():
                targets[name] = self._target(tensor, offset)
                offset += _padded(tensor)
            parts.append(targets)
        weights, optimizer = parts
        if stream is None:
            _copy_all((snapshot.weights, weights), (snapshot.optimizer, optimizer))
            may_move()
        else:
            with torch.cuda.stream(stream):
                _copy_all((snapshot.weights, weights), (snapshot.optimizer, optimizer))
            # Copies of GPU tensors are only queued, but an update that waits for the stream cannot overtake them.
            # What is on the CPU (an offloaded optimizer) is copied by now, since `_copy` does not queue that.
            may_move()
            # The writer reads the block from the CPU, which knows nothing of streams.
            stream.synchronize()
        return replace(snapshot, weights=weights, optimizer=optimizer)

    def _target(self, tensor: Tensor, offset: int) -> Tensor:
        return self._block[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    def _reserve(self, num_bytes: int, *, pin: bool) -> None:
        """Make the block large enough. PyTorch's own pinned memory is rounded up to a power of two; ours is not."""
        if self._block.numel() >= num_bytes:
            return
        # The old block goes first, so that never both take memory.
        self.free()
        self._block = torch.empty(num_bytes, dtype=torch.uint8)
        if pin:
            code = _cuda_runtime().cudaHostRegister(self._block.data_ptr(), num_bytes, 0)
            self._registered = int(code) == 0  # without it copies are slower, and no less right

    def free(self) -> None:
        """Give the memory back."""
        if self._registered:
            _cuda_runtime().cudaHostUnregister(self._block.data_ptr())
            self._registered = False
        self._block = torch.empty(0, dtype=torch.uint8)


def _cuda_runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _padded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _block_bytes(snapshot: Snapshot) -> int:
    return sum(_padded(tensor) for tensor in (*snapshot.weights.values(), *snapshot.optimizer.values()))


def _copy_all(*pairs: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> None:
    for sources, targets in pairs:
        for name, source in sources.items():
            _copy(source.detach(), targets[name])


def _copy(source: Tensor, target: Tensor) -> None:
    """Copy one tensor: with numpy between CPU tensors, since PyTorch would start a second team of threads beside the
    one that computes; numpy's copy is one thread's, and lets other Python threads run."""
    if source.device.type == "cpu" and source.is_contiguous() and source.numel():
        # As bytes: numpy has no bfloat16.
        np.copyto(target.view(-1).view(torch.uint8).numpy(), source.reshape(-1).view(torch.uint8).numpy())
    else:
        # A GPU's copy is queued on the present stream: the CPU waits for all of them together, later.
        target.copy_(source, non_blocking=True)


def fits_into_memory(num_bytes: int) -> bool:
    """Whether this much more memory is free, in the machine and in the container that the process runs in."""
    return num_bytes <= available_memory_bytes() * (1 - _LEAVE_FREE)


def available_memory_bytes() -> int:
    """Memory that can be had without swapping, as the kernel estimates, and no more than a container's limit leaves."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    table = Path("/proc/meminfo")
    if table.is_file():
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    # In a container /proc/meminfo speaks of the whole machine, while the limit that kills is the one of cgroup (v2).
    # Its count includes file pages that could be dropped, so this errs on the careful side.
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()) != "max":
        available = min(available, int(most) - int(used.read_text()))
    return available
