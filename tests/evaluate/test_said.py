"""Shares of items are told in points with their interval, and beside what guessing would get."""

from __future__ import annotations

import pytest

from deepen.board.outcomes import _row
from deepen.evaluate.compare.summary_table import score_line, summary_table
from deepen.evaluate.items.tables import Kind, Outcome, chances_of, compare_items, table_of
from deepen.export.card import _score_row
from deepen.formats.training.said import said, said_chance
from deepen.formats.training.scores import CheckpointScores, Score


def outcomes(right: int, num_items: int = 60, choices: int = 4) -> list[Outcome]:
    return [
        Outcome(str(n), "exam", str(n), value=float(n < right), gold="a", nll=(1.0,) * choices)
        for n in range(num_items)
    ]


def exam(before: int, after: int) -> Score:
    tables = table_of(outcomes(before)), table_of(outcomes(after))
    (score,) = compare_items(*tables, Kind("exam", "new"), seed=1, resamples=200)
    return score


def test_an_accuracy_is_told_in_points_wherever_it_is_told() -> None:
    score = exam(12, 16)
    assert score.difference == pytest.approx(1 / 3), "choices and budgets go by the relative change, as before"
    assert score.points is not None and score.points.difference == pytest.approx(4 / 60)
    one = CheckpointScores(step=5, tokens=9, scores=(score,))
    told = [said(score), score_line(one), summary_table([one], [{"status": "ok"}], 0.03)]
    told += [" ".join(map(str, _row(5, score.model_dump(mode="json")))), " ".join(_score_row(score))]
    for text in told:
        assert "+6.67 points" in text and "33.33%" not in text
        assert score.points.interval is not None and f"{100 * score.points.interval[1]:+.2f}" in text


def test_scores_of_earlier_runs_without_points_are_told_in_points_too() -> None:
    old = exam(12, 16).model_copy(update={"points": None, "interval": (-0.2, 0.5)})
    assert said(old) == "+6.67 points (-4.00 to +10.00)"
    text = Score(
        probe="held_out", ability="new", value=0.9, baseline=1.0, difference=-0.1, interval=(-0.2, -0.1),
        higher_is_better=False, items=3,
    )  # fmt: skip
    assert said(text) == "-10.00% (-20.00% to -10.00%)" and said_chance(text) == ""


def test_what_guessing_gets_is_known_and_a_score_there_is_called_so() -> None:
    mixed = table_of([*outcomes(3, 10, choices=2), *outcomes(3, 30, choices=4)[10:]])
    assert chances_of(mixed) == {"exam": pytest.approx((10 / 2 + 20 / 4) / 30)}
    assert chances_of(table_of(outcomes(3, choices=1))) == {}, "a written answer is not chosen among any"
    assert said_chance(exam(15, 16)) == "guessing gets 0.2500, base and model are at chance"
    assert said_chance(exam(15, 40)) == "guessing gets 0.2500, the base is at chance"
    one = CheckpointScores(step=5, tokens=9, scores=(exam(15, 16),))
    assert "at chance are the base, step 5" in summary_table([one], [{"status": "ok"}], 0.03)
