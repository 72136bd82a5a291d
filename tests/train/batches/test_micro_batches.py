"""How many rows are computed at once is the machine's business: a run may even change it from start to start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepen.model.weights.load import load_run_model
from tests.train.conftest import read_metrics

Run = Callable[..., Any]
Configure = Callable[..., Any]

STEPS = 20


@pytest.fixture
def in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in fp64, so that only the order of additions is left of any difference."""
    monkeypatch.setattr("deepen.train.starting.model.load_run_model", lambda *a, **k: load_run_model(*a, **k).double())


def test_a_run_resumed_three_times_with_other_micro_batches_is_the_same(
    run: Run, settings: Configure, tmp_path: Path, in_fp64: None
) -> None:
    config = settings(steps=STEPS, save={"every": "2 steps", "keep": 2, "milestones": None}, precision="fp32")
    run(config, "whole", rows=4)
    for crash_at, rows in ((5, 1), (10, 3), (16, 2)):
        assert run(config, "broken", crash_at=crash_at, rows=rows) is None
    run(config, "broken", rows=1)
    whole, broken = (
        [(record["step"], record["loss"], record["gradient_norm"]) for record in read_metrics(tmp_path / name)]
        for name in ("whole", "broken")
    )
    assert len(whole) == STEPS
    assert [step for step, *_ in broken] == [step for step, *_ in whole]
    for (_, loss, norm), (_, other_loss, other_norm) in zip(whole, broken, strict=True):
        assert other_loss == pytest.approx(loss, rel=1e-9)
        assert other_norm == pytest.approx(norm, rel=1e-9)
    assert whole != broken, "in other micro-batches numbers are added up in another order"


def test_at_the_same_micro_batch_three_crashes_change_no_bit(run: Run, settings: Configure, tmp_path: Path) -> None:
    config = settings(steps=STEPS, save={"every": "2 steps", "keep": 2, "milestones": None})
    run(config, "whole")
    for crash_at in (5, 10, 16):
        assert run(config, "broken", crash_at=crash_at) is None
    run(config, "broken")
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "broken")
