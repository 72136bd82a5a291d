"""When the forgetting monitor acts, what it does, and what it never does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.evaluate.compare.statistics import adjusted
from deepen.evaluate.forgetting.config import Circumstances, Forgetting, problems
from deepen.evaluate.forgetting.monitor import Plan, decide, readings
from deepen.evaluate.items.tables import Kind, Outcome, compare_items, table_of
from deepen.formats.training.decisions import Decision
from deepen.formats.training.scores import CheckpointScores, Score

LADDER = ["more_replay", "lower_learning_rate", "rewind", "stop"]
PLAN = Plan(total_steps=200, domain_shares=((0, 0.9),))
BUDGET = 0.03


def settings(**changes: Any) -> Forgetting:
    return Forgetting.model_validate({"budget": BUDGET, "actions": LADDER, "grace": 0.0, **changes})


def kept(loss: float, width: float | None = 0.01, **changes: Any) -> Score:
    """A score of bits per byte that rose by ``loss`` with an interval of +- ``width``."""
    interval = None if width is None else (loss - width, loss + width)
    values = {
        "probe": "held_out", "ability": "kept", "value": 1 + loss, "baseline": 1.0, "difference": loss,
        "interval": interval, "higher_is_better": False, "items": 50,
    }  # fmt: skip
    return Score.model_validate(values | changes)


def history(losses: Sequence[float | None], width: float | None = 0.01) -> list[CheckpointScores]:
    """An evaluation every ten steps."""
    return [
        CheckpointScores(step=10 * (place + 1), tokens=0, scores=() if loss is None else (kept(loss, width),))
        for place, loss in enumerate(losses)
    ]


def followed(scores: Sequence[CheckpointScores], how: Forgetting, plan: Plan = PLAN) -> list[Decision]:
    """All decisions of a run whose scores come one after the other and are not moved by what is decided."""
    made: list[Decision] = []
    for place in range(len(scores)):
        made += decide(scores[: place + 1], made, how, plan)
    return made


LOSSES = st.lists(st.floats(-0.1, 0.2), min_size=1, max_size=18)
WIDTHS = st.one_of(st.none(), st.floats(0, 0.05))


@given(st.lists(st.floats(-0.1, BUDGET), min_size=1, max_size=18), WIDTHS)
def test_it_never_acts_inside_the_budget(losses: list[float], width: float | None) -> None:
    assert followed(history(losses, width), settings()) == []


@given(LOSSES, WIDTHS)
def test_every_action_follows_an_evaluation_over_the_budget(losses: list[float], width: float | None) -> None:
    for one in followed(history(losses, width), settings()):
        loss = losses[one.step // 10 - 1]
        assert loss <= BUDGET / 2 if one.details.get("by", 1) < 0 else loss > BUDGET


@given(LOSSES, WIDTHS, st.floats(0, 0.1))
def test_worse_scores_never_make_it_wait_longer(losses: list[float], width: float | None, worse: float) -> None:
    first = [one.step for one in followed(history(losses, width), settings())][:1]
    earlier = [one.step for one in followed(history([loss + worse for loss in losses], width), settings())][:1]
    assert not first or earlier[0] <= first[0]


@given(LOSSES, WIDTHS, st.integers(0, 18))
def test_resumed_anywhere_it_decides_the_same(losses: list[float], width: float | None, cut: int) -> None:
    scores = history(losses, width)
    whole = followed(scores, settings())
    kept_before = [one for one in whole if one.step <= 10 * cut]
    stored = [CheckpointScores.model_validate_json(one.model_dump_json(), strict=False) for one in scores]
    made = list(kept_before)
    for place in range(cut, len(stored)):
        made += decide(stored[: place + 1], made, settings(), PLAN)
    assert made == whole


@given(LOSSES, WIDTHS)
def test_nothing_is_decided_twice_for_a_step(losses: list[float], width: float | None) -> None:
    scores = history(losses, width)
    made = followed(scores, settings())
    assert decide(scores, made, settings(), PLAN) == []
    applied = [one.step for one in made if one.cannot is None]
    assert len(set(applied)) == len(applied)


@given(LOSSES, WIDTHS)
def test_actions_come_in_their_order(losses: list[float], width: float | None) -> None:
    taken = [one.action for one in followed(history(losses, width), settings(relax=0))]
    ranks = [LADDER.index(name) for name in taken]
    assert ranks == sorted(ranks)
    assert all(taken.count(name) <= times for name, times in zip(LADDER, (3, 2, 1, 1), strict=True))


def test_the_whole_ladder() -> None:
    made = followed(history([0.01] + [0.06] * 19), settings())
    assert [one.action for one in made] == [*["more_replay"] * 3, *["lower_learning_rate"] * 2, "rewind", "stop"]
    assert [one.details for one in made] == [
        {"by": 0.1, "domain_share": 0.8}, {"by": 0.1, "domain_share": 0.7}, {"by": 0.1, "domain_share": 0.6},
        {"to": 0.5}, {"to": 0.5}, {"good_only": True}, {},
    ]  # fmt: skip
    assert [one.step for one in made] == [20, 40, 60, 80, 100, 120, 140]  # two evaluations to work
    assert "6.00%" in made[0].reason and "3.00%" in made[0].reason


def test_a_sure_loss_is_acted_on_at_once_and_one_that_may_be_chance_after_a_second_look() -> None:
    assert [one.step for one in followed(history([0.05], width=0.01), settings())] == [10]
    assert [one.step for one in followed(history([0.05, 0.02, 0.05, 0.05], width=0.1), settings())] == [40]
    assert [one.step for one in followed(history([0.05, 0.05, 0.05], width=None), settings(patience=3))] == [30]


def test_it_waits_while_the_loss_is_on_its_way_back() -> None:
    assert [one.step for one in followed(history([0.09, 0.07, 0.05, 0.04]), settings())] == [10]
    assert [one.step for one in followed(history([0.09, 0.089, 0.088, 0.087]), settings())] == [10, 30]


def test_scores_of_another_process_are_acted_on_when_they_are_known_and_not_after_a_later_decision() -> None:
    late = [one.model_copy(update={"known_at": one.step + 15}) for one in history([0.02, 0.05, 0.05, 0.05, 0.05, 0.05])]
    made: list[Decision] = []
    for place, one in enumerate(late):
        new = decide(late[: place + 1], made, settings(), PLAN)
        assert all(decision.step == one.known for decision in new)
        made += new
    # Step 20 is known at 35. Steps 30 and the like were trained before that was acted on; 40 and 50 are after it.
    assert [one.step for one in made] == [35, 65]


def test_at_first_only_the_hard_floor_acts() -> None:
    early = settings(grace=0.2)  # 40 of 200 steps
    assert followed(history([0.06, 0.08, 0.08]), early) == []
    assert [one.step for one in followed(history([0.06, 0.06, 0.06, 0.06, 0.06]), early)] == [40]
    assert [one.step for one in followed(history([0.02, 0.1], width=None), early)] == [20]
    margin = settings(grace=0.2, hard_floor={"margin": 0.05})
    assert [one.step for one in followed(history([0.04, 0.06]), margin)] == [20]


def test_below_the_hard_floor_a_growing_loss_is_not_waited_for() -> None:
    assert [one.step for one in followed(history([0.10, 0.12, 0.14, 0.14]), settings())] == [10, 20, 30]


def test_a_warning_ends_well_inside_the_budget() -> None:
    states = [one.state for one in readings(history([0.02, 0.031, 0.028, 0.02, 0.028, 0.05, 0.035, 0.025]), settings())]
    assert states == ["ok", "warning", "warning", "ok", "ok", "breach", "breach", "warning"]


def test_replay_is_given_back_when_there_is_slack() -> None:
    made = followed(history([0.05, 0.02, *[0.01] * 12]), settings())
    assert [(one.step, one.action) for one in made] == [(10, "more_replay"), (50, "more_replay")]
    assert made[1].details == {"by": -0.1, "domain_share": 0.9}  # and never more than was planned
    assert followed(history([0.05, 0.02, *[0.01] * 12]), settings(relax=0)) == made[:1]


def test_replay_is_not_given_back_near_the_end() -> None:
    made = followed(history([0.01] * 13 + [0.05] + [0.01] * 6), settings())
    assert [one.action for one in made] == ["more_replay"]


def test_an_action_that_cannot_be_taken_is_told_and_the_next_is_taken() -> None:
    low = Plan(200, ((0, 0.2),))
    made = decide(history([0.05]), [], settings(), low)
    assert [(one.action, one.cannot is None) for one in made] == [
        ("more_replay", False),
        ("lower_learning_rate", True),
    ]
    assert "30% is the least" in str(made[0].cannot)


def test_what_the_loop_could_not_do_is_followed_by_the_next_action() -> None:
    scores = history([0.05])
    first = decide(scores, [], settings(), PLAN)[0]
    refused = Decision(
        step=first.step, action=first.action, by=first.by, reason="", details=first.details, cannot="no rows left"
    )  # fmt: skip
    assert [one.action for one in decide(scores, [refused], settings(), PLAN)] == ["lower_learning_rate"]
    only = settings(actions=["more_replay"])
    assert len(followed(history([0.05] * 9), only, Plan(200, ((0, 0.1),)))) == 1  # it is told once


def test_a_rewind_without_a_good_checkpoint_is_no_rewind() -> None:
    made = decide(history([0.05]), [], settings(actions=["rewind", "stop"]), PLAN)
    assert [(one.action, bool(one.cannot)) for one in made] == [("rewind", True), ("stop", False)]


def test_what_could_not_be_done_once_may_be_possible_later() -> None:
    how = settings(actions=["rewind", {"use": "lower_learning_rate", "times": 1}])
    made = followed(history([0.05, 0.06, 0.02, 0.05, 0.06]), how)
    assert [(one.step, one.action, one.cannot) for one in made] == [
        (10, "rewind", "no evaluated checkpoint is inside the budget"),
        (10, "lower_learning_rate", None),
        (40, "rewind", None),
    ]


def test_each_penalty_is_strengthened_by_its_own_count() -> None:
    made = followed(history([0.05] * 10), settings(actions=["ewc", {"use": "kl", "by": "3x", "times": 1}]))
    assert [(one.action, one.details) for one in made] == [
        ("strengthen", {"penalty": "ewc", "by": 2.0}),
        ("strengthen", {"penalty": "ewc", "by": 2.0}),
        ("strengthen", {"penalty": "kl", "by": 3.0}),
    ]


def test_others_decisions_are_not_its_own() -> None:
    lowered = Decision(step=10, action="lower_learning_rate", by="divergence", reason="", details={"to": 0.5})
    assert [one.action for one in decide(history([0.05]), [lowered], settings(), PLAN)] == ["more_replay"]


def test_the_share_that_a_curriculum_plans_is_lowered() -> None:
    plan = Plan(200, ((0, 0.4), (20, 0.8)))
    assert decide(history([0.05]), [], settings(), plan)[0].details == {"by": 0.1, "domain_share": 0.3}
    assert decide(history([0.01, 0.05]), [], settings(), plan)[0].details == {"by": 0.1, "domain_share": 0.7}


def test_an_evaluation_without_scores_says_nothing() -> None:
    assert decide(history([0.05, None]), [], settings(), PLAN) == []
    assert [one.state for one in readings(history([0.05, None]), settings())] == ["breach", "unknown"]


def test_the_worst_kept_probe_counts_and_parts_do_not() -> None:
    scores = (
        kept(0.01),
        kept(0.5, probe="held_out:web"),
        kept(-0.08, probe="exam", higher_is_better=True, value=0.46, baseline=0.5, unit="accuracy"),
        kept(3.0, probe="samples", unit="share"),
        kept(0.3, probe="facts", higher_is_better=True, relative=False, unit="accuracy"),
        kept(0.9, ability="new", probe="held_out"),
    )
    found = readings([CheckpointScores(step=10, tokens=0, scores=scores)], settings())[0]
    assert found.loss == pytest.approx(0.08) and found.surely == pytest.approx(0.07)
    assert found.in_units == pytest.approx(0.04)


def answers(drop: float, width: float, significant: bool) -> Score:
    """A kept task whose accuracy fell by ``drop``, relative."""
    return kept(
        -drop, width, probe="exam", higher_is_better=True, value=0.5 * (1 - drop), baseline=0.5, unit="accuracy",
        significant=significant,
    )  # fmt: skip


def test_a_drop_of_answers_that_may_be_chance_is_no_loss_however_large() -> None:
    """One of a hundred right, then none: a loss of all of it, and nothing."""
    for drop in (0.2, 1.0):
        scores = (kept(0.0), answers(drop, drop + 0.1, significant=False))
        noisy = [CheckpointScores(step=10 * place, tokens=0, scores=scores) for place in range(1, 20)]
        assert followed(noisy, settings()) == []
        assert [one.loss for one in readings(noisy, settings())] == [0.0] * 19
    sure = CheckpointScores(step=10, tokens=0, scores=(kept(0.0), answers(0.2, 0.1, significant=True)))
    (decision,) = followed([sure], settings())
    assert decision.action == "more_replay" and "kept ability in `exam` is 20.00%" in decision.reason


def test_noise_of_several_tasks_hardly_ever_makes_it_act() -> None:
    """Three tasks of 200 items, of a model that changes its mind without getting worse, at ten evaluations."""
    acted = 0
    for trial in range(12):
        draw = np.random.default_rng(trial)
        base = [(draw.random(200) < share).astype(float) for share in (0.3, 0.3, 0.05)]
        now, seen = [one.copy() for one in base], []
        for step in range(10, 110, 10):
            scores = [kept(0.0, 0.005, p_value=0.9)]
            for place, (theirs, ours) in enumerate(zip(base, now, strict=True)):
                other = draw.random(200) < 0.05
                ours[other] = draw.permutation(theirs)[other]
                kind = Kind(f"task{place}", "kept")
                tables = [_answers(values) for values in (theirs, ours)]
                scores += compare_items(tables[0], tables[1], kind, seed=1, resamples=500)
            seen.append(CheckpointScores(step=step, tokens=0, scores=tuple(adjusted(scores))))
        acted += bool(followed(seen, settings()))
    assert acted <= 3, f"{acted} of 12"


def _answers(values: Any) -> pa.Table:
    return table_of(Outcome(str(item), "task", str(item), float(value)) for item, value in enumerate(values))


def test_a_sure_loss_counts_beside_a_larger_one_that_is_not_sure() -> None:
    scores = (kept(0.05, 0.01), kept(0.08, 0.2, probe="text", unit="bits per byte"))
    found = readings([CheckpointScores(step=10, tokens=0, scores=scores)], settings())[0]
    assert (found.loss, found.state) == (0.08, "breach")


def test_tasks_that_the_base_has_nothing_right_in_do_not_hide_the_others() -> None:
    """Of many small tasks some always have nothing right; the mean over all is then told in points."""
    mean = {"probe": "mmlu", "higher_is_better": True, "unit": "accuracy", "relative": False, "significant": True}
    lost = kept(-0.1, 0.02, baseline=0.4, value=0.3, **mean)
    nothing = kept(0.0, 0.0, baseline=0.0, value=0.0, **{**mean, "probe": "mmlu:law"})
    found = readings([CheckpointScores(step=10, tokens=0, scores=(kept(0.0), lost, nothing))], settings())[0]
    assert found.loss == pytest.approx(0.25) and found.surely == pytest.approx(0.2) and found.state == "breach"
    alone = kept(0.0, 0.0, baseline=0.0, value=0.0, **mean)
    assert readings([CheckpointScores(step=10, tokens=0, scores=(alone,))], settings())[0].state == "unknown"


def test_without_actions_it_only_watches() -> None:
    assert followed(history([0.5] * 5), settings(actions=[])) == []


def test_units_of_the_settings() -> None:
    how = settings(actions=[{"use": "more_replay", "by": "10 points"}, {"use": "lower_learning_rate", "to": "0.5x"}])
    assert [one.details for one in followed(history([0.06] * 8), settings(actions=how.actions))][::3] == [
        {"by": 0.1, "domain_share": 0.8},
        {"to": 0.5},
    ]
    assert Forgetting.model_validate(how.model_dump(mode="json")) == how


POSSIBLE = Circumstances(has_replay=True, domain_share=0.7, changeable_order=True, penalties=frozenset({"ewc", "kl"}))


@pytest.mark.parametrize(
    ("actions", "circumstances", "message"),
    [
        (["more_replay"], {"has_replay": False}, "no source has `role: replay`"),
        (["more_replay"], {"changeable_order": False}, "Megatron"),
        (["more_replay"], {"domain_share": 0.2}, "at_least"),
        (["ewc"], {"penalties": frozenset({"kl"})}, "no penalty `ewc`"),
        (["kl"], {"penalties": frozenset()}, "no penalty `kl`"),
        (["stop", "rewind"], {}, "after `stop`"),
        (["rewind", "rewind"], {}, "listed twice"),
    ],
)
def test_actions_that_can_never_be_taken_are_told(
    actions: list[str], circumstances: dict[str, Any], message: str
) -> None:
    found = list(problems(settings(actions=actions), _circumstances(**circumstances), measures_kept=True))
    assert len(found) == 1 and message in found[0].message
    assert found[0].path == f"evaluate.forgetting.actions[{len(actions) - 1}]"


def _circumstances(**changes: Any) -> Circumstances:
    return Circumstances(**{**vars(POSSIBLE), **changes})


def test_other_problems() -> None:
    everything = settings(actions=["more_replay", "lower_learning_rate", "ewc", "kl", "rewind", "stop"])
    assert list(problems(everything, POSSIBLE, measures_kept=True)) == []
    assert "nothing measures" in next(problems(settings(), POSSIBLE, measures_kept=False)).message
    assert "relax" in next(problems(settings(relax=0.9), POSSIBLE, measures_kept=True)).path
