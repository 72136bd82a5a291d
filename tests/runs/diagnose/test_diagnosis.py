from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deepen.formats.training.scores import CheckpointScores, Points, Score
from deepen.runs.diagnose.evidence import Case
from deepen.runs.diagnose.findings import diagnose
from deepen.runs.diagnose.forecast import Forecast

STEPS = 200


def score(probe: str, ability: Any, difference: float, half_width: float = 0.01) -> Score:
    interval = (difference - half_width, difference + half_width)
    return Score(
        probe=probe, ability=ability, value=1 + difference, baseline=1.0, difference=difference, interval=interval,
        higher_is_better=False, items=100,
    )  # fmt: skip


def task(ability: Any, difference: float, half_width: float = 0.05, **changes: Any) -> Score:
    """A share of right answers."""
    found = score("exam", ability, difference, half_width)
    return found.model_copy(update={"higher_is_better": True, "unit": "accuracy", **changes})


def scored(*scores: Score) -> tuple[CheckpointScores, ...]:
    return (CheckpointScores(step=STEPS, tokens=STEPS, scores=scores),)


def outcome(new: float, kept: float) -> tuple[Score, ...]:
    return (
        score("held_out:papers", "new", new), score("held_out:web", "kept", kept),
        score("held_out", "new", new), score("held_out", "kept", kept),
    )  # fmt: skip


def metrics(papers: Any, web: float = 3.0, skipped: int = 0) -> list[dict[str, Any]]:
    """Records of a run whose domain loss follows ``papers(share of the run)``, with noise."""
    noise = np.random.default_rng(0).normal(0, 0.02, (STEPS, 2))
    return [
        {
            "step": step + 1,
            "skipped": "spike" if step < skipped else None,
            "loss_by_source": {"papers": papers(step / STEPS) + noise[step, 0], "web": web + noise[step, 1]},
            "bits_per_byte_by_source": {"papers": papers(step / STEPS) / 3, "web": web / 3},
        }
        for step in range(STEPS)
    ]


def learned(share: float) -> float:
    """Falls quickly, then stands still."""
    return 3.0 + 1.5 * float(np.exp(-8 * share))


HEALTHY = Case(
    budget=0.03,
    metrics=metrics(learned),
    scores=scored(*outcome(-0.2, 0.01)),
    roles={"papers": "domain", "web": "replay"},
    counts={
        "tokenize": {"sources": {"papers": {"tokens": 30, "bytes": 100}, "web": {"tokens": 25, "bytes": 100}}},
        "baseline": {"sources": {"papers": {"bits_per_byte": 1.5}, "web": {"bits_per_byte": 1.0}}},
        "mix": {"domain_share": 0.7, "sources": {"papers": {"epochs": 2.0}, "web": {"epochs": 0.5}}},
        "train": {"sources": {"papers": {"tokens": 705}, "web": {"tokens": 295}}},
    },
)


def counts(**changes: Any) -> dict[str, Any]:
    assert HEALTHY.counts is not None
    return {**HEALTHY.counts, **changes}


def names(case: Case) -> list[str]:
    return [finding.name for finding in diagnose(case)]


def test_a_healthy_run_has_no_finding_and_neither_has_one_that_just_began() -> None:
    assert names(HEALTHY) == []
    assert names(Case(budget=0.03)) == []
    assert names(replace(HEALTHY, scores=(), counts={}, metrics=HEALTHY.metrics[:10])) == []


CRUMBS = {"papers": 90, "web": 25}
OTHER_SHARES = {"papers": {"tokens": 9}, "web": {"tokens": 1}}
SICK = {
    "catastrophic forgetting": replace(HEALTHY, scores=scored(*outcome(-0.2, 0.09))),
    "contaminated corpus": replace(
        HEALTHY, scores=scored(*outcome(-0.2, 0.0), task("new", 0.0, half_width=0.02))
    ),
    "tokenizer mismatch": replace(
        HEALTHY, counts=counts(tokenize={"sources": {n: {"tokens": t, "bytes": 100} for n, t in CRUMBS.items()}})
    ),
    "learning rate too high": replace(HEALTHY, metrics=metrics(lambda share: 3.0 + share)),
    "learning rate too low": replace(HEALTHY, metrics=metrics(lambda share: 4.0 - 0.07 * share)),
    "under-trained": replace(HEALTHY, metrics=metrics(lambda share: 4.5 - 1.5 * share)),
    "mixture imbalance": replace(HEALTHY, counts=counts(train={"sources": OTHER_SHARES})),
}  # fmt: skip


@pytest.mark.parametrize("name", SICK)
def test_each_illness_is_found_and_no_other(name: str) -> None:
    found = diagnose(SICK[name])
    assert [finding.name for finding in found] == [name]
    assert any(sign.isdigit() for sign in found[0].evidence), "evidence without a number"
    assert "`" in found[0].remedy or "`" in found[0].evidence


def test_other_signs_of_the_same_illness() -> None:
    wrong_ids = replace(HEALTHY, counts=counts(baseline={"sources": {"papers": {"bits_per_byte": 0.7}}}))
    assert names(wrong_ids) == ["tokenizer mismatch"]
    assert names(replace(HEALTHY, metrics=metrics(learned, skipped=5))) == ["learning rate too high"]
    unspelt = {"papers": 0.2, "web": 0.0}
    assert names(replace(HEALTHY, unknown_shares=unspelt)) == ["tokenizer mismatch"]
    assert names(replace(HEALTHY, unknown_shares={"papers": 0.001, "web": 0.5})) == [], "of the domain"
    repeated = {"domain_share": 0.7, "sources": {"papers": {"epochs": 20.0}}}
    assert names(replace(HEALTHY, counts=counts(mix=repeated))) == ["mixture imbalance"]
    paid = scored(score("held_out:papers", "new", -0.2), score("held_out:web", "kept", 0.1))
    assert names(replace(HEALTHY, scores=paid)) == ["mixture imbalance"]


@pytest.mark.parametrize(
    ("middle", "end", "found"), [(-0.002, -0.004, True), (-0.004, -0.0045, False), (-0.1, -0.2, False)]
)
def test_a_sure_but_tiny_gain_that_still_grew(middle: float, end: float, found: bool) -> None:
    """Training losses of this run say nothing: they are noise."""
    path = tuple(
        CheckpointScores(step=step, tokens=step, scores=(score("held_out", "new", gain, 0.0001),))
        for step, gain in ((STEPS // 2, middle), (STEPS, end))
    )
    noise = metrics(lambda share: 4.0)
    assert names(replace(HEALTHY, metrics=noise, scores=path)) == (["learning rate too low"] if found else [])


def test_a_rate_far_too_high_is_not_taken_for_other_illnesses() -> None:
    """It throws losses up from the second step on, and what follows is recovery: no wrong ids, no lack of steps."""
    thrown = metrics(lambda share: 9.0 - 4.0 * share, skipped=5)
    thrown[0]["bits_per_byte_by_source"] = {"papers": 1.5, "web": 1.0}
    found = names(replace(HEALTHY, metrics=thrown))
    assert found == ["learning rate too high"]
    thrown[0]["bits_per_byte_by_source"] = {"papers": 2.9, "web": 1.0}
    assert "tokenizer mismatch" in names(replace(HEALTHY, metrics=thrown)), "wrong from the first step on"


def test_a_forecast_from_held_out_text_counts_before_losses_of_training() -> None:
    """Only a sure gain is told, only of a finished training, and only where nothing else is wrong."""
    sure, unsure = (Forecast((50, 100, 150, 200), 0.02, (low, 0.03)) for low in (0.015, 0.005))
    (finding,) = diagnose(replace(HEALTHY, forecast=sure))
    assert finding.name == "under-trained" and "2.0% (1.5% to 3.0%)" in finding.evidence
    assert names(replace(HEALTHY, forecast=unsure)) == []
    falling = metrics(lambda share: 4.5 - 1.5 * share)
    assert names(replace(HEALTHY, metrics=falling)) == ["under-trained"]
    assert names(replace(HEALTHY, metrics=falling, forecast=unsure)) == [], "documents that are paired know better"
    assert HEALTHY.counts is not None
    going_on = {name: found for name, found in HEALTHY.counts.items() if name != "train"}
    assert names(replace(HEALTHY, metrics=falling, forecast=sure, counts=going_on)) == []
    forgot = replace(HEALTHY, forecast=sure, scores=scored(*outcome(-0.2, 0.09)))
    assert names(forgot) == ["catastrophic forgetting"], "more steps would forget more"


def test_forgetting_of_a_run_that_was_thrown_off_is_told_with_its_cause() -> None:
    thrown = replace(HEALTHY, metrics=metrics(learned, skipped=5), scores=scored(*outcome(0.1, 0.4)))
    (finding,) = diagnose(thrown)
    assert finding.name == "learning rate too high" and "+40.0%" in finding.evidence


def test_what_could_not_be_seen_is_not_claimed() -> None:
    """A task too small to show an effect says nothing, and forgetting within noise is none."""
    vague = task("new", 0.0, half_width=0.5)
    assert names(replace(HEALTHY, scores=scored(*outcome(-0.2, 0.0), vague))) == []
    hardly_any_right = task("new", 0.0, half_width=0.2, baseline=0.1, value=0.1)
    assert names(replace(HEALTHY, scores=scored(*outcome(-0.2, 0.0), hardly_any_right))) == ["contaminated corpus"]
    nothing_right = task("new", 0.0, 0.0, baseline=0.0, value=0.0, relative=False)
    rates = [score(f"samples:{name}", "new", 0.0, 0.0) for name in ("repetition", "boilerplate")]
    assert names(replace(HEALTHY, scores=scored(*outcome(-0.2, 0.0), nothing_right, *rates))) == []
    noisy = [score("held_out", "kept", 0.09, half_width=0.08)]
    assert names(replace(HEALTHY, scores=scored(*noisy))) == []


def test_tasks_whose_interval_reaches_far_or_that_are_at_chance_accuse_no_corpus() -> None:
    """60 items: +4.4 points, -6 to +15. And a task that base and model only guess at can show nothing."""

    def exam(half_width: float, *, value: float, chance: float, items: int) -> Score:
        points = Points(difference=0.0, interval=(-half_width, half_width))
        changes = {"baseline": value, "value": value, "items": items, "points": points, "chance": chance}
        return task("new", 0.0, half_width / value, **changes)

    def found(*tasks: Score) -> list[str]:
        return names(replace(HEALTHY, scores=scored(*outcome(-0.2, 0.0), *tasks)))

    assert found(exam(0.105, value=0.5, chance=0.25, items=60)) == []
    assert found(exam(0.01, value=0.26, chance=0.25, items=1000)) == [], "at chance"
    sure = exam(0.01, value=0.5, chance=0.25, items=1000)
    assert found(sure) == ["contaminated corpus"]
    moved = task("new", 0.2, 0.05, baseline=0.5, value=0.6)
    assert found(sure, moved) == [], "another task did move"


def test_of_an_unfinished_run_no_share_of_replay_is_claimed() -> None:
    forgot = replace(HEALTHY, scores=scored(*outcome(-0.2, 0.09)))
    assert "30% of the tokens were replay" in diagnose(forgot)[0].evidence
    assert "replay" not in diagnose(replace(forgot, counts={}))[0].evidence


def test_a_kept_task_that_was_lost_is_forgetting_whatever_the_kept_text_says() -> None:
    found = diagnose(replace(HEALTHY, scores=scored(*outcome(-0.2, 0.01), task("kept", -0.2, significant=True))))
    assert [finding.name for finding in found] == ["catastrophic forgetting"]
    assert "exam accuracy -20.0 points (-25.0 to -15.0), at least 15.0%" in found[0].evidence
    for harmless in (task("kept", -0.07), task("kept", -0.2, significant=False), task("kept", 0.2)):
        assert names(replace(HEALTHY, scores=scored(*outcome(-0.2, 0.01), harmless))) == []
    both = scored(*outcome(-0.2, 0.09), task("kept", -0.2))
    (finding,) = diagnose(replace(HEALTHY, scores=both))
    assert "kept bits per byte +9.0%" in finding.evidence and "exam accuracy -20.0 points" in finding.evidence


def test_a_mixture_that_was_changed_on_the_way_is_no_imbalance() -> None:
    other: dict[str, Any] = {"sources": OTHER_SHARES, "steps": 200}
    planned = counts()["mix"] | {"num_batches": 200}

    def found(**changes: Any) -> list[str]:
        return names(replace(HEALTHY, counts=counts(train={**other, **changes}, mix=planned)))

    assert found() == ["mixture imbalance"]
    assert found(order_changes=[{"first_batch": 16}]) == [], "by the monitor, or by `deepen remix`"
    assert found(steps=120) == [], "stopped: a curriculum was not gone through"
