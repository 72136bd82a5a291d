"""What the machine file says about computing changes speed and memory, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepen.model import recompute
from deepen.parallel.config import Compute
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
