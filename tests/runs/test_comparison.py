"""Runs side by side: the noise between seeds, and the control on replay alone."""

import json
import shutil
import statistics

import pytest
from typer.testing import CliRunner

from deepen.board.report import write_report
from deepen.cli import app
from deepen.errors import RunError
from deepen.recipe.reading import load
from deepen.runs.compare import compare_runs
from deepen.runs.directory import finished_stages
from deepen.workflow.commands.control import control_recipe
from tests.tiny_runs import TINY, sentences, write_jsonl
from tests.workflow.test_continue import run

SHORT = ["--set", "train.save.milestones=null", "--set", "evaluate.every=100%", "--set", "train.save.every=10 steps"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run, of the same with another seed, and of the first one's control, which the flag made."""
    root = tmp_path_factory.mktemp("compared")
    for name in ("code", "prose", "other"):
        write_jsonl(root / f"{name}.jsonl", sentences(name, 60))
    (root / "recipe.yaml").write_text(TINY.format(root=root))
    (root / "machine.yaml").write_text("workers: 1\ncompute: {threads: 1}\n")
    options = ["--runs", str(root / "runs"), "--machine", str(root / "machine.yaml"), "--set", "name=one", *SHORT]
    made = CliRunner().invoke(
        app, ["run", str(root / "recipe.yaml"), *options, "--until", "evaluate", "--control"], catch_exceptions=False
    )
    assert made.exit_code == 0 and f"control: {root / 'runs/one-control'}" in made.stdout
    run(root / "recipe.yaml", "two", "seed=2", "name=two", *SHORT[1::2], last="evaluate")
    return root / "runs"


def test_a_control_is_refused_where_a_launcher_started_one_training(runs, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    refused = CliRunner().invoke(app, ["run", str(runs.parent / "recipe.yaml"), "--control"])
    assert isinstance(refused.exception, RunError) and "without the launcher" in refused.exception.hint


def test_the_control_trains_as_many_tokens_on_replay_alone(runs):
    counts = {name: json.loads((runs / name / "train/manifest.json").read_text())["counts"] for name in
              ("one", "one-control")}  # fmt: skip
    sources = counts["one-control"]["sources"]
    assert sources.get("code", {"tokens": 0})["tokens"] == 0 < counts["one"]["sources"]["code"]["tokens"]
    assert counts["one"]["steps"] == counts["one-control"]["steps"] == 10
    assert finished_stages(runs / "one-control")["curate"].path == (runs / "one/curate").resolve()


def test_changes_against_the_control_are_paired_and_have_the_right_sign(runs):
    found = compare_runs([runs / "one", runs / "one-control"])
    assert found.control == "one-control" and list(found.against_control) == ["one"]
    new = next(one for one in found.against_control["one"] if (one.probe, one.ability) == ("held_out:code", "new"))
    control, one = (next(run for run in found.runs if run.is_control is which).scores for which in (True, False))
    assert new.baseline == pytest.approx(control.of("held_out:code", "new").value)
    assert new.value == pytest.approx(one.of("held_out:code", "new").value)
    assert new.difference == pytest.approx(new.value / new.baseline - 1) and new.difference < 0
    assert new.interval is not None and new.interval[0] <= new.difference <= new.interval[1]


def test_seeds_of_one_recipe_tell_their_noise(runs):
    found = compare_runs([runs / "one", runs / "two"])
    (group,) = found.seeds
    assert group.names == ("one", "two") and found.control is None and found.against_control == {}
    changes = [one.scores.of("held_out", "kept").difference for one in found.runs]
    assert changes[0] != changes[1]
    assert group.noise["kept", "held_out"].deviation == pytest.approx(statistics.stdev(changes))
    assert compare_runs([runs / "one", runs / "one-control"]).seeds == ()


def test_runs_of_one_seed_and_a_run_given_twice_tell_no_noise(runs, tmp_path):
    shutil.copytree(runs / "one", runs.parent / "copy/again", symlinks=True)
    assert compare_runs([runs / "one", runs.parent / "copy/again"]).seeds == ()
    with pytest.raises(RunError, match="given twice"):
        compare_runs([runs / "one", runs / "two/../one"])


def test_a_run_that_ended_early_is_held_to_the_control_after_as_many_steps(runs, capsys):
    scores = runs.parent / "short/one/evaluate/scores.jsonl"
    shutil.copytree(runs / "one", runs.parent / "short/one", symlinks=True)
    lines = scores.read_text().splitlines()
    early = json.loads(lines[0])["step"]
    scores.write_text(lines[0] + "\n")
    found = compare_runs([runs.parent / "short/one", runs / "one-control"])
    assert found.runs[0].scores.step == early < found.runs[1].scores.step
    (control,) = compare_runs([runs / "one-control"], early).runs
    new = next(one for one in found.against_control["one"] if (one.probe, one.ability) == ("held_out:code", "new"))
    assert new.baseline == pytest.approx(control.scores.of("held_out:code", "new").value)
    assert "compare:" not in capsys.readouterr().err


def test_the_command_shows_all_of_it(runs):
    paths = [str(runs / name) for name in ("one", "two", "one-control")]
    shown = CliRunner().invoke(app, ["compare", *paths], catch_exceptions=False).stdout
    assert "one recipe, other seeds: one, two" in shown and "against the control one-control" in shown
    told = json.loads(CliRunner().invoke(app, ["compare", *paths, "--json"], catch_exceptions=False).stdout)
    assert [one["control"] for one in told["runs"]] == [False, False, True]
    assert {one["probe"] for one in told["seeds"][0]["noise"]} >= {"held_out", "held_out:code"}
    assert set(told["against_control"]) == {"one", "two"}


def test_what_cannot_be_compared_is_refused(runs):
    with pytest.raises(RunError, match="not evaluated at step 11"):
        compare_runs([runs / "one"], step=11)
    with pytest.raises(RunError, match="2 of the runs are controls"):
        compare_runs([runs / "one-control", runs / "one-control"])


def test_what_can_have_no_control_is_refused(runs):
    recipe = load(runs / "one").recipe
    control = control_recipe(recipe)
    assert control.mix.control and control.name == "one-control"
    with pytest.raises(RunError, match="is a control itself"):
        control_recipe(control)
    sources = tuple(source for source in recipe.ingest.sources if source.role != "replay")
    without = recipe.model_copy(update={"ingest": recipe.ingest.model_copy(update={"sources": sources})})
    with pytest.raises(RunError, match="no source with `role: replay`"):
        control_recipe(without)


def test_the_report_shows_the_control_and_leaves_out_neighbours_that_cannot_be_read(runs, capsys):
    root = runs.parent
    options = ["--runs", str(runs), "--machine", str(root / "machine.yaml"), "--set", "name=one", *SHORT]
    made = CliRunner().invoke(app, ["run", str(root / "recipe.yaml"), *options, "--control"], catch_exceptions=False)
    assert made.exit_code == 0 and "select" not in finished_stages(runs / "one-control")
    assert '"name":"one-control"' in (runs / "one/report.html").read_text()
    (runs / "one-control/evaluate/scores.jsonl").write_text("no scores\n")
    capsys.readouterr()
    assert '"name":"one-control"' not in write_report(runs / "one").read_text()
    assert "`one-control` is left out" in capsys.readouterr().err
