"""Sums and norms of gradients over processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from deepen.parallel.config import Compute, Mesh
from deepen.parallel.process import set_up
from deepen.parallel.shards.gradients import clip_spread
from deepen.parallel.shards.overlap import Overlap
from tests.parallel.gang import run_gang


def sums() -> tuple[list[list[float]], list[bool], float, tuple[bool, ...]]:
    """Two parameters of which each process has one gradient, and a third that nobody has."""
    process = set_up(Compute(device="cpu", threads=1), Mesh(replicate=2))
    assert process.mesh is not None
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    overlap = Overlap(parameters, process.mesh.gradients)
    overlap.begin()
    (parameters[process.rank] @ torch.tensor([3.0, 4.0]) * (process.rank + 1)).backward()
    overlap.finish()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = clip_spread(gradients, 1.0, process)
    values = [gradient.tolist() for gradient in gradients]
    answers = process.any_of(process.rank == 0, process.rank == 1, False)
    return values, [parameter.grad is not None for parameter in parameters], norm, answers


def test_gradients_that_only_one_process_has_are_everybodys(tmp_path: Path) -> None:
    norm = (5.0**2 + 10.0**2) ** 0.5
    for values, present, found, answers in run_gang(2, {"sums": (sums, ())}, tmp_path)["sums"]:
        assert present == [True, True, False]
        assert found == pytest.approx(norm)
        assert values[0] == pytest.approx([3 / norm, 4 / norm], rel=1e-5)
        assert values[1] == pytest.approx([6 / norm, 8 / norm], rel=1e-5)
        assert answers == (True, True, False)
