"""The GPU benchmark, as far as it goes without one: its refusal, its arithmetic, and all of its code on toy shapes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from deepen.formats.architecture import architecture_from_config
from deepen.parallel.peaks import peak_bf16

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def shapes() -> Any:
    sys.path.append(str(BENCHMARKS))
    try:
        import gpu_shapes
    finally:
        sys.path.remove(str(BENCHMARKS))
    return gpu_shapes


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_politely(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py")], capture_output=True, text=True, cwd=tmp_path, timeout=900
    )
    assert done.returncode == 2
    assert done.stderr == "benchmarks/gpu.py needs a GPU that PyTorch can use, and there is none.\n"


def test_shapes_are_the_published_ones(shapes: Any) -> None:
    published = {
        "qwen3-0.6b": 0.596,
        "llama-3.2-1b": 1.236,
        "qwen3-1.7b": 1.721,
        "qwen3-4b": 4.022,
        "llama-3.1-8b": 8.030,
    }
    for name, shape in shapes.SHAPES.items():
        assert shape.parameters / 1e9 == pytest.approx(published[name], rel=2e-3)
        settings = shape.config_json()
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert shape.parameters == pytest.approx(sum(weight.numel() for weight in model.parameters()), rel=1e-3)
        ours = architecture_from_config(config.to_dict()).training_flops_per_token(4096)
        assert shape.flops_per_token(12) == pytest.approx(ours, rel=1e-3)


def test_plans_fit_the_memory(shapes: Any) -> None:
    asked = argparse.Namespace(toy=False, seconds=20.0, no_checkpoint=False, deterministic=False)
    plans = {name: shapes.first_plan(shape, 150 * 10**9, "deepen", asked) for name, shape in shapes.SHAPES.items()}
    assert {name: plan.precision for name, plan in plans.items()} == dict.fromkeys(plans, "bf16") | {
        "llama-3.1-8b": "pure_bf16"
    }
    assert all(plan.recompute == "none" for plan in plans.values())
    small = shapes.first_plan(shapes.SHAPES["qwen3-4b"], 48 * 10**9, "deepen", asked)
    assert small.precision == "pure_bf16" and small.rows_at_once < plans["qwen3-0.6b"].rows_at_once
    tried, plan = [], small
    while plan is not None:
        tried.append((plan.rows_at_once, plan.recompute))
        plan = shapes.smaller_plan(plan)
    assert tried[-1] == (1, "full") and len(set(tried)) == len(tried)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L4", 121e12), ("NVIDIA GeForce RTX 3090", None),
    ],
)  # fmt: skip
def test_peaks_are_found_by_the_names_that_drivers_give(name: str, peak: float | None) -> None:
    assert peak_bf16(name) == peak


@pytest.mark.slow
def test_toy_shapes_go_through_all_of_it(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--toy", "--log", str(log)]
    done = subprocess.run(
        [*command, "--shapes", "qwen3-0.6b", "llama-3.1-8b"], capture_output=True, text=True, cwd=tmp_path, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {(record["shape"], record["loop"]): record for record in json.loads(log.read_text())["records"]}
    assert list(found) == [("qwen3-0.6b", "deepen"), ("qwen3-0.6b", "Trainer"), ("llama-3.1-8b", "deepen")]
    for (shape, loop), record in found.items():
        assert record["tokens_per_second"] > 0 and record["peak_gigabytes"] > 0 and record["mfu"] is None
        assert f"{shape:<14} {loop:<9}" in done.stdout
        if loop == "deepen":
            assert record["checkpoints"] == 1 and record["steps"] == len(record["records"]) >= 2
            assert record["stall_seconds"] > 0 and 0 <= record["data_wait_share"] < 1
    assert all(record["plan"]["precision"] == "bf16" for record in found.values())
