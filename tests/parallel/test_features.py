"""Every feature gives the same numbers on every layout that is not refused (docs/parallel.md has the table)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.features import FEATURES, run_feature
from tests.parallel.gang import run_gang
from tests.parallel.measured import measured_at

LAYOUTS: dict[str, dict[str, Any]] = {
    "DDP2": {"replicate": 2}, "FSDP2": {"shard": 2}, "TP2": {"tensor": 2}, "CP2": {"context": 2},
    "PP2": {"pipeline": 2},
}  # fmt: skip
REFUSED = {("lora", "TP2"), ("neftune", "CP2"), ("kl", "CP2")} | {
    (feature, "PP2") for feature in ("lora", "new_rows_first", "row_rate", "multiples", "ewc", "kl")
}
RANDOM = {"neftune"}
"""Noise depends on which process has a row, so only the losses are near each other."""
ROUNDED = {"bf16", "pure_bf16"}
CELLS = [
    (feature, layout, "qwen2" if number % 2 else "llama")
    for number, feature in enumerate(FEATURES)
    for layout in LAYOUTS
    if (feature, layout) not in REFUSED
]
QUICK = [("new_rows_first", "FSDP2", "qwen2"), ("lora", "FSDP2", "llama"), ("row_rate", "TP2", "llama"),
         ("ewc", "FSDP2", "qwen2"), ("kl", "FSDP2", "llama")]  # fmt: skip


@cache
def alone(feature: str, family: str) -> dict[str, list[float]]:
    return run_feature(feature, family, None)


def bound_of(feature: str, values: str) -> float:
    """fp64 without luck or rounding: 1e-9. bfloat16 has 8 bits: 3e-2 of a loss, more of a norm."""
    if feature in RANDOM:
        return 0.1 if values == "losses" else float("inf")
    if feature in ROUNDED:
        return 0.2 if values == "norms" else 3e-2
    return 1e-9


def check(cells: list[tuple[str, str, str]], folder: Path) -> None:
    if any(feature == "lora" for feature, *_ in cells):
        pytest.importorskip("peft")
    jobs = {"/".join(cell): (run_feature, (cell[0], cell[2], LAYOUTS[cell[1]])) for cell in cells}
    found = run_gang(2, jobs, folder)
    wrong = []
    for cell in cells:
        expected = alone(cell[0], cell[2])
        for rank in found["/".join(cell)]:
            for name, values in expected.items():
                if rank[name] != pytest.approx(values, rel=bound_of(cell[0], name)):
                    wrong.append(f"{'/'.join(cell)}: {name} {rank[name]} instead of {values}")
    assert not wrong, "\n".join(wrong)


def test_features_give_the_same_numbers_on_every_layout(tmp_path: Path) -> None:
    check(QUICK, tmp_path)


@pytest.mark.slow
def test_all_features_give_the_same_numbers_on_every_layout(tmp_path: Path) -> None:
    check(CELLS, tmp_path)


@pytest.mark.slow
def test_penalties_on_combined_layouts(tmp_path: Path) -> None:
    combined = {"HSDP": {"replicate": 2, "shard": 2}, "TPxFSDP": {"tensor": 2, "shard": 2},
                "PPxFSDP": {"pipeline": 2, "shard": 2}}  # fmt: skip
    cells = [(feature, layout) for feature in ("l2_sp", "ewc", "kl") for layout in combined]
    cells = [cell for cell in cells if cell not in {("ewc", "PPxFSDP"), ("kl", "PPxFSDP")}]
    jobs = {"/".join(cell): (run_feature, (cell[0], "qwen2", combined[cell[1]])) for cell in cells}
    found = run_gang(4, jobs, tmp_path)
    for feature, layout in cells:
        expected = alone(feature, "qwen2")
        for rank in found[f"{feature}/{layout}"]:
            for name, values in expected.items():
                assert rank[name] == pytest.approx(values, rel=bound_of(feature, name)), (feature, layout, name)


def test_features_do_something() -> None:
    """No feature would pass by being left out."""
    plain = alone("plain", "llama")
    for feature in ("row_rate", "multiples", "new_rows_first", "freeze", "kl"):
        assert alone(feature, "llama")["losses"] != pytest.approx(plain["losses"], rel=1e-6), feature


SHARDED = {"FSDP2": {"shard": 2}, "ZeRO-2": {"shard": 2, "reshard": False}, "offload": {"shard": 2, "offload": True}}
COMBINED = {
    "HSDP": {"replicate": 2, "shard": 2}, "TPxFSDP": {"tensor": 2, "shard": 2}, "CPxFSDP": {"context": 2, "shard": 2},
    "PPxFSDP": {"pipeline": 2, "shard": 2},
}  # fmt: skip


@pytest.mark.parametrize(("world_size", "layouts"), [(2, SHARDED), pytest.param(4, COMBINED, marks=pytest.mark.slow)])
def test_bf16_training_is_measured_in_the_precision_of_its_weights(
    tmp_path: Path, world_size: int, layouts: dict[str, dict[str, Any]]
) -> None:
    """Likelihoods are those of one process, which FSDP's copies in bfloat16 miss, and training goes on as it was."""
    jobs = {f"{name}/{steps}": (measured_at, (steps, mesh)) for name, mesh in layouts.items() for steps in ((0, 3), ())}
    found = run_gang(world_size, jobs, tmp_path)
    expected = measured_at((0,), None)["first"]
    for name in layouts:
        for measured, undisturbed in zip(found[f"{name}/(0, 3)"], found[f"{name}/()"], strict=True):
            assert measured["first"] == pytest.approx(expected, rel=1e-6), name
            assert measured["as trained"][:5] != pytest.approx(expected, rel=1e-5), "bfloat16 is what is told apart"
            assert measured["full"][5:] != pytest.approx(measured["as trained"][5:], rel=1e-6)
            assert measured["losses"] == undisturbed["losses"], name
