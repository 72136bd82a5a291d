"""A changed mixture on the way: training picks it up, the account balances, and going back makes it void."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from deepen.cli import app
from deepen.errors import DamageError, RunError
from deepen.formats.manifest import MANIFEST, UNFINISHED
from deepen.recipe.reading import load
from deepen.runs.account import account
from deepen.runs.order.rows import open_order
from deepen.workflow.commands.remix import Remix, parse_weights, remix_run
from deepen.workflow.run import RunOptions, run_pipeline


@pytest.fixture
def stopped(finished_run, tmp_path):
    """The tiny run as if it had been killed after step 4 of 10."""
    run = shutil.copytree(finished_run, tmp_path / "runs" / "tiny")
    for stage in ("evaluate", "select", "export"):
        shutil.rmtree(run / stage)
    return rolled_back(run, 4)


def rolled_back(run, step):
    if (run / "train" / MANIFEST).is_file():
        manifest = json.loads((run / "train" / MANIFEST).read_text())
        kept = {key: manifest[key] for key in ("stage", "format", "fingerprint", "config", "inputs", "started")}
        (run / "train" / UNFINISHED).write_text(json.dumps(kept))
        (run / "train" / MANIFEST).unlink()
    for path in (run / "train" / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return run


def go_on(run, *sets, **options):
    loaded = load(run, None, ["machine.workers=1", "machine.compute.threads=1", *sets])
    return run_pipeline(loaded.recipe, loaded.machine, run, RunOptions(offline=True, last="train", **options))


def test_training_picks_the_change_up_and_the_account_balances(stopped):
    command = ["remix", str(stopped), "--at", "6", "--domain-share", "0", "--reason", "forgetting", "--json"]
    made = CliRunner().invoke(app, command)
    assert json.loads(made.stdout)["file"].endswith("order/001.json")
    train = go_on(stopped)["train"]
    order = open_order(stopped)
    sources = [{name for name, _ in order.rows_of(step)} for step in (6, 7, 8, 9, 10)]
    assert sources == [{"code", "prose"}, *[{"prose"}] * 4]
    assert [(change["reason"], change["first_batch"]) for change in train.counts["order_changes"]] == [
        ("forgetting", 6)
    ]
    assert [line.what for line in account(stopped) if not line.balances] == []
    assert {"order/001.json", "order/001.u64"} <= {file.path for file in train.manifest.files}
    state = json.loads((train.path / "checkpoints" / "step-000010" / "state.json").read_text())
    assert [entry["file"] for entry in state["order"]] == ["order/001.json"]


def test_going_back_beyond_the_decision_makes_it_void(stopped, finished_run, capsys):
    remix_run(stopped, Remix(6, 0.0))
    train = go_on(rolled_back(stopped, 3))["train"]
    assert "decided at step 4; it is void" in capsys.readouterr().err
    assert not list((train.path / "order").iterdir())
    metrics = [
        [json.loads(line)["loss"] for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
        for run in (stopped, finished_run)
    ]
    assert metrics[0] == metrics[1]


def test_a_resume_after_the_change_still_knows_it(stopped):
    remix_run(stopped, Remix(6, 0.0))
    go_on(stopped)
    losses = (stopped / "train" / "metrics.jsonl").read_text()
    go_on(rolled_back(stopped, 8))
    again = (stopped / "train" / "metrics.jsonl").read_text()
    assert [json.loads(line)["loss"] for line in again.splitlines()] == [
        json.loads(line)["loss"] for line in losses.splitlines()
    ]


def test_a_changed_run_is_extended_once_the_rest_is_planned(stopped):
    remix_run(stopped, Remix(6, 0.0))
    go_on(stopped)
    with pytest.raises(RunError, match="the order has 10 batches, the run needs 20") as caught:
        go_on(stopped, "train.tokens=3840", extend=True)
    assert "`deepen remix RUN --at STEP` plans the rest" in caught.value.hint
    remix_run(stopped, Remix(10, 1.0))
    train = go_on(stopped, "train.tokens=3840", extend=True)["train"]
    assert train.counts["steps"] == 20
    order = open_order(stopped)
    assert [{name for name, _ in order.rows_of(step)} for step in (9, 15)] == [{"prose"}, {"code"}]
    assert [line.what for line in account(stopped) if not line.balances] == []


def test_refusals_say_why(stopped, finished_run):
    with pytest.raises(RunError, match="newest checkpoint is of step 4, beyond step 3"):
        remix_run(stopped, Remix(3, 0.5))
    with pytest.raises(RunError, match="is finished"):
        remix_run(finished_run, Remix(3, 0.5))
    shutil.rmtree(stopped / "train")
    with pytest.raises(RunError, match="has not begun"):
        remix_run(stopped, Remix(3, 0.5))
    assert parse_weights(["papers=2"]) == {"papers": 2.0}
    with pytest.raises(RunError, match="`papers` is no weight"):
        parse_weights(["papers"])


def test_an_altered_change_is_noticed(stopped):
    path, _ = remix_run(stopped, Remix(6, 0.0))
    go_on(stopped)
    path.write_text(path.read_text().replace('"reason": ""', '"reason": "another"'))
    with pytest.raises(DamageError, match=r"001\.json"):
        go_on(rolled_back(stopped, 8))
