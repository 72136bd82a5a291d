"""Changes against the base and their intervals."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from deepen.errors import RunError
from deepen.evaluate.compare.documents import compare, pair, status
from deepen.evaluate.documents.likelihoods import table_of
from deepen.formats.training.scores import Score

ABILITIES = {"papers": "new", "web": "kept", "wiki": "kept"}


def table(nll: dict[str, list[float]], num_bytes: int = 100) -> pa.Table:
    ids = [f"{source}-{place}" for source, values in nll.items() for place in range(len(values))]
    sources = [source for source, values in nll.items() for _ in values]
    values = np.array([value for values in nll.values() for value in values], dtype=float)
    sizes = np.full(len(ids), num_bytes), np.full(len(ids), 30)
    return table_of(ids, sources, values, sizes, [None] * len(ids))


def by_name(scores: list[Score]) -> dict[tuple[str, str], Score]:
    return {(score.probe, score.ability): score for score in scores}


def test_bits_per_byte_and_changes_are_those_of_the_formula() -> None:
    base, model = table({"papers": [100.0, 300.0]}), table({"papers": [50.0, 250.0]})
    score = compare(base, model, ABILITIES, probe="held_out", seed=1)[0]
    assert score.probe == "held_out:papers" and score.items == 2
    assert score.baseline == pytest.approx(400 / (200 * np.log(2)))
    assert score.difference == pytest.approx(-0.25)
    assert score.interval == pytest.approx((-0.5, -1 / 6))  # both draws of one document twice


def test_an_ability_is_the_mean_over_its_sources() -> None:
    base = table({"papers": [10.0] * 3, "web": [10.0] * 90, "wiki": [10.0] * 2})
    model = table({"papers": [5.0] * 3, "web": [10.0] * 90, "wiki": [15.0] * 2})
    scores = by_name(compare(base, model, ABILITIES, probe="held_out", seed=1))
    assert scores["held_out", "new"].difference == pytest.approx(-0.5)
    assert scores["held_out", "kept"].difference == pytest.approx(0.25)
    assert scores["held_out", "kept"].items == 92


def test_other_sources_do_not_move_an_interval() -> None:
    base, model = table({"papers": [9.0, 5, 7], "web": [5.0, 6]}), table({"papers": [8.0, 5, 6], "web": [5.5, 6]})
    alone = compare(base, model, {"papers": "new"}, probe="held_out", seed=1)[0]
    assert compare(base, model, ABILITIES, probe="held_out", seed=1)[0] == alone


def test_a_single_document_has_a_change_but_no_interval() -> None:
    scores = compare(table({"papers": [10.0]}), table({"papers": [9.0]}), ABILITIES, probe="held_out", seed=1)
    assert [score.interval for score in scores] == [None, None]
    assert scores[0].difference == pytest.approx(-0.1)


def test_an_ability_without_documents_has_no_score() -> None:
    scores = compare(table({"papers": [10.0, 9]}), table({"papers": [9.0, 8]}), ABILITIES, probe="held_out", seed=1)
    assert set(by_name(scores)) == {("held_out:papers", "new"), ("held_out", "new")}


def test_a_source_that_the_model_cannot_score_takes_its_ability_with_it() -> None:
    base = table({"web": [10.0, 9], "wiki": [5.0, 6]})
    model = table({"web": [np.nan, 9], "wiki": [5.0, 6]})
    scores = by_name(compare(base, model, ABILITIES, probe="held_out", seed=1))
    assert set(scores) == {("held_out:wiki", "kept")}


def test_documents_that_the_base_could_not_score_are_left_out_of_both() -> None:
    documents = pair(table({"web": [np.inf, 9.0]}), table({"web": [4.0, 8.0]}), "web")
    assert documents is not None
    assert (documents.nll.base.tolist(), documents.nll.model.tolist(), documents.num_bytes) == ([9.0], [8.0], 100)


def test_other_text_than_the_baselines_is_refused() -> None:
    with pytest.raises(RunError, match="not those that the base was scored on"):
        pair(table({"web": [9.0]}), table({"web": [9.0]}, num_bytes=99), "web")
    with pytest.raises(RunError, match="not those that the base was scored on"):
        pair(table({"web": [9.0]}), table({"web": [9.0, 8.0]}), "web")


@pytest.mark.parametrize(
    ("difference", "interval", "expected"),
    [
        (0.01, (0.0, 0.02), "ok"),
        (0.04, (0.02, 0.06), "warning"),
        (0.05, (0.04, 0.06), "breach"),
        (0.04, None, "warning"),
    ],
)
def test_status_against_the_budget(difference: float, interval: tuple[float, float] | None, expected: str) -> None:
    kept = Score(
        probe="held_out", ability="kept", value=1, baseline=1, difference=difference, interval=interval,
        higher_is_better=False, items=5,
    )  # fmt: skip
    assert status(kept, 0.03, measured=True) == expected


def test_status_without_a_kept_score() -> None:
    assert status(None, 0.03, measured=False) == "not measured"
    assert status(None, 0.03, measured=True) == "not finite"
