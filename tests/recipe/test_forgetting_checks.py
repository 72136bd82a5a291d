"""Actions of the forgetting monitor that a recipe can never take are told before any work."""

from pathlib import Path

import pytest

from deepen.errors import RecipeError
from deepen.recipe.reading import load

RECIPE = """\
name: wrong
base: {{init: random, hidden_size: 32, layers: 1, heads: 2, max_length: 64}}
ingest: {{sources: [{{name: code, role: domain, path: {folder}/code.txt}}{more}]}}
tokenize: {{vocabulary: {{train: 300}}}}
mix: {{sequence_length: 64{mix}}}
train: {{tokens: 100k tokens, batch_tokens: 1024, learning_rate: 1e-3}}
evaluate:
  probes: [{{use: held_out, context: 64}}]
  forgetting: {{actions: [{{use: more_replay, by: 10 points}}, stop]}}
"""
PROBES = "probes: [{use: held_out, context: 64}]"
REPLAY = ", {{name: web, role: replay, path: {folder}/code.txt}}"


def problems_of(tmp_path: Path, more: str = "", mix: str = "", evaluate: str = "") -> dict[str, str]:
    (tmp_path / "code.txt").write_text("x")
    path = tmp_path / "recipe.yaml"
    text = RECIPE.format(folder=tmp_path, more=more.format(folder=tmp_path), mix=mix)
    path.write_text(text.replace(PROBES, evaluate) if evaluate else text)
    try:
        load(path)
    except RecipeError as error:
        assert all(problem.place and problem.remedy for problem in error.problems)
        return {problem.path: problem.message for problem in error.problems}
    return {}


def test_a_recipe_with_replay_has_no_problem(tmp_path: Path) -> None:
    assert problems_of(tmp_path, REPLAY) == {}


@pytest.mark.parametrize(
    ("more", "mix", "message"),
    [
        (REPLAY.replace("replay", "watch"), "", "no source has `role: replay`"),
        (REPLAY, ", order: megatron", "Megatron's order"),
        (REPLAY, ", domain_share: 0.2", "the domain share is 20%"),
        (REPLAY, ", domain_share: [{{until: 50%, share: 0.1}}, {{share: 0.8}}]".replace("{{", "{").replace("}}", "}"),
         "the domain share is 10%"),
        (REPLAY, ", control: true", "the domain share is 0%"),
    ],
)  # fmt: skip
def test_replay_that_cannot_be_raised(tmp_path: Path, more: str, mix: str, message: str) -> None:
    found = problems_of(tmp_path, more, mix)
    assert set(found) == {"evaluate.forgetting.actions[0]"}
    assert message in found["evaluate.forgetting.actions[0]"]


def test_a_monitor_with_nothing_to_watch(tmp_path: Path) -> None:
    found = problems_of(tmp_path)
    assert "nothing measures what is kept" in found["evaluate.forgetting.actions"]
    assert "can never be taken" in found["evaluate.forgetting.actions[0]"]


def test_text_that_is_not_scored_measures_nothing_and_a_panel_does(tmp_path: Path) -> None:
    found = problems_of(tmp_path, REPLAY, evaluate="probes: [samples]")
    assert "nothing measures what is kept" in found["evaluate.forgetting.actions"]
    late = problems_of(tmp_path, REPLAY, evaluate="probes: [samples, {use: held_out, context: 64, in_loop: false}]")
    assert "nothing measures what is kept" in late["evaluate.forgetting.actions"]
    assert problems_of(tmp_path, REPLAY, evaluate="probes: [samples]\n  panel: offline") == {}


@pytest.mark.parametrize(
    ("probes", "path"),
    [
        ("{use: held_out, name: text, context: 64}", "evaluate.probes[0].name"),
        ("{use: arithmetic, name: held_out}", "evaluate.probes[0].name"),
        ("{use: held_out, name: a, context: 64}, {use: held_out, name: b, context: 64}", "evaluate.probes"),
    ],
)
def test_the_text_of_the_budget_must_be_found_by_its_name(tmp_path: Path, probes: str, path: str) -> None:
    found = problems_of(tmp_path, REPLAY, evaluate=f"probes: [{probes}]\n  panel: offline")
    assert set(found) == {path} and "budget" in found[path]
    both = "{use: held_out, context: 64}, {use: held_out, name: short, context: 32}"
    assert problems_of(tmp_path, REPLAY, evaluate=f"probes: [{both}]") == {}
