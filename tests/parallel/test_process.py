from __future__ import annotations

import pytest
import torch

from deepen.errors import RunError
from deepen.parallel.config import Compute
from deepen.parallel.process import memory_bytes, resolve_precision, set_up


def test_threads_are_set_as_asked() -> None:
    before = torch.get_num_threads()
    assert set_up(Compute(device="cpu", threads=1)).threads == torch.get_num_threads() == 1
    torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_missing_gpu_is_an_error_and_auto_is_not() -> None:
    with pytest.raises(RunError, match="device: cuda"):
        set_up(Compute(device="cuda"))
    assert set_up(Compute()).device.type == "cpu"


@pytest.mark.parametrize(
    ("rows", "length", "expected"),
    [("auto", 512, 8), ("auto", 100_000, 1), ("auto", 16, 20), (3, 512, 3), (99, 512, 20)],
)
def test_micro_batches_fit_into_the_batch(rows: int | str, length: int, expected: int) -> None:
    compute = Compute.model_validate({"micro_batch_rows": rows})
    assert compute.rows_per_micro_batch(rows_per_batch=20, sequence_length=length, device="cpu") == expected


@pytest.mark.parametrize(("computes", "auto"), [(True, "bf16"), (False, "fp32")])
def test_precision_is_resolved_for_the_device(monkeypatch: pytest.MonkeyPatch, computes: bool, auto: str) -> None:
    cpu = torch.device("cpu")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: computes)
    assert [resolve_precision(name, cpu) for name in ("auto", "bf16", "fp32")] == [auto, "bf16", "fp32"]


def test_memory_is_that_of_this_process() -> None:
    assert memory_bytes(torch.device("cpu")) > 50e6
