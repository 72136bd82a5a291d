from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from deepen.settings import parse_interval
from deepen.train.config import TrainConfig, num_steps, problems, rows_per_batch
from deepen.train.schedule.learning_rate import (
    BASE_FINALS,
    BASE_PEAKS,
    BaseRates,
    PeakRate,
    parse_rate,
    published,
    resolve_peak,
)

GOOD: dict[str, Any] = {"tokens": "10k tokens", "batch_tokens": 1000, "learning_rate": 3e-5}


def paths(changes: dict[str, Any], base_name: str | None = "somebody/model", **extra: Any) -> list[str]:
    config = TrainConfig.model_validate(GOOD | changes)
    return [problem.path for problem in problems(config, sequence_length=100, base_name=base_name, **extra)]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"tokens": 999}, "train.tokens"),
        ({"batch_tokens": 150}, "train.batch_tokens"),
        ({"batch_tokens": 40}, "train.batch_tokens"),
        ({"learning_rate": "0.1x base"}, "train.learning_rate"),
        ({"schedule": {"use": "wsd", "decay": "100%", "warmup": "10%"}}, "train.schedule"),
        ({"save": {"every": "11 steps"}}, "train.save.every"),
        ({"save": {"milestones": "200%"}}, "train.save.milestones"),
        ({"save": {"milestones": "5min"}}, "train.save.milestones"),
        ({"betas": [0.9, 1.0]}, "train.betas"),
    ],
)
def test_what_cannot_work_is_a_problem(changes: dict[str, Any], path: str) -> None:
    assert paths({}) == []
    assert path in paths(changes)


def test_defaults_and_intervals_with_a_time_are_no_problem() -> None:
    assert paths({"save": {"every": "500 steps or 30min"}}) == []
    assert paths({}, evaluate_every=parse_interval("50%")) == []


@pytest.mark.parametrize("every", ["11 steps", "5min", "5% or 1h"])
def test_evaluation_must_happen_and_at_the_same_steps_in_every_run(every: str) -> None:
    assert "evaluate.every" in paths({}, evaluate_every=parse_interval(every))


def test_a_random_network_needs_an_absolute_rate() -> None:
    assert paths({"learning_rate": "1x base", "base_peak_learning_rate": 3e-4}, base_name=None) == [
        "train.learning_rate"
    ]


@pytest.mark.parametrize("rate", ["fast", "0x base", -1e-5, 0, True, "1e-5 steps", "nan"])
def test_rates_that_are_none_are_refused(rate: Any) -> None:
    with pytest.raises(ValidationError, match="expected a learning rate"):
        TrainConfig.model_validate(GOOD | {"learning_rate": rate})


def test_rates_are_read_and_written_back() -> None:
    assert parse_rate("5e-5") == parse_rate(5e-5) == PeakRate(5e-5)
    assert parse_rate(" 0.1x base") == PeakRate(0.1, of_base="peak")
    assert parse_rate(str(PeakRate(0.3, of_base="peak"))) == PeakRate(0.3, of_base="peak")


def test_a_multiple_of_the_base_uses_the_recipe_then_the_table() -> None:
    rate, llama = PeakRate(0.1, of_base="peak"), "meta-llama/Llama-3.1-8B"
    assert published(BASE_PEAKS, llama) == (3e-4, "arXiv 2407.21783, table 3")
    assert resolve_peak(rate, BaseRates(llama)) == pytest.approx(3e-5)
    assert resolve_peak(rate, BaseRates(llama, peak=1e-3)) == pytest.approx(1e-4)
    assert resolve_peak(rate, BaseRates("somebody/model")) is None


def test_the_final_rate_of_the_base_is_another_starting_point() -> None:
    rate = parse_rate("1x base final")
    assert rate == PeakRate(1.0, of_base="final") == parse_rate(str(rate))
    assert resolve_peak(rate, BaseRates("meta-llama/Llama-2-7b-hf")) == pytest.approx(3e-5)
    assert resolve_peak(rate, BaseRates("somebody/model", final=4.5e-5)) == pytest.approx(4.5e-5)
    # Annealed to zero, so there is no such rate, and the peak of the recipe is no answer to it.
    assert resolve_peak(rate, BaseRates("meta-llama/Llama-3.1-8B", peak=3e-4)) is None
    assert set(BASE_FINALS) <= set(BASE_PEAKS)
    config = TrainConfig.model_validate(GOOD | {"learning_rate": "1x base final"})
    found = problems(config, sequence_length=100, base_name="somebody/model")
    assert [(one.path, "base_final_learning_rate" in one.remedy) for one in found] == [("train.learning_rate", True)]


def test_steps_round_up_and_rows_to_the_nearest() -> None:
    config = TrainConfig.model_validate(GOOD | {"tokens": 10_001})
    assert num_steps(config) == 11
    assert rows_per_batch(TrainConfig.model_validate({"tokens": "50B tokens"}), 4096) == 488


def test_settings_survive_being_written_down() -> None:
    config = TrainConfig.model_validate(GOOD | {"schedule": {"use": "wsd", "decay": "20%"}})
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
