"""More replay, decided in the loop of a real run: the rest of the order is mixed anew, and everything adds up."""

import json
import shutil
from dataclasses import replace

import pytest

from deepen.board.report import write_report
from deepen.errors import RunError
from deepen.formats.tokens.order import Order, appended_files, read_segment_file, source_of
from deepen.formats.training.decisions import Decision, read_decisions
from deepen.recipe.reading import load
from deepen.runs.account import account
from deepen.runs.order.rows import open_order
from deepen.train import stage
from deepen.workflow.commands.remix import replay_changes
from deepen.workflow.run import RunOptions, run_pipeline


def asks(by, batch=6):
    return Decision(step=batch, batch=batch, action="more_replay", by="forgetting", reason="why", details={"by": by})


def test_shares_move_by_points_and_never_below_the_plan(finished_run, tmp_path):
    change = replay_changes(finished_run / "mix", tmp_path / "order")
    for by, batch, expected in ((0.2, 5, 0.4), (0.9, 6, 0.0), (-0.1, 7, 0.1), (-0.9, 8, 0.6)):
        change(asks(by, batch))
        assert read_segment_file(appended_files(tmp_path / "order")[-1]).domain_share == pytest.approx(expected)
    with pytest.raises(RunError, match="40% of the tokens are replay there already"):
        change(asks(-0.1, 9))
    order = Order.open(finished_run / "mix", *appended_files(tmp_path / "order"))
    replay = order.sources.index("prose")
    assert set(source_of(order.batch(6)).tolist()) == {replay}


def test_without_replay_text_there_can_be_no_more_of_it(finished_run, tmp_path):
    mix = shutil.copytree(finished_run / "mix", tmp_path / "mix")
    stored = json.loads((mix / "mixture.json").read_text())
    for supply in stored["supplies"]:
        supply["role"] = "domain"
    (mix / "mixture.json").write_text(json.dumps(stored))
    with pytest.raises(RunError, match="no replay source"):
        replay_changes(mix, tmp_path / "order")(asks(0.1))


def test_a_run_that_decides_on_more_replay_still_balances(tiny, monkeypatch):
    train = stage.train

    def decide(scores, decisions):
        known = [decision.action for decision in decisions]
        return [] if known else [Decision(step=5, action="more_replay", reason="lost", details={"by": 0.6})]

    def deciding(*args, hooks, **named):
        return train(*args, hooks=replace(hooks, decide=decide), **named)

    monkeypatch.setattr(stage, "train", deciding)
    loaded = load(tiny, None, ["machine.workers=1", "machine.compute.threads=1"])
    run = tiny.parent / "runs" / "tiny"
    run_pipeline(loaded.recipe, loaded.machine, run, RunOptions(offline=True, last="train"))
    (decision,) = read_decisions(run / "train/decisions.jsonl")
    assert (decision.by, decision.step, decision.batch, decision.cannot) == ("forgetting", 5, 5, None)
    sources = [{name for name, _ in open_order(run).rows_of(step)} for step in (5, 6, 10)]
    assert sources == [{"code", "prose"}, {"prose"}, {"prose"}]
    assert [line for line in account(run) if not line.balances] == []


def test_a_run_that_stops_early_goes_on_to_its_export_and_reports_why(tiny, monkeypatch):
    train = stage.train

    def decide(_scores, decisions):
        known = [decision.action for decision in decisions]
        return [] if known else [Decision(step=5, action="stop", reason="forgets <too> much")]

    monkeypatch.setattr(
        stage, "train", lambda *args, hooks, **named: train(*args, hooks=replace(hooks, decide=decide), **named)
    )
    loaded = load(tiny, None, ["machine.workers=1", "machine.compute.threads=1"])
    run = tiny.parent / "runs" / "tiny"
    run_pipeline(loaded.recipe, loaded.machine, run, RunOptions(offline=True))
    counts = json.loads((run / "train/manifest.json").read_text())["counts"]
    assert (counts["steps"], counts["ended"]) == (5, "forgets <too> much")
    assert [line for line in account(run) if not line.balances] == []
    assert (run / "export/manifest.json").is_file()
    assert "forgets &lt;too&gt; much" in write_report(run).read_text()
