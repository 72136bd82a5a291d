from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepen.errors import RunError
from deepen.formats.training.checkpoints import list_checkpoints
from deepen.train.starting.resolved import prepare_continuation, read_resolved
from tests.train.conftest import read_metrics, read_tensors

Configure = Callable[..., Any]
WSD = {"use": "wsd", "warmup": "2 steps", "decay": "25%"}
SAVE = {"every": "1 step", "keep": 1, "milestones": None}


def test_continued_is_bit_equal_to_a_longer_run(run: Any, settings: Configure, tmp_path: Path) -> None:
    short, long = (settings(steps, schedule=WSD, save=SAVE) for steps in (8, 16))
    run(short, "grown")
    for _ in range(2):  # preparing twice, as after a kill, is preparing once
        assert prepare_continuation(tmp_path / "grown", short, long) == 6
    run(long, "grown")
    run(long, "whole")
    assert read_tensors(tmp_path / "grown", 16) == read_tensors(tmp_path / "whole", 16)
    assert read_metrics(tmp_path / "grown") == read_metrics(tmp_path / "whole")


def test_the_warm_up_stays_as_many_steps_as_it_was(run: Any, settings: Configure, tmp_path: Path) -> None:
    short, long = (settings(steps, schedule=WSD | {"warmup": "25%"}) for steps in (8, 16))
    run(short)
    prepare_continuation(tmp_path / "train", short, long)
    resolved = read_resolved(tmp_path / "train")
    assert resolved is not None and (resolved.warmup_steps, resolved.decay_steps, resolved.total_steps) == (2, 4, 16)
    assert max(info.step for info in list_checkpoints(tmp_path / "train/checkpoints")) == 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ({"schedule": "cosine"}, {"schedule": "cosine", "steps": 16}, "already decayed"),
        ({"schedule": "wsd"}, {"schedule": "wsd", "steps": 7}, "more tokens"),
        ({"schedule": "wsd"}, {"schedule": "wsd", "steps": 16, "clip": 0.5}, "train.clip"),
        ({"schedule": "wsd"}, {"schedule": "wsd", "steps": 16}, "no run that could be continued"),
    ],
)
def test_what_cannot_be_continued_says_why(
    settings: Configure, tmp_path: Path, old: dict[str, Any], new: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        prepare_continuation(tmp_path, settings(**old), settings(**new))
