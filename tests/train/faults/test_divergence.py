"""A loss that rises slowly is answered step by step; a healthy one never is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepen.errors import TrainingError
from deepen.formats.training.decisions import Decision, read_decisions
from deepen.settings import Amount, Interval
from deepen.train.beside.hooks import Hooks
from deepen.train.faults.divergence import Divergence, LossTrend
from deepen.train.faults.settle import divergence_actions
from deepen.train.run import Progress
from tests.train.conftest import CrashError, read_metrics, read_tensors

Configure = Callable[..., Any]
LABELS = 1000.0


def feed(settings: Divergence, losses: Iterable[list[float | None]], seed: int = 0, noise: float = 0.05) -> list[int]:
    """Steps at which it diverges; each item holds the loss of every source, None where a batch has nothing of it."""
    trend, random, found = LossTrend(), np.random.default_rng(seed), []
    for step, by_source in enumerate(losses, 1):
        labels = np.array([0.0 if loss is None else LABELS for loss in by_source])
        values = np.array([0.0 if loss is None else loss for loss in by_source])
        nll = labels * (values + random.normal(0, noise, len(values)))
        trend = LossTrend.from_json(json.loads(json.dumps(trend.to_json())))  # as a resumed run would
        trend.add(settings, step, nll, labels)
        if trend.diverges(settings):
            found.append(step)
    return found


def falling(steps: int, start: float = 3.0) -> list[float]:
    return [start - 0.5 * (1 - np.exp(-step / 300)) for step in range(steps)]


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.5])
def test_a_healthy_loss_never_fires_whatever_its_noise(noise: float) -> None:
    for seed in range(5):
        assert feed(Divergence(), [[loss] for loss in falling(2000)], seed, noise) == []


def test_a_switch_of_mixture_moves_the_mean_loss_and_does_not_fire() -> None:
    easy, hard = falling(800, 1.5), falling(800, 4.0)
    first: list[list[float | None]] = [[loss, None] for loss in easy]
    mixed: list[list[float | None]] = [[easy[-1], loss] for loss in hard]
    last: list[list[float | None]] = [[None, hard[-1]] for _ in range(400)]
    assert feed(Divergence(), [*first, *mixed, *last]) == []


def test_a_bump_that_training_makes_good_again_does_not_fire() -> None:
    bump = [2.5 + 0.6 * np.exp(-(((step - 100) / 40) ** 2)) for step in range(400)]
    assert feed(Divergence(), [[loss] for loss in [*falling(400), *bump]]) == []


def test_a_slow_rise_fires_once_it_lasted_long_enough() -> None:
    rise = [2.6 + 0.002 * step for step in range(600)]
    found = feed(Divergence(), [[loss] for loss in [*falling(600), *rise]])
    assert found and 700 < found[0] < 900
    assert feed(Divergence(rise=5.0), [[loss] for loss in [*falling(600), *rise]]) == []
    assert feed(Divergence(), [[loss] for loss in [*falling(600), *rise]], noise=20.0) == [], "all of it may be noise"


def test_answers_come_in_their_order_and_what_cannot_be_done_is_passed_over() -> None:
    settings = Divergence(lower_times=1, rewinds=1, steps=1)
    progress = Progress([], step=9)
    progress.trend.steps_above = 5
    made: list[Decision] = []
    for cannot in (None, "no checkpoint", None):
        (decision,) = divergence_actions(settings, progress, made)
        made.append(decision.model_copy(update={"cannot": cannot}))
    assert [decision.action for decision in made] == ["lower_learning_rate", "rewind", "stop"]


STRICT = {"smoothing": 2, "rise": 0.3, "deviations": 1, "steps": 2, "lower_to": 0.9, "lower_times": 1, "rewinds": 1}
WILD = {
    "steps": 24, "learning_rate": 3.0, "schedule": {"use": "constant", "warmup": "2 steps"}, "clip": 1e9,
    "skip_spikes": None, "save": {"every": "1 step", "keep": 30, "milestones": None},
}  # fmt: skip


def test_a_rate_that_is_far_too_high_is_answered_until_the_run_stops(
    run: Any, settings: Configure, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="nats above its lowest"):
        run(settings(**WILD, divergence=STRICT))
    made = read_decisions(tmp_path / "train/decisions.jsonl")
    assert [d.action for d in made if d.cannot is None] == ["lower_learning_rate", "rewind", "stop"]
    rewind = next(d for d in made if d.action == "rewind")
    assert rewind.details["to"] < rewind.details["suspect_from"] <= rewind.step and rewind.documents
    rates = {record["step"]: record["learning_rate"] for record in read_metrics(tmp_path / "train")}
    later = [rate for step, rate in rates.items() if step > rewind.step]
    assert later == pytest.approx([0.9 * rates[2]] * len(later)), "the lower rate outlasts going back"
    with pytest.raises(TrainingError, match="nats above its lowest"):
        run(settings(**WILD, divergence=STRICT))  # the same command: it is over
    assert read_decisions(tmp_path / "train/decisions.jsonl") == made


def test_a_crash_on_the_way_changes_nothing(run: Any, settings: Configure, tmp_path: Path) -> None:
    config = settings(**WILD, divergence=STRICT)
    with pytest.raises(TrainingError):
        run(config, "whole")
    made = read_decisions(tmp_path / "whole/decisions.jsonl")

    def dying(record: dict[str, Any]) -> None:
        if record["step"] in (made[0].step, made[1].step):
            raise CrashError

    for _ in range(2):
        assert run(config, "broken", hooks=Hooks(log=dying)) is None
    with pytest.raises(TrainingError):
        run(config, "broken")
    assert read_decisions(tmp_path / "broken/decisions.jsonl") == made
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "broken")
    assert read_tensors(tmp_path / "whole", made[-1].step - 1) == read_tensors(tmp_path / "broken", made[-1].step - 1)


def test_warm_up_and_an_ordinary_run_do_not_fire_even_when_strict(
    run: Any, settings: Configure, tmp_path: Path
) -> None:
    schedule = {"use": "cosine", "warmup": "12 steps"}
    run(settings(steps=24, schedule=schedule, divergence=STRICT))
    assert read_decisions(tmp_path / "train/decisions.jsonl") == []


def test_many_skipped_steps_lead_back_and_name_the_documents(run: Any, settings: Configure, tmp_path: Path) -> None:
    strict = {"deviations": 0.3, "at_least": 2, "window": 3, "believe_after": 9}
    rule = {"after": 3, "within": 8, "steps_before": 1, "most": 1}
    config = settings(
        steps=12, skip_spikes={**strict, "rewind": rule}, save={"every": "1 step", "keep": 20, "milestones": None}
    )
    run(config, "whole")
    made = read_decisions(tmp_path / "whole/decisions.jsonl")
    skips = [d.step for d in made if d.action == "skip_batch"]
    (rewind,) = [d for d in made if d.action == "rewind"]
    assert rewind.step == skips[2] and rewind.details["to"] < skips[0] - 1
    assert set(rewind.documents) >= {name for d in made if d.step in skips[:3] for name in d.documents}
    every = Interval((Amount(1, "steps"),))

    def dying(_model: Any, step: int, _tokens: int) -> list[Any]:
        if step == rewind.step:
            raise CrashError
        return []

    assert run(config, "broken", hooks=Hooks(dying, every)) is None
    run(config, "broken")
    assert read_tensors(tmp_path / "whole", 12) == read_tensors(tmp_path / "broken", 12)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "broken")
