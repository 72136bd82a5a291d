"""What tables and charts say of a training: its decisions, and steps without a loss."""

from __future__ import annotations

from typing import Any

import pytest

from deepen.board.charts import loss_chart, smoothed, timeline_chart
from deepen.board.decisions import decision_rows
from deepen.formats.training.decisions import Decision


def decided(action: str, **details: Any) -> Decision:
    return Decision.model_validate(
        {"step": 5, "action": action, "by": "forgetting", "reason": "lost", "details": details}
    )


@pytest.mark.parametrize(
    ("decision", "change"),
    [
        (decided("more_replay", by=0.2, domain_share=0.75), "+20 points of replay, to 75% domain"),
        (decided("more_replay", by=-0.025), "-2.5 points of replay"),
        (decided("strengthen", penalty="kl", by=2.0), "kl x 2.0"),
        (decided("lower_learning_rate", to=0.5), "x 0.5"),
        (decided("rewind", to=8), "to step 8"),
    ],
)
def test_each_action_tells_what_it_changed(decision: Decision, change: str) -> None:
    ((*_, by, told, outcome, why),) = decision_rows([decision])
    assert (by, told, outcome, why) == ("forgetting", change, "done", "lost")


def test_replay_that_is_given_back_is_no_more_replay() -> None:
    records = [decided("more_replay", by=by).record() for by in (0.2, -0.2)]
    page = timeline_chart([(5, {"difference": 0.05, "interval": None})], 0.03, records)
    assert '"name":"more replay"' in page and '"name":"replay given back"' in page


def test_steps_without_a_finite_loss_are_gaps_of_the_chart() -> None:
    assert smoothed([None, 2.0, None, 4.0], 3) == [None, 2.0, None, 3.0]
    steps = [{"tokens": n, "loss": loss, "loss_by_source": {"a": loss, "b": 1.0}} for n, loss in enumerate((None, 2.0))]
    assert "tokens trained" in loss_chart(steps)
