from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.settings import parse_amount
from deepen.train.schedule.schedules import Constant, Cosine, Infinite, Linear, Schedule, Shape, WarmupStableDecay


def rates(schedule: Schedule, total_steps: int) -> list[float]:
    shape = schedule.shape(total_steps=total_steps, tokens_per_step=100)
    return [schedule.multiplier(step, shape) for step in range(total_steps)]


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 3e-4), (0.25, 2.60e-4), (0.5, 1.65e-4), (1.0, 3e-5)])
def test_cosine_has_the_published_values(progress: float, expected: float) -> None:
    shape = Shape(total_steps=1010, warmup_steps=10, decay_steps=1000)
    step = 10 + round(1000 * progress) - 1
    assert 3e-4 * Cosine().multiplier(step, shape) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("form", "values"), [("1-sqrt", [1, 0.8, 0.5, 0.2929]), ("linear", [1, 0.96, 0.75, 0.5])])
def test_decay_forms(form: Any, values: list[float]) -> None:
    schedule, shape = WarmupStableDecay(decay_form=form), Shape(1000, 0, 100)
    assert [schedule.multiplier(900 + n, shape) for n in (0, 4, 25, 50)] == pytest.approx(values, abs=1e-4)


def test_truncated_cosine_of_a_published_run() -> None:
    tokens_per_step = 4_194_304
    total = round(5e12 / tokens_per_step)
    schedule = Cosine(warmup=parse_amount("8.389B tokens"))
    shape = schedule.shape(total_steps=total, tokens_per_step=tokens_per_step)
    assert 3e-4 * schedule.multiplier(928_646 - 1, shape) == pytest.approx(6.135e-5, rel=1e-3)


def test_warmup_rises_to_the_peak_and_the_end_is_as_said() -> None:
    cosine = rates(Cosine(warmup=parse_amount("10%")), 100)
    stable = rates(WarmupStableDecay(warmup=parse_amount("1k tokens")), 100)
    assert cosine[:10] == stable[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert cosine[-1] == pytest.approx(0.1)
    assert stable[10:91] == [1.0] * 81 and 0 < stable[-1] < 0.06


@given(
    st.integers(1, 300),
    st.sampled_from([Cosine(), WarmupStableDecay(), WarmupStableDecay(floor=0.2), Linear(), Constant(), Infinite()]),
)
def test_rates_are_above_zero_and_never_above_the_peak(total_steps: int, schedule: Schedule) -> None:
    assert all(0 < rate <= 1 for rate in rates(schedule, total_steps))


def test_infinite_goes_through_its_four_stretches() -> None:
    schedule = Infinite(warmup=parse_amount("10 steps"), cooldown=parse_amount("60 steps"))
    found = rates(schedule, 200)
    assert found[9] == 1.0 and found[39] == pytest.approx((1 + 0.55) / 2)
    assert found[69:181] == pytest.approx([0.55] * 112)
    assert found[190] == pytest.approx(0.55 * (0.1 / 0.55) ** 0.5) and found[-1] > 0.1


def test_linear_and_constant() -> None:
    assert rates(Linear(warmup=parse_amount("2 steps")), 6) == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert rates(Constant(warmup=parse_amount("0 steps")), 5) == [1.0] * 5


def test_floor_is_written_with_an_x() -> None:
    assert Cosine.model_validate({"floor": "0.05x"}).floor == 0.05


@pytest.mark.parametrize(
    "schedule",
    [
        Cosine(warmup=parse_amount("200 steps")),
        Cosine(warmup=parse_amount("5min")),
        WarmupStableDecay(warmup=parse_amount("50%"), decay=parse_amount("60%")),
        WarmupStableDecay(decay=parse_amount("1h")),
        Infinite(cooldown=parse_amount("95%")),
        Infinite(floor=0.6),
    ],
)
def test_schedules_that_do_not_fit_are_problems(schedule: Schedule) -> None:
    assert len(schedule.problems(total_steps=100, tokens_per_step=100)) == 1
