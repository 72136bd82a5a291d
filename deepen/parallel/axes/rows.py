"""Rows of a global batch dealt out to data-parallel processes, and numbers of rows collected again.

Process d of D takes rows d, d + D, ...; where they do not come out even, rows of padding without labels fill up, so
that all processes compute the same number of micro-batches. Every process knows the whole batch: what is counted,
logged and decided is computed everywhere from the same numbers.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from deepen.parallel.process import Process

NO_ROW = -1


def rows_of(num_rows: int, process: Process) -> npt.NDArray[np.int64]:
    """Indices of the rows that ``process`` takes, equally many on each; ``NO_ROW`` stands for a row of padding."""
    index = process.mesh.data_index if process.mesh else 0
    return deal(num_rows, process.num_data, index)


def deal(num_rows: int, num_shares: int, index: int) -> npt.NDArray[np.int64]:
    """Share ``index`` of ``num_rows`` rows: int64[ceil(num_rows / num_shares)]."""
    rows = np.arange(math.ceil(num_rows / num_shares)) * num_shares + index
    return np.where(rows < num_rows, rows, NO_ROW)


def collect(values: Tensor, num_rows: int, process: Process) -> Tensor:
    """Values of all ``num_rows`` rows, [num_rows, ...], from those of each process's rows as ``deal`` gave them."""
    if process.mesh is None or process.num_data == 1:
        return values
    shares, rows = process.num_data, len(values)
    gathered = values.new_empty(shares * rows, *values.shape[1:])
    dist.all_gather_single(gathered, values.contiguous(), group=process.mesh.data)
    # Process d has rows d, d + D, ...: [D, rows] turned round is the order of the batch, padding last.
    return gathered.view(shares, rows, *values.shape[1:]).transpose(0, 1).flatten(0, 1)[:num_rows]


def agree(values: Tensor, process: Process) -> Tensor:
    """Rank 0's ``values``, so that every process decides the same from the same bits; ``values`` alone."""
    if process.mesh is not None:
        dist.broadcast(values, src=0)
    return values


def take(values_BT: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], padding: int) -> Tensor:
    """The ``rows`` of an array, with ``padding`` throughout where there is ``NO_ROW``; no copy of neighbouring rows."""
    if rows[0] != NO_ROW and rows[-1] - rows[0] == len(rows) - 1:
        return torch.from_numpy(values_BT[rows[0] : rows[-1] + 1])
    taken = values_BT[rows]
    taken[rows == NO_ROW] = padding
    return torch.from_numpy(taken)
