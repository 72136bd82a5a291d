import json
import random

import pytest

from deepen.train.faults.spikes import RecentSteps, SkipSpikes, spike


def steps(number: int, loss: float = 2.0) -> RecentSteps:
    noise, recent = random.Random(1), RecentSteps(128)
    for _ in range(number):
        recent.add(loss + noise.gauss(0, 0.01), 1 + noise.gauss(0, 0.05))
    return recent


@pytest.mark.parametrize(("number", "is_skipped"), [(63, False), (64, True), (500, True)])
def test_seven_deviations_are_a_spike_once_there_are_64_steps(number: int, is_skipped: bool) -> None:
    found = spike(SkipSpikes(), steps(number), 2.08, 1.0)
    assert (found is not None) is is_skipped


def test_a_gradient_can_spike_alone_and_low_values_never_do() -> None:
    recent = steps(100)
    assert "gradient norm" in (spike(SkipSpikes(), recent, 2.0, 3.0) or "")
    assert spike(SkipSpikes(), recent, 0.1, 0.01) is None


def test_early_steps_are_held_against_the_first() -> None:
    assert spike(SkipSpikes(), steps(5), 3.9, 1.0) is None
    assert "above the first step" in (spike(SkipSpikes(), steps(5), 4.2, 1.0) or "")
    assert spike(SkipSpikes(), steps(0), 99.0, 1.0) is None


def test_not_finite_is_a_spike_from_the_first_step_on() -> None:
    assert spike(SkipSpikes(), steps(0), float("nan"), 1.0)
    assert spike(SkipSpikes(), steps(0), 1.0, float("inf"))


def test_what_a_checkpoint_keeps_decides_the_same() -> None:
    recent = steps(200)
    loaded = RecentSteps.from_json(128, json.loads(json.dumps(recent.to_json())))
    assert vars(loaded) == vars(recent) and len(loaded.losses) == 128
