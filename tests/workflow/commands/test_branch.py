"""A branch equals one run whose decay had been planned to begin where it leaves."""

import json

import pytest

from deepen.errors import RunError
from deepen.settings import parse_amount
from deepen.workflow.commands.branch import Branch, branch_run
from tests.workflow.test_continue import run, weights

CONSTANT = "train.schedule={use: constant, warmup: 2 steps}"
INFINITE = "train.schedule={use: infinite, warmup: 1 steps, cooldown: 3 steps, decay: 2 steps}"


@pytest.mark.parametrize(
    ("schedule", "planned"),
    [
        (CONSTANT, "train.schedule={use: wsd, warmup: 2 steps, decay: 3 steps}"),
        (INFINITE, "train.schedule={use: infinite, warmup: 1 steps, cooldown: 3 steps, decay: 3 steps}"),
    ],
)
def test_a_branch_equals_a_run_that_was_planned_so(tiny, schedule, planned):
    run(tiny, "long", schedule, "train.save.every=1 step", "train.save.keep=20", last="train")
    directory, branched = branch_run(tiny.parent / "runs/long", Branch(6, parse_amount("50%"), "branch"))
    at_once = run(tiny, "planned", planned, "train.tokens=1728", last="train")
    assert weights(branched) == weights(at_once) and weights(branched)[0] == "step-000009"
    lines = [json.loads(line) for line in (directory / "train/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert branched["curate"].path == (tiny.parent / "runs/long/curate").resolve()
    assert branch_run(tiny.parent / "runs/long", Branch(6, parse_amount("50%"), "branch"))[1].keys() == branched.keys()


@pytest.mark.parametrize(
    ("schedule", "step", "message"),
    [
        (CONSTANT, 11, "no checkpoint of step 11"),
        (CONSTANT, 0, "no checkpoint of step 0"),
        ("train.schedule={use: cosine}", 10, "no steady learning rate"),
        ("train.schedule={use: wsd, decay: 2 steps}", 10, "steady from 0 to 8"),
    ],
)
def test_what_cannot_be_left_is_refused(tiny, schedule, step, message):
    run(tiny, "long", schedule, last="train")
    with pytest.raises(RunError, match=message):
        branch_run(tiny.parent / "runs/long", Branch(step, parse_amount("10%")))
