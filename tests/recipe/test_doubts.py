import json
import subprocess
import sys

import pytest

from deepen.recipe.reading import load
from deepen.settings import parse_amount, rounding_note

RECIPE = """\
name: test
base: {init: random, hidden_size: 32, layers: 2, heads: 2, max_length: 64}
ingest: {sources: [{name: code, role: domain, path: FOLDER/code.txt}]}
tokenize: {vocabulary: {train: 400}}
mix: {sequence_length: 64}
train: {tokens: 64k tokens, batch_tokens: 640, learning_rate: 1e-3, schedule: {use: cosine, warmup: 5%}}
evaluate: {every: 10%}
"""


@pytest.fixture
def doubts(tmp_path):
    (tmp_path / "code.txt").write_text("code " * 10_000)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')

    def found(*sets):
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.replace("FOLDER", str(tmp_path)))
        return {doubt.path: doubt for doubt in load(path, None, sets).doubts}

    found.base = (f"base={tmp_path}/model", "tokenize.vocabulary=keep")
    return found


def test_a_sound_recipe_raises_no_doubts(doubts):
    assert doubts() == {}


@pytest.mark.parametrize(
    ("key", "amount", "says"),
    [
        ("train.schedule.warmup", "0.4%", "0.4% of a run of 100 steps is 0.4 steps and becomes 0 steps"),
        ("train.save.every", "200 tokens", "becomes 1 step"),
        ("train.save.milestones", "0.3%", "becomes 1 step"),
        ("evaluate.every", "1000 tokens", "is 1.6 steps and becomes 2 steps"),
        ("evaluate.full_every", "1.4%", "is 1.4 steps and becomes 1 step"),
        ("evaluate.lag", "1.4%", "is 1.4 steps and becomes 1 step"),
    ],
)
def test_amounts_that_whole_steps_make_another_amount_are_said(doubts, key, amount, says):
    found = doubts(f"{key}={amount}", *(["evaluate.every=1%"] if key == "evaluate.lag" else []))
    assert says in found[key].message
    assert found[key].place == "--set"


@pytest.mark.parametrize("part", ["cooldown", "decay", "warmup"])
def test_parts_of_a_schedule_are_all_said(doubts, part):
    assert f"train.schedule.{part}" in doubts(
        "train.schedule={use: infinite, warmup: 5%}", f"train.schedule.{part}=0.4%"
    )


@pytest.mark.parametrize(
    ("amount", "notable"), [("1%", True), ("10%", False), ("3 steps", False), ("30min", False), ("0%", False)]
)
def test_rounding_is_notable_where_it_moves_an_amount_by_more_than_a_fifth(amount, notable):
    assert (rounding_note(parse_amount(amount), total_steps=30, tokens_per_step=100) is not None) == notable


@pytest.mark.parametrize(
    ("base", "rate", "says"),
    [
        (False, "3e-2", "far above"),
        (False, "1e-2", ""),
        (True, "5e-3", "above the peaks that bases are pretrained with"),
        (True, "3e-4", ""),
        (True, "1x base", ""),
    ],
)
def test_a_rate_far_above_what_trains_is_said(doubts, base, rate, says):
    more = ["train.base_peak_learning_rate=3e-4"] if "base" in rate else []
    found = doubts(f"train.learning_rate={rate}", *more, *(doubts.base if base else ()))
    assert ("train.learning_rate" in found) == bool(says)
    assert says in str(found.get("train.learning_rate", ""))


def test_a_rate_is_held_against_the_known_peak_of_the_base(doubts):
    found = doubts("train.learning_rate=9e-4", "train.base_peak_learning_rate=3e-4", *doubts.base)
    assert "is 3 times the peak of the base's own pretraining (0.0003)" in found["train.learning_rate"].message


def test_more_tokens_than_the_files_can_give_are_said_with_the_numbers(doubts):
    found = doubts("train.tokens=50M tokens")["train.tokens"].message
    assert "50,000,000 tokens are asked of the domain sources, whose files have 50,000 bytes" in found
    assert "4,000 passes, and mix.max_epochs is 4" in found


def test_check_prints_doubts_and_ends_well(doubts, tmp_path):
    doubts()
    command = [
        sys.executable,
        "-m",
        "deepen.cli",
        "check",
        str(tmp_path / "recipe.yaml"),
        "--set",
        "train.learning_rate=1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.index("no problems found") < done.stdout.index("warning: --set: train.learning_rate: 1 is far")
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert [warning["path"] for warning in json.loads(done.stdout)["warnings"]] == ["train.learning_rate"]


def test_a_budget_that_no_replay_holds_is_said(doubts):
    watch = doubts.base, "evaluate.forgetting={budget: 3%}"
    found = doubts(*watch[0], watch[1], "ingest.sources.0.role=domain", "evaluate.panel=none")
    assert "no source with `role: replay`" in found["evaluate.forgetting.budget"].message
    assert "evaluate.forgetting.budget" not in doubts(*doubts.base)
