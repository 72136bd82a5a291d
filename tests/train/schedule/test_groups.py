from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepen.errors import TrainingError
from deepen.formats.manifest import StageJob
from deepen.model.config import ResolvedBase
from deepen.parallel.config import Compute
from deepen.train.beside.interrupt import StopRequest
from deepen.train.loop import training_steps
from deepen.train.run import Run
from deepen.train.schedule.parts import RowRate
from deepen.train.starting.build import prepare_run
from tests.train.checkpoints.test_resume import EVERY_TWO, same_result

Configure = Callable[..., Any]
Moved = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def moved(job: Callable[..., StageJob], base: ResolvedBase, settings: Configure) -> Moved:
    """How far every parameter moves in the first step of a run with these settings."""

    def build(name: str, **changes: Any) -> dict[str, torch.Tensor]:
        changes = {"weight_decay": 0.0} | changes
        run: Run = prepare_run(settings(**changes), job(name), base, Compute(device="cpu", threads=1))
        before = {key: value.detach().clone() for key, value in run.trainee.model.model.named_parameters()}
        next(training_steps(run, StopRequest()))
        return {key: value.detach() - before[key] for key, value in run.trainee.model.model.named_parameters()}

    return build


def test_frozen_parts_do_not_move_and_others_do(moved: Moved) -> None:
    steps = moved("frozen", freeze=["model.layers.0.*", "model.embed_tokens.weight"])
    still = {name for name, step in steps.items() if not step.any()}
    assert still == {name for name in steps if name.startswith(("model.layers.0.", "model.embed_tokens"))}


@pytest.mark.parametrize(("patterns", "message"), [(["model.layer.0"], "no parameter"), (["*"], "freezes everything")])
def test_patterns_that_make_no_sense_are_refused(moved: Any, patterns: list[str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        moved("refused", freeze=patterns)


def test_embeddings_move_by_their_own_rate(moved: Moved) -> None:
    plain, fast = moved("plain"), moved("fast", rate_multiples={"embeddings": "3x"})
    for name in plain:
        expected = 3 * plain[name] if "embed_tokens" in name else plain[name]
        assert torch.allclose(fast[name], expected, atol=1e-7)


def test_rows_move_a_multiple_of_what_the_optimizer_did() -> None:
    table = torch.nn.Parameter(torch.zeros(5, 2))
    rate = RowRate([table], torch.tensor([1, 4]), 4.0)
    before = rate.rows()
    table.data += 0.5
    rate.scale(before)
    assert table[[1, 4]].eq(2.0).all() and table[[0, 2, 3]].eq(0.5).all()


def test_noise_and_groups_survive_a_crash(run: Any, settings: Configure, tmp_path: Path) -> None:
    config = settings(**EVERY_TWO, neftune_alpha=5, rate_multiples={"embeddings": 0.5}, freeze=["*norm*"])
    run(config, "whole")
    run(config, "broken", crash_at=5)
    run(config, "broken")
    same_result(tmp_path / "whole", tmp_path / "broken")


def test_noise_changes_training(moved: Moved) -> None:
    plain, noisy = moved("plain"), moved("noisy", neftune_alpha=5)
    assert any(not torch.equal(plain[name], noisy[name]) for name in plain)
