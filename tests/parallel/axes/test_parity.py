"""Every layout trains as one process does: losses, gradient norms and likelihoods over 20 AdamW steps, in fp64.

The processes of one world size are started once and go through all its cells.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from deepen.parallel.axes.families import TENSOR
from tests.parallel.gang import run_gang
from tests.parallel.networks import Trained, train_tiny

BOUND = 1e-9

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "DDP2": (2, {"replicate": 2}),
    "FSDP2": (2, {"shard": 2}),
    "FSDP2-each": (2, {"shard": 2, "reduce": "each", "prefetch": 2}),
    "ZeRO-2": (2, {"shard": 2, "reshard": False}),
    "offload": (2, {"shard": 2, "offload": True}),
    "offload1": (1, {"offload": True}),
    "TP2": (2, {"tensor": 2}),
    "CP2": (2, {"context": 2}),
    "FSDP4": (4, {"shard": 4}),
    "HSDP-2x2": (4, {"replicate": 2, "shard": 2}),
    "TP2xFSDP2": (4, {"tensor": 2, "shard": 2}),
    "TP2xDDP2": (4, {"tensor": 2, "replicate": 2}),
    "CP2xFSDP2": (4, {"context": 2, "shard": 2}),
    "CP2xTP2": (4, {"context": 2, "tensor": 2}),
    "PP2": (2, {"pipeline": 2}),
    "PP2xFSDP2": (4, {"pipeline": 2, "shard": 2}),
    "PP2xDDP2": (4, {"pipeline": 2, "replicate": 2}),
}
QUICK = [
    ("DDP2", "llama"), ("FSDP2", "qwen2"), ("TP2", "qwen2"), ("CP2", "llama"), ("PP2", "qwen2"),
    ("HSDP-2x2", "qwen2"), ("TP2xFSDP2", "llama"), ("PP2xFSDP2", "llama"),
]  # fmt: skip
MORE_FAMILIES = [(layout, family) for layout in ("FSDP2", "PP2") for family in ("qwen3", "gemma3_text")]
MORE_FAMILIES += [(layout, family) for layout in ("TP2", "CP2") for family in sorted(TENSOR - {"llama", "qwen2"})]
EXPERTS = {"mixtral", "qwen3_moe"}
SINGLE = {"gemma", "gemma3_text", "cohere", "cohere2", "olmo2", "olmo3", *EXPERTS}
"""Families that compute in fp32 here and there, whatever the precision of the model is."""
SLOW = [
    pair for pair in [(layout, family) for layout in LAYOUTS for family in ("llama", "qwen2")] if pair not in QUICK
] + MORE_FAMILIES + [(layout, family) for layout in ("DDP2", "FSDP2") for family in sorted(EXPERTS)]  # fmt: skip


@cache
def alone(family: str) -> Trained:
    return train_as_given(family, None)


def train_as_given(family: str, mesh: dict[str, Any] | None) -> Trained:
    """20 steps in fp64; 10 in fp32 with experts: grouped products know no fp64, and which expert a token goes to is a
    choice, so that rounding becomes a step sooner or later."""
    if family in EXPERTS:
        return train_tiny(family, mesh, 10, dtype=torch.float32)
    return train_tiny(family, mesh)


def run_cells(pairs: Iterable[tuple[str, str]], folder: Path) -> dict[tuple[str, str], list[Trained]]:
    """Each pair of layout and family on as many processes as it needs."""
    found = {}
    for world_size in sorted({LAYOUTS[layout][0] for layout, _ in pairs}):
        own = [pair for pair in pairs if LAYOUTS[pair[0]][0] == world_size]
        cells = {"/".join(pair): (train_as_given, (pair[1], LAYOUTS[pair[0]][1])) for pair in own}
        (folder / str(world_size)).mkdir()
        results = run_gang(world_size, cells, folder / str(world_size))
        found |= {pair: results["/".join(pair)] for pair in own}
    return found


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Trained]]:
    return run_cells(QUICK, tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Trained]]:
    return run_cells(SLOW, tmp_path_factory.mktemp("slow"))


def assert_same(found: list[Trained], expected: Trained, bound: float = BOUND) -> None:
    """Every rank has the numbers of one process, and all ranks have the same bits."""
    for trained in found:
        assert trained.losses == pytest.approx(expected.losses, rel=bound)
        assert trained.norms == pytest.approx(expected.norms, rel=bound)
        assert trained.nll == pytest.approx(expected.nll, rel=bound)
        assert (trained.losses, trained.norms) == (found[0].losses, found[0].norms)


@pytest.mark.parametrize(("layout", "family"), QUICK)
def test_a_layout_trains_as_one_process(quick: dict[tuple[str, str], list[Trained]], layout: str, family: str) -> None:
    assert len(quick[layout, family]) == LAYOUTS[layout][0]
    assert_same(quick[layout, family], alone(family))


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "family"), SLOW)
def test_every_layout_trains_as_one_process(
    slow: dict[tuple[str, str], list[Trained]], layout: str, family: str
) -> None:
    assert_same(slow[layout, family], alone(family), 2e-5 if family in SINGLE else BOUND)


def test_training_changes_what_is_compared() -> None:
    """The bound means something: losses fall, and the last norms are far from the first."""
    trained = alone("llama")
    assert trained.losses[-1] < trained.losses[0] - 0.1
    assert torch.tensor(trained.norms).std() > 0.01
