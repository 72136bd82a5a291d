"""Curricula and Megatron's order through a whole training: the account balances and show says what was trained."""

import pytest

from deepen.board.report import write_report
from deepen.recipe.reading import load
from deepen.runs.account import account
from deepen.runs.show.artifact import ShowOptions, show
from deepen.workflow.run import RunOptions, run_pipeline

CURRICULUM = [
    "mix.sequence_length=[{until: 50%, length: 16}, {length: 32}]",
    "mix.domain_share=[{until: 4 steps, share: 0.2}, {share: 0.8, ramp: linear}]",
    "mix.anneal={last: 20%, domain_share: 1.0}",
    "mix.balance=category",
]
MEGATRON = ["mix={sequence_length: 32, order: megatron, max_epochs: 16, domain_share: 0.6}"]


@pytest.mark.parametrize("sets", [CURRICULUM, MEGATRON], ids=["curriculum", "megatron"])
def test_it_trains_and_every_number_balances(tiny, sets):
    loaded = load(tiny, None, ["machine.workers=1", "machine.compute.threads=1", *sets])
    run = tiny.parent / "runs" / "tiny"
    artifacts = run_pipeline(loaded.recipe, loaded.machine, run, RunOptions(offline=True, last="train"))
    assert [f"{line.source}: {line.what}" for line in account(run) if not line.balances] == []
    for step in (1, 6, 10):
        rows = list(show(run / "mix", ShowOptions(step=step)))
        trained = artifacts["mix"].counts["phases"]
        (phase,) = [p for p in trained if p["first_batch"] < step <= p["first_batch"] + p["num_batches"]]
        assert len(rows) == phase["rows_per_batch"]
        assert {row["tokens"] + row["padding"] for row in rows} == {phase["sequence_length"]}
    page = write_report(run).read_text()
    assert ("share in the order" in page) == (sets is CURRICULUM)
    totals = artifacts["train"].counts["sources"]
    assert sum(source["tokens"] for source in totals.values()) > 1500
