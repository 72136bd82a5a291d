from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from deepen.formats.training.scores import Score
from deepen.train.beside.hooks import Hooks
from deepen.train.beside.tracking import TensorBoard, Tracker, WeightsAndBiases, open_trackers

SENT: list[tuple[int, dict[str, float]]] = []


class Memory(Tracker):
    use: Literal["memory"] = "memory"
    fails_at: int = 0

    def open(self, out: Path, name: str) -> Callable[[int, dict[str, float]], None]:
        SENT.clear()

        def log(step: int, numbers: dict[str, float]) -> None:
            if step == self.fails_at:
                raise ConnectionError("no route")
            SENT.append((step, numbers))

        return log


def test_numbers_of_every_step_are_sent(run: Any, settings: Any, tmp_path: Path) -> None:
    log = open_trackers([Memory()], tmp_path, "run")
    run(settings(), hooks=Hooks(log=log))
    assert [step for step, _ in SENT] == list(range(1, 9))
    assert {"loss", "loss_by_source/papers", "learning_rate", "tokens_per_second"} <= SENT[0][1].keys()


def test_scores_are_sent_as_changes(tmp_path: Path) -> None:
    score = Score(
        probe="held_out", ability="new", value=1.0, baseline=2.0, difference=-0.5, higher_is_better=False, items=3
    )
    log = open_trackers([Memory()], tmp_path, "run")
    assert log is not None
    log({"step": 4, "loss": None, "skipped": "spike", "scores": [score]})
    assert SENT == [(4, {"change/held_out/new": -0.5})]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    run: Any, settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings(), hooks=Hooks(log=open_trackers([Memory(fails_at=3)], tmp_path, "run")))
    assert [step for step, _ in SENT] == [1, 2] and "memory failed and is left out" in capsys.readouterr().err


def test_one_that_is_not_installed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    try:
        import wandb  # noqa: F401
    except ImportError:
        assert open_trackers([WeightsAndBiases()], tmp_path, "run") is None
        assert "deepen[wandb]" in capsys.readouterr().err


def test_tensorboard_files_hold_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = open_trackers([TensorBoard()], tmp_path, "run")
    assert log is not None
    log({"step": 7, "loss": 2.5})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(7, 2.5)]
