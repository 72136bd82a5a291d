"""Penalties on leaving the base that cannot do what they are for are found before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepen.errors import RecipeError
from deepen.parallel.config import Mesh
from deepen.recipe.reading import load
from deepen.train.starting import mesh_limits as layouts

RECIPE = """\
name: held
base: org/base
ingest:
  sources:
    - {name: code, role: domain, path: FOLDER/code.txt}
    - {name: web, role: replay, path: FOLDER/code.txt}
mix: {sequence_length: 64}
train:
  tokens: 100k tokens
  batch_tokens: 1024
  learning_rate: 1e-3
  retention: {l2_sp: {strength: 0.01}, ewc: {strength: 1}, kl: {strength: 0.5}}
"""
ACTIONS = "evaluate.forgetting.actions=[l2_sp, {use: ewc, by: 3x}, kl, stop]"
NO_REPLAY = "ingest.sources=[{name: code, role: domain, path: FOLDER/code.txt}]"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "code.txt").write_text("x")
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("FOLDER", str(tmp_path)))
    return tmp_path / "recipe.yaml"


def problems(recipe: Path, *sets: str) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        load(recipe, None, [one.replace("FOLDER", str(recipe.parent)) for one in sets])
    assert all(problem.remedy for problem in caught.value.problems)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_penalties_and_their_actions_are_no_problem(recipe: Path) -> None:
    config = load(recipe, None, [ACTIONS]).recipe.train.retention
    assert config.strengths == {"l2_sp": 0.01, "ewc": 1.0, "kl": 0.5}
    assert config.ewc is not None and (config.ewc.sequences, config.ewc.clip_percentile) == (1024, 99.9)


@pytest.mark.parametrize(
    ("sets", "wrong"),
    [
        (["train.method={use: lora}"], {"l2_sp": "frozen", "ewc": "frozen"}),
        (["tokenize.vocabulary={extend: 100}"], {"kl": "cannot read"}),
        ([NO_REPLAY], {"ewc": "no source has", "kl": "no source has"}),
        (
            ["base={init: random, hidden_size: 32, layers: 1, heads: 2, max_length: 64}",
             "tokenize.vocabulary={train: 300}"],
            {"l2_sp": "random", "ewc": "random", "kl": "random"},
        ),
    ],
)  # fmt: skip
def test_what_cannot_do_what_it_is_for(recipe: Path, sets: list[str], wrong: dict[str, str]) -> None:
    if "lora" in sets[0]:
        pytest.importorskip("peft")
    found = problems(recipe, *sets)
    assert set(found) == {f"train.retention.{name}" for name in wrong}
    assert all(words in found[f"train.retention.{name}"] for name, words in wrong.items())


def test_an_action_on_a_penalty_that_is_not_there(recipe: Path) -> None:
    found = problems(recipe, ACTIONS, "train.retention={kl: {strength: 1}}")
    assert set(found) == {"evaluate.forgetting.actions[0]", "evaluate.forgetting.actions[1]"}


@pytest.mark.parametrize(
    ("mesh", "wrong"),
    [
        ({"replicate": 2, "shard": 2, "tensor": 2}, set()),
        ({"context": 2}, {"train.retention.kl"}),
        ({"pipeline": 2}, {"train.retention.kl", "train.retention.ewc"}),
    ],
)
def test_meshes_that_cannot_have_them(recipe: Path, mesh: dict[str, int], wrong: set[str]) -> None:
    config = load(recipe).recipe.train
    assert {problem.path for problem in layouts.problems(config, Mesh.model_validate(mesh))} == wrong
