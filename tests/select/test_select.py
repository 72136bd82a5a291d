"""Selection: the front, eligibility, the choice and its argument."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.errors import RunError
from deepen.formats.files.records import write_records
from deepen.formats.manifest import Artifact, CodeVersion, Manifest, StageJob
from deepen.formats.training.scores import BlendPart, Candidate, CheckpointScores, Choice, Score
from deepen.select.config import RULES, BestNewWithinBudget, Composite, Last, ParetoKnee, SelectRule, dominates
from deepen.select.stage import candidates_of, chosen, select, side_by_side

RULE = BestNewWithinBudget()


def score(ability: str, difference: float, width: float | None = 0.01) -> Score:
    interval = None if width is None else (difference - width, difference + width)
    return Score(
        probe="held_out", ability=ability, value=1.0, baseline=1.0, difference=difference, interval=interval,
        higher_is_better=False, items=100,
    )  # fmt: skip


def checkpoint(step: int, new: float | None, kept: float | None, width: float | None = 0.01) -> CheckpointScores:
    pairs = (("new", new), ("kept", kept))
    scores = tuple(score(ability, value, width) for ability, value in pairs if value is not None)
    return CheckpointScores(step=step, tokens=step * 1000, scores=scores)


def choose(*checkpoints: CheckpointScores, budget: float = 0.03, rule: SelectRule = RULE) -> Choice:
    return chosen(rule, candidates_of(checkpoints, budget), budget)


def evaluated(directory: Path, checkpoints: list[CheckpointScores]) -> Artifact:
    write_records(directory / "scores.jsonl", (one.model_dump(mode="json") for one in checkpoints), directory)
    manifest = Manifest(
        stage="evaluate", format=1, fingerprint="e", config={}, inputs={}, code=CodeVersion(version="0"), started="",
        finished="",
    )  # fmt: skip
    return Artifact(directory, manifest)


def test_best_gain_within_budget_wins() -> None:
    choice = choose(checkpoint(10, -0.1, 0.0), checkpoint(20, -0.2, 0.01), checkpoint(30, -0.3, 0.1))
    assert choice.step == 20
    assert "Step 30 gains more" in choice.reason and "-20.00%" in choice.reason


def test_the_interval_and_not_the_estimate_must_be_within_the_budget() -> None:
    assert choose(checkpoint(10, -0.2, 0.025)).step is None
    assert choose(checkpoint(10, -0.2, 0.019)).step == 10


def test_the_last_one_is_a_checkpoint_and_no_blend() -> None:
    mixed = (BlendPart(step=20, weight=0.5), BlendPart(step=None, weight=0.5))
    blend = checkpoint(20, -0.3, -0.1).model_copy(update={"blend": mixed})
    choice = choose(checkpoint(10, -0.1, 0.0), checkpoint(20, -0.2, 0.0), blend, rule=Last())
    assert (choice.step, choice.blend) == (20, ())
    assert choose(blend, rule=Last()).step is None


def test_base_is_kept_when_nothing_qualifies() -> None:
    choice = choose(checkpoint(10, -0.1, 0.2), checkpoint(20, -0.2, 0.1))
    assert choice.step is None
    assert "closest is step 20" in choice.reason and "3.00%" in choice.reason


def test_base_is_kept_when_the_gain_is_not_sure() -> None:
    choice = choose(checkpoint(10, -0.005, 0.0))
    assert choice.step is None
    assert "surely improves" in choice.reason


def test_base_is_kept_without_checkpoints() -> None:
    assert choose().step is None


def test_unmeasured_forgetting_is_eligible_and_said() -> None:
    choice = choose(checkpoint(10, -0.1, None), checkpoint(20, -0.2, None))
    assert choice.step == 20
    assert "Forgetting was not measured" in choice.reason


def test_without_new_ability_the_last_eligible_is_taken() -> None:
    choice = choose(checkpoint(10, None, 0.0), checkpoint(20, None, 0.01), checkpoint(30, None, 0.5))
    assert choice.step == 20
    assert "last one that qualifies" in choice.reason


def test_without_intervals_the_estimates_decide_and_the_reason_says_so() -> None:
    choice = choose(checkpoint(10, -0.1, 0.02, width=None))
    assert choice.step == 10
    assert "too few documents for an interval" in choice.reason


def test_a_checkpoint_without_the_scores_of_the_others_is_never_chosen() -> None:
    choice = choose(checkpoint(10, -0.1, 0.0), checkpoint(20, -0.9, None))
    assert choice.step == 10
    assert [candidate.eligible for candidate in choice.candidates] == [True, False]
    assert [candidate.on_front for candidate in choice.candidates] == [True, False]


def test_equal_gains_take_the_earlier_checkpoint() -> None:
    assert choose(checkpoint(20, -0.1, 0.0), checkpoint(10, -0.1, 0.0)).step == 10


class Reckless(SelectRule):
    use: str = "tests:Reckless"

    def choose(self, candidates: tuple[Candidate, ...], *, budget: float) -> tuple[int | None, str]:
        return 0, "because"


def test_a_rule_cannot_break_the_budget() -> None:
    with pytest.raises(RunError, match="not within the forgetting budget"):
        chosen(Reckless(), candidates_of([checkpoint(10, -0.1, 0.5)], 0.03), 0.03)


def test_the_knee_is_of_a_front_without_those_that_another_one_dominates_at_an_equal_gain() -> None:
    """Step 10 and 20 gain the very same, 20 forgets more: it is on no front and cannot move the knee."""
    same = checkpoint(10, -0.3, 0.005), checkpoint(20, -0.3, 0.009)
    others = checkpoint(30, -0.1, 0.0), checkpoint(40, -0.25, 0.002)
    choice = choose(*same, *others, rule=ParetoKnee())
    assert "front of 3 bends" in choice.reason
    assert choice.reason == choose(same[0], *others, rule=ParetoKnee()).reason.replace("3 checkpoints", "4 checkpoints")


changes = st.floats(-0.5, 0.5)
panels = st.lists(st.tuples(changes, changes), min_size=1, max_size=12)


@given(panels, st.floats(0, 0.2))
def test_the_front_is_exactly_what_nothing_dominates(pairs: list[tuple[float, float]], budget: float) -> None:
    candidates = candidates_of([checkpoint(step, *pair) for step, pair in enumerate(pairs)], budget)
    front = [candidate for candidate in candidates if candidate.on_front]
    assert front
    for one in candidates:
        beaten = any(dominates((other.new, other.kept), (one.new, one.kept)) for other in candidates)
        assert one.on_front != beaten


@given(panels, st.floats(0, 0.2))
def test_what_is_chosen_is_eligible_and_no_eligible_one_gains_more(
    pairs: list[tuple[float, float]], budget: float
) -> None:
    choice = chosen(RULE, candidates_of([checkpoint(step, *pair) for step, pair in enumerate(pairs)], budget), budget)
    eligible = {one.step: one.new for one in choice.candidates if one.eligible}
    if choice.step is None:
        assert all(gain + 0.01 >= 0 for gain in eligible.values())
    else:
        assert eligible[choice.step] == min(eligible.values())


def test_the_stage_writes_the_choice(tmp_path: Path) -> None:
    inputs = {"evaluate": evaluated(tmp_path / "evaluate", [checkpoint(10, -0.1, 0.0), checkpoint(20, -0.2, 0.5)])}
    manifest = select(RULE, StageJob(tmp_path / "select", "f", inputs), budget=0.03)
    choice = Choice.model_validate_json((tmp_path / "select" / "choice.json").read_bytes(), strict=False)
    assert choice.step == 10 and choice.rule == "best_new_within_budget"
    assert manifest.counts == {"step": 10, "candidates": 2, "eligible": 1, "on_front": 2, "budget": 0.03}


def test_all_rules_are_told_in_one_table() -> None:
    told = side_by_side(choose(checkpoint(10, -0.1, 0.0), checkpoint(20, -0.2, 0.5))).splitlines()
    assert told[0].split() == ["rule", "takes", "new", "kept"]
    assert told[1].split() == ["best_new_within_budget", "(asked", "for)", "step", "10", "-10.00%", "+0.00%"]
    assert {line.split()[0] for line in told[1:]} == set(RULES)
    assert "the base  -" in side_by_side(choose(checkpoint(20, -0.2, 0.5)))


def test_the_stage_is_deterministic(tmp_path: Path) -> None:
    inputs = {"evaluate": evaluated(tmp_path / "evaluate", [checkpoint(10, -0.1, 0.0)])}
    for name in ("one", "two"):
        select(RULE, StageJob(tmp_path / name, "f", inputs), budget=0.03)
    assert (tmp_path / "one/choice.json").read_bytes() == (tmp_path / "two/choice.json").read_bytes()
    assert json.loads((tmp_path / "one/choice.json").read_text())["step"] == 10


CURVE = (
    checkpoint(10, -0.10, 0.001, 0.001),
    checkpoint(20, -0.28, 0.005, 0.001),
    checkpoint(30, -0.30, 0.020, 0.001),
    checkpoint(40, -0.31, 0.029, 0.001),
)


@pytest.mark.parametrize(
    ("rule", "step"),
    [
        (RULE, 30),
        (Composite(), 20),
        (Composite(regression=0), 30),
        (ParetoKnee(), 20),
        (Last(), 30),
    ],
)
def test_each_rule_takes_what_its_name_says(rule: SelectRule, step: int) -> None:
    choice = choose(*CURVE, rule=rule, budget=0.025)
    assert choice.step == step and f"Step {step} is chosen" in choice.reason
    assert {other.rule for other in choice.alternatives} == set(RULES) - {rule.use}


def test_composite_shows_its_terms_and_keeps_the_base_when_the_sum_is_not_above_zero() -> None:
    assert "1 x 28.00% gain - 2 x 0.50% loss = +27.00 points" in choose(*CURVE, rule=Composite()).reason
    choice = choose(checkpoint(10, -0.02, 0.02, 0.001), rule=Composite())
    assert choice.step is None and "nothing is better" in choice.reason


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), max_size=6), st.sampled_from(list(RULES.values())))
def test_no_rule_takes_what_is_over_the_budget(changes: list[tuple[float, float]], rule: type[SelectRule]) -> None:
    scored = [checkpoint(10 * place, new, kept) for place, (new, kept) in enumerate(changes)]
    choice = choose(*scored, rule=rule())
    taken = [one for one in choice.candidates if one.step == choice.step]
    assert all(one.eligible for one in taken) and len(choice.alternatives) == len(RULES) - 1


def selected(artifact: Artifact, *found: list[CheckpointScores]) -> Choice:
    """The choice from scores on everything, on the half to choose on, and on the half to report on."""
    for name, scores in zip(("", "_choose", "_report"), found, strict=True):
        lines = (one.model_dump(mode="json") for one in scores)
        write_records(artifact.path / f"candidates{name}.jsonl", lines, artifact.path)
    out = artifact.path.parent / "select"
    select(RULE, StageJob(out, "f", {"evaluate": artifact}), budget=0.03)
    return Choice.model_validate_json((out / "choice.json").read_bytes(), strict=False)


@pytest.mark.parametrize("lacking", ["choose", "report"])
def test_halves_that_lack_what_is_to_be_kept_are_not_chosen_on(tmp_path: Path, lacking: str) -> None:
    """Few documents: all of the kept ones may fall into one half, and the budget would not be held."""
    blend = (BlendPart(step=20, weight=0.5), BlendPart(step=None, weight=0.5))
    whole = [checkpoint(20, -0.3, 0.1), checkpoint(20, -0.2, 0.0).model_copy(update={"blend": blend})]
    part = [checkpoint(20, -0.3, None), checkpoint(20, -0.2, None).model_copy(update={"blend": blend})]
    halves = (part, whole) if lacking == "choose" else (whole, part)
    choice = selected(evaluated(tmp_path / "evaluate", [whole[0]]), whole, *halves)
    assert choice.blend == blend and choice.confirmed is None
    assert "none of `held_out`" in choice.reason and "confirmed on none" in choice.reason


def test_blends_are_chosen_on_one_half_and_reported_on_the_other(tmp_path: Path) -> None:
    half = (BlendPart(step=20, weight=0.5), BlendPart(step=None, weight=0.5))
    chosen_on = [checkpoint(20, -0.3, 0.1), checkpoint(20, -0.2, 0.0).model_copy(update={"blend": half})]
    reported = [checkpoint(20, -0.3, 0.1), checkpoint(20, -0.15, 0.05).model_copy(update={"blend": half})]
    artifact = evaluated(tmp_path / "evaluate", [chosen_on[0]])
    choice = selected(artifact, chosen_on, chosen_on, reported)
    assert (choice.step, choice.blend, choice.title) == (20, half, "0.5 x step 20 + 0.5 x base")
    assert choice.reason.startswith("0.5 x step 20 + 0.5 x base is chosen among 1 checkpoint and 1 blend.")
    assert choice.confirmed is not None and choice.confirmed.new == -0.15
    assert "not chosen on: new -15.00%, kept +5.00%, NOT surely within the budget" in choice.reason


def test_a_kept_task_that_surely_dropped_rules_a_checkpoint_out() -> None:
    dropped = Score(
        probe="multiple_choice:exam", ability="kept", value=0.4, baseline=0.5, difference=-0.2, interval=(-0.3, -0.1),
        significant=True, higher_is_better=True, items=100,
    )  # fmt: skip
    better = checkpoint(20, -0.3, 0.0)
    better = better.model_copy(update={"scores": (*better.scores, dropped)})
    choice = choose(checkpoint(10, -0.1, 0.0), better)
    assert choice.step == 10
    assert "Step 20 gains more" in choice.reason and "it lost multiple_choice:exam" in choice.reason
    unsure = better.model_copy(
        update={"scores": (*better.scores[:2], dropped.model_copy(update={"significant": False}))}
    )
    assert choose(checkpoint(10, -0.1, 0.0), unsure).step == 20


def test_what_counts_as_a_lost_task() -> None:
    """Answers, also where the change is told in points; never the rates of generated samples."""
    lost = score("kept", -0.2, 0.05).model_copy(
        update={"probe": "exam", "higher_is_better": True, "unit": "accuracy", "significant": True, "baseline": 0.5}
    )
    good = checkpoint(10, -0.2, 0.0)

    def eligible(task: Score) -> bool:
        return candidates_of([good.model_copy(update={"scores": (*good.scores, task)})], 0.03)[0].eligible

    assert not eligible(lost)
    assert eligible(lost.model_copy(update={"significant": False}))
    assert not eligible(lost.model_copy(update={"relative": False, "difference": -0.02})), "4 % of what was right"
    assert eligible(lost.model_copy(update={"relative": False, "difference": -0.01}))
    assert eligible(
        lost.model_copy(update={"probe": "samples:repetition", "unit": "share", "higher_is_better": False,
                                "difference": 5.0})
    )  # fmt: skip


class Wrong(SelectRule):
    """A rule of somebody's that answers what it was made with."""

    use: Literal["tests.select.test_select:Wrong"] = "tests.select.test_select:Wrong"
    answer: int = 99

    def choose(self, candidates: Sequence[Candidate], *, budget: float) -> tuple[int | None, str]:
        """See ``SelectRule.choose``."""
        return 10 // self.answer, "" if self.answer > 1 else None  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("answer", "message"), [(2, "answered `5`"), (-2, "answered `-5`"), (0, "ZeroDivision"), (1, "answered `10`")]
)
def test_a_rule_that_answers_nonsense_is_told(answer: int, message: str) -> None:
    with pytest.raises(RunError, match=message):
        choose(checkpoint(10, -0.1, 0.0), rule=Wrong(answer=answer))
