"""Intervals, detectable changes and families of tasks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.evaluate.compare.statistics import (
    Change,
    Pairs,
    adjusted,
    clustered,
    holm,
    interval_of,
    mean_change,
    mean_of_shared,
    p_value_of,
    paired,
    redrawn_changes,
    seed_noise,
)
from deepen.formats.training.scores import Score


def noisy(generator: np.random.Generator, shift: float, num_documents: int = 60) -> Pairs:
    """Documents of very different difficulty, changed by ``shift`` on average, with noise of their own."""
    base = generator.lognormal(5, 1, num_documents)
    return Pairs(base, base * (1 + shift + generator.normal(0, 0.05, num_documents)))


def outcomes(count: int, discordance: float) -> Pairs:
    """Right and wrong answers: half of all right, each model alone right on half of the discordant items."""
    base, model = np.zeros(count), np.zeros(count)
    base[: count // 2] = model[: count // 2] = 1
    differing = round(count * discordance)
    model[: differing // 2] = 0
    model[count // 2 : count // 2 + differing // 2] = 1
    return Pairs(base, model)


@pytest.mark.parametrize("shift", [0.0, -0.03])
def test_intervals_cover_the_true_change(shift: float) -> None:
    covered = []
    for seed in range(150):
        pairs = noisy(np.random.default_rng(seed), shift)
        low, high = interval_of(redrawn_changes(pairs, seed=(seed, 0), resamples=400))  # type: ignore[misc]
        covered.append(low <= shift <= high)
    assert 0.87 <= np.mean(covered) <= 0.99


def test_pairing_finds_a_change_far_smaller_than_the_spread_of_documents() -> None:
    pairs = noisy(np.random.default_rng(5), -0.05)
    low, high = interval_of(redrawn_changes(pairs, seed=(1, 2)))  # type: ignore[misc]
    assert low < -0.05 < high < 0
    assert high - low < 0.1 < pairs.base.std() / pairs.base.mean()


def test_redrawing_in_blocks_matches_a_plain_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = noisy(np.random.default_rng(5), 0.02)
    whole = redrawn_changes(pairs, seed=(1, 2), resamples=50)
    monkeypatch.setattr("deepen.evaluate.compare.statistics._DRAWN_AT_ONCE", 7 * pairs.num_clusters)
    assert np.array_equal(redrawn_changes(pairs, seed=(1, 2), resamples=50), whole)


@given(st.integers(2, 40), st.integers(0, 10))
def test_the_same_model_changes_nothing_in_any_redraw(num_documents: int, seed: int) -> None:
    nll = np.random.default_rng(seed).lognormal(5, 1, num_documents)
    change = paired(Pairs(nll, nll), seed=(seed, 0), resamples=20)
    assert change.drawn is not None and not change.drawn.any()
    assert (change.interval, change.minimum_detectable, change.p_value) == ((0, 0), None, 1)


@pytest.mark.parametrize(("count", "expected"), [(100, 8.9), (500, 4.0), (1000, 2.8), (14042, 0.75)])
def test_the_detectable_drop_of_outcomes_is_the_published_one(count: int, expected: float) -> None:
    change = paired(outcomes(count, 0.1), seed=(1, 1), resamples=2_000, relative=False)
    assert change.standard_error is not None and change.minimum_detectable is not None
    assert 280 * change.standard_error == pytest.approx(expected, rel=0.02)
    assert 0.98 < change.minimum_detectable * 100 / expected < 1.06, "few items and few redraws make it larger"


def test_few_and_skewed_documents_need_a_larger_change_to_be_found() -> None:
    generator = np.random.default_rng(5)
    base = generator.lognormal(5, 1, 4_000)
    even = Pairs(base, base * (1 + generator.normal(0, 0.1, 4_000)))
    skewed = Pairs(base[:40], base[:40] * np.where(np.arange(40) == 7, 1.6, 1 + generator.normal(0, 0.01, 40)))
    found = {}
    for name, pairs in (("even", even), ("few", Pairs(even.base[:20], even.model[:20])), ("skewed", skewed)):
        change = paired(pairs, seed=(1, 1), resamples=4_000)
        assert change.minimum_detectable is not None and change.standard_error is not None
        found[name] = change.minimum_detectable / change.standard_error
    assert found["even"] == pytest.approx(2.80, rel=0.03)
    assert found["few"] > 1.04 * 2.80 and found["skewed"] > 1.1 * 2.80


def test_the_standard_error_is_that_of_the_bootstrap() -> None:
    pairs = clustered(*_answers_by_passage())
    for relative in (True, False):
        change = paired(pairs, seed=(3, 4), resamples=4000, relative=relative)
        assert change.drawn is not None
        assert change.standard_error == pytest.approx(change.drawn.std(), rel=0.06)


def _answers_by_passage() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """300 answers to questions on 60 passages of very different length, alike within a passage."""
    generator = np.random.default_rng(7)
    passages = np.sort(generator.integers(0, 60, 300))
    skill = generator.normal(0, 1, 60)[passages]
    base = (skill + generator.normal(0, 0.3, 300)) > 0
    model = (skill + generator.normal(0, 1, 60)[passages]) > 0
    return base, model, [f"passage {place}" for place in passages]


def test_clusters_widen_the_interval() -> None:
    base, model, passages = _answers_by_passage()
    alone = paired(clustered(base, model), seed=(1, 1), resamples=500, relative=False)
    together = paired(clustered(base, model, passages), seed=(1, 1), resamples=500, relative=False)
    assert alone.difference == pytest.approx(together.difference)
    assert alone.standard_error is not None and together.standard_error is not None
    assert together.standard_error > 1.5 * alone.standard_error


def test_a_drop_of_accuracy_is_relative_or_in_points() -> None:
    base, model = np.array([1, 1, 1, 1, 0]), np.array([1, 1, 1, 0, 0])
    assert paired(clustered(base, model), seed=(1, 1), resamples=9).difference == pytest.approx(-0.25)
    points = paired(clustered(base, model), seed=(1, 1), resamples=9, relative=False)
    assert points.difference == pytest.approx(-0.2)
    with pytest.raises(ValueError, match="not 0"):
        paired(clustered(np.zeros(3), np.ones(3)), seed=(1, 1))


def test_redraws_in_which_the_base_knows_nothing_stay_finite() -> None:
    change = paired(clustered(np.array([1, 0, 0]), np.array([1, 1, 0])), seed=(1, 1), resamples=200)
    assert change.drawn is not None and np.isfinite(change.drawn).all()


def test_a_single_cluster_is_sure_of_nothing() -> None:
    change = paired(Pairs(np.array([10.0]), np.array([9.0])), seed=(1, 1))
    assert change == Change(pytest.approx(-0.1))
    assert (change.minimum_detectable, change.p_value) == (None, None)
    assert mean_change([change, paired(outcomes(20, 0.5), seed=(1, 1))]).interval is None


def test_the_error_of_a_mean_of_tasks() -> None:
    one = paired(outcomes(100, 0.2), seed=(1, 1), resamples=500, relative=False)
    other = paired(outcomes(400, 0.2), seed=(1, 2), resamples=500, relative=False)
    mean = mean_change([one, other])
    assert one.standard_error and other.standard_error and mean.standard_error and mean.drawn is not None
    assert mean.standard_error == pytest.approx(np.hypot(one.standard_error, other.standard_error) / 2)
    assert mean.drawn.std() == pytest.approx(mean.standard_error, rel=0.15)


def test_p_values_agree_with_intervals() -> None:
    for seed in range(40):
        drawn = np.random.default_rng(seed).normal(2, 1, 1000)
        low, high = np.percentile(drawn, [2.5, 97.5])
        if min(abs(low), abs(high)) > 0.05:
            assert (p_value_of(drawn) < 0.05) == (low > 0 or high < 0)


def test_holm_by_hand() -> None:
    given_values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(given_values) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(holm(given_values)) == list("abcd")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_makes_a_task_surer_and_keeps_their_order(values: list[float]) -> None:
    named = {str(place): value for place, value in enumerate(values)}
    after = holm(named)
    assert all(value <= after[name] <= min(1, value * len(values)) for name, value in named.items())
    ordered = sorted(named, key=lambda name: named[name])
    assert [after[name] for name in ordered] == sorted(after.values())


def score(probe: str, p_value: float | None) -> Score:
    return Score(
        probe=probe, ability="kept", value=1, baseline=1, difference=0.1, p_value=p_value, higher_is_better=False,
        items=9,
    )  # fmt: skip


def test_tasks_are_judged_together_and_their_mean_apart() -> None:
    tasks = [score(f"held_out:{name}", 0.03) for name in "abc"]
    told = adjusted([*tasks, score("held_out", 0.03), score("exam", None)])
    assert [one.significant for one in told] == [False, False, False, True, None]
    assert adjusted([score("held_out:a", 0.03)])[0].significant is True
    of_two_names = adjusted([score("exam:law:civil", 0.03), score("exam:law:penal", 0.03), score("exam", 0.03)])
    assert [one.significant for one in of_two_names] == [False, False, True]


@pytest.mark.parametrize("relative", [True, False])
def test_tasks_about_the_same_clusters_are_drawn_together(relative: bool) -> None:
    """Six questions about each person, known or not as a person: as much as one question about each says."""
    known = np.random.default_rng(3).random((300, 2)) < 0.5
    one = Pairs(known[:, 0].astype(float), known[:, 1].astype(float), np.ones(300))
    single = paired(one, seed=(1, 1), resamples=2_000, relative=relative)
    mean = mean_of_shared([one] * 6, seed=(1, 1), resamples=2_000, relative=relative)
    assert mean.standard_error == pytest.approx(single.standard_error)
    assert mean.interval == pytest.approx(single.interval)
    apart = mean_change([paired(one, seed=(1, n), resamples=2_000, relative=relative) for n in range(6)])
    assert apart.standard_error == pytest.approx(single.standard_error / np.sqrt(6))  # type: ignore[operator]


def test_tasks_with_some_clusters_in_common_have_the_error_of_the_bootstrap() -> None:
    generator = np.random.default_rng(4)
    values = generator.integers(0, 4, (2, 2, 200)).astype(float)
    values[0, :, 150:] = values[1, :, :50] = 0
    sizes = np.ones((2, 200))
    sizes[0, 150:] = sizes[1, :50] = 0
    tasks = [Pairs(base, model, weights) for (base, model), weights in zip(values, sizes, strict=True)]
    for relative in (True, False):
        change = mean_of_shared(tasks, seed=(1, 1), resamples=4_000, relative=relative)
        assert change.drawn is not None and change.standard_error == pytest.approx(change.drawn.std(), rel=0.1)


def test_noise_of_seeds() -> None:
    noise = seed_noise([0.1, 0.2, 0.3])
    assert (noise.mean, noise.deviation, noise.runs) == (pytest.approx(0.2), pytest.approx(0.1), 3)
    with pytest.raises(ValueError, match="two runs"):
        seed_noise([0.1])


def test_a_planted_change_of_the_detectable_size_is_found_four_times_in_five() -> None:
    found = []
    for seed in range(200):
        pairs = noisy(np.random.default_rng(seed), 0, num_documents=200)
        plain = paired(pairs, seed=(seed, 0), resamples=300)
        assert plain.minimum_detectable is not None
        planted = Pairs(pairs.base, pairs.model * (1 + plain.minimum_detectable))
        low, high = interval_of(redrawn_changes(planted, seed=(seed, 0), resamples=300))  # type: ignore[misc]
        found.append(low > 0 or high < 0)
    assert 0.72 <= np.mean(found) <= 0.88  # 99 % of binomials around 0.80
