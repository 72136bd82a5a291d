"""What the machine file says about computing changes speed and memory, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from deepen.errors import DeepenError
from deepen.formats.files.records import read_records
from deepen.model.compute import boundaries, recompute
from deepen.parallel import kernels
from deepen.parallel.config import Compute
from deepen.parallel.kernels import compiles
from deepen.parallel.process import Process
from deepen.train.schedule.optimizer import StochasticAdamW
from tests.train.conftest import read_metrics, read_tensors

Run = Callable[..., Any]
Configure = Callable[..., Any]


@pytest.mark.parametrize("how", ["selective", "full"])
def test_recomputing_is_used_and_changes_no_bit(
    run: Run, settings: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    calls = []
    checkpoint = recompute.checkpoint
    monkeypatch.setattr(recompute, "checkpoint", lambda *args, **more: calls.append(1) or checkpoint(*args, **more))
    run(settings(), "plain")
    assert not calls
    run(
        settings(),
        "less",
        compute=Compute.model_validate({"device": "cpu", "threads": 1, "micro_batch_rows": 3, "recompute": how}),
    )
    assert len(calls) == 8 * 2 * 2  # steps, micro-batches, layers
    assert read_tensors(tmp_path / "plain", 8) == read_tensors(tmp_path / "less", 8)
    assert read_metrics(tmp_path / "plain") == read_metrics(tmp_path / "less")


def dtypes(directory: Path, step: int = 8) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for file in ("model", "optimizer"):
        with safe_open(directory / f"checkpoints/step-{step:06d}/{file}.safetensors", framework="pt") as stored:
            names = [name for name in stored.keys() if not name.startswith(("step/", "random"))]  # noqa: SIM118
            found[file] = {str(stored.get_slice(name).get_dtype()) for name in names}
    return found


@pytest.mark.parametrize(
    ("precision", "kept"), [("fp32", "F32"), ("tf32", "F32"), ("bf16", "F32"), ("pure_bf16", "BF16")]
)
def test_each_precision_is_another_run_and_resumes_bit_equal(
    run: Run, settings: Configure, tmp_path: Path, precision: str, kept: str
) -> None:
    config = settings(precision=precision, save={"every": "2 steps", "milestones": None})
    whole = run(config, "whole")
    assert whole.counts["precision"] == precision
    assert run(config, "broken", crash_at=5) is None
    run(config, "broken")
    assert read_tensors(tmp_path / "whole", 8) == read_tensors(tmp_path / "broken", 8)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "broken")
    assert dtypes(tmp_path / "whole") == {"model": {kept}, "optimizer": {kept}}
    run(settings(precision="fp32"), "reference")
    same = read_tensors(tmp_path / "whole", 8) == read_tensors(tmp_path / "reference", 8)
    assert same is (precision in ("fp32", "tf32")), "on a CPU tf32 is fp32"
    losses = [read_metrics(tmp_path / name)[-1]["loss"] for name in ("whole", "reference")]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_tf32_says_that_a_cpu_has_none(run: Run, settings: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    run(settings(precision="tf32"), "tf32")
    assert "a CPU has no TensorFloat-32" in capsys.readouterr().err
    assert not torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    run(settings(precision="fp32"), "fp32")
    assert not torch.backends.cuda.matmul.allow_tf32


def test_new_rows_move_alone_in_pure_bf16_too() -> None:
    """Rounding at random must not touch numbers that are not moved."""
    weight = torch.nn.Parameter(torch.randn(64, 8).bfloat16())
    before = weight.detach().clone()
    optimizer = StochasticAdamW([weight], lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        weight.grad = torch.zeros_like(weight)
        weight.grad[60:] = 1.0
        optimizer.step()
    assert torch.equal(weight[:60], before[:60]) and not torch.equal(weight[60:], before[60:])


def test_attention_by_boundaries_is_used_and_trains_alike(
    run: Run, settings: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    attend = boundaries.masked_varlen_attention
    monkeypatch.setattr(
        boundaries, "masked_varlen_attention", lambda *args, **more: calls.append(1) or attend(*args, **more)
    )
    run(settings(), "plain")
    assert not calls
    compute = {"device": "cpu", "threads": 1, "micro_batch_rows": 3, "attention": "varlen"}
    run(settings(), "other", compute=Compute.model_validate(compute))
    assert len(calls) >= 8 * 2 * 2
    for mine, theirs in zip(read_metrics(tmp_path / "other"), read_metrics(tmp_path / "plain"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize("compute", [{"attention": "flash"}, {"loss_kernel": "liger"}])
def test_a_kernel_that_is_not_there_is_refused_before_training(
    run: Run, settings: Configure, tmp_path: Path, compute: dict[str, str]
) -> None:
    with pytest.raises(DeepenError, match=str(*compute)):
        run(settings(precision="bf16"), compute=Compute.model_validate({"device": "cpu", "threads": 1} | compute))
    assert not (tmp_path / "train/metrics.jsonl").exists()


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(torch.device("cpu"), 1)
    assert not compiles(Compute(), process)
    monkeypatch.setattr(kernels.shutil, "which", lambda _name: None)
    assert not compiles(Compute(), process)
    with pytest.raises(DeepenError, match=r"C\+\+ compiler"):
        compiles(Compute(compile=True), process)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert compiles(Compute(compile=True), process)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None if name == "triton" else name)
    assert not compiles(Compute(), Process(torch.device("cuda"), 1))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for a CPU with g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize(
    ("precision", "more"), [("fp32", {}), ("bf16", {"recompute": "selective", "attention": "varlen"})]
)
def test_compiled_training_resumes_bit_equal_and_counts_what_it_compiles(
    run: Run, settings: Configure, tmp_path: Path, precision: str, more: dict[str, str]
) -> None:
    torch._dynamo.reset()
    compute = Compute.model_validate({"device": "cpu", "threads": 1, "micro_batch_rows": 2, "compile": True} | more)
    config = settings(save={"every": "2 steps", "milestones": None}, precision=precision)
    run(config, "whole", compute=compute)
    assert run(config, "broken", crash_at=5, compute=compute) is None
    run(config, "broken", compute=compute)
    run(config, "plain")
    assert read_tensors(tmp_path / "whole", 8) == read_tensors(tmp_path / "broken", 8)
    found = [list(read_records(tmp_path / name / "metrics.jsonl")) for name in ("whole", "plain")]
    counts = [record["recompiles"] for record in found[0]]
    assert counts[0] >= 2, "layers and loss"
    assert not any(counts[2:]), counts
    assert "recompiles" not in found[1][0]
    for mine, theirs in zip(*found, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5 if precision == "fp32" else 5e-3)
