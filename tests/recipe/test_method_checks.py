"""Methods and objectives that cannot work are found before any work, each with its key and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepen.errors import RecipeError
from deepen.recipe.reading import load
from deepen.train.schedule import methods

RECIPE = """\
name: wrong
base: org/base
ingest: {sources: [{name: talks, role: domain, path: FOLDER/talks.jsonl, conversations: as_text}]}
mix: {sequence_length: 64}
train: {tokens: 100k tokens, batch_tokens: 1024, learning_rate: 1e-3}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "talks.jsonl").write_text("{}")
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("FOLDER", str(tmp_path)))
    return tmp_path / "recipe.yaml"


def problems(recipe: Path, *sets: str) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        load(recipe, None, list(sets))
    assert all(problem.remedy for problem in caught.value.problems)
    return {problem.path: problem.message for problem in caught.value.problems}


LORA = "train.method={use: lora}"
RANDOM = "{init: random, hidden_size: 32, layers: 1, heads: 2, max_length: 64}"


@pytest.mark.parametrize(
    ("sets", "path"),
    [
        (["export.adapter=true"], "export.adapter"),
        ([LORA, "train.freeze=['*norm*']"], "train.freeze"),
        (
            ["train.method={use: lora, train_head: false}", "tokenize.vocabulary={extend: 100}"],
            "train.method.train_head",
        ),
        (["train.objective=sft"], "ingest.sources[0].conversations"),
        ([LORA, f"base={RANDOM}", "tokenize.vocabulary={train: 300}"], "train.method"),
        (["train.method={use: lora, rank: 0}"], "train.method.rank"),
        (["train.method={use: lora, targets: q_proj}"], "train.method.targets"),
        (["train.method=qlora"], "train.method"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_found_before_any_work(recipe: Path, sets: list[str], path: str) -> None:
    assert list(problems(recipe, *sets)) == [path]


def test_what_can_work_is_no_problem(recipe: Path) -> None:
    loaded = load(recipe, None, [LORA, "export.adapter=true", "tokenize.vocabulary={extend: 100}"]).recipe
    assert loaded.train.method.use == "lora"
    patterns = load(recipe, None, ["train.method={use: lora, targets: [q_proj, v_proj]}"]).recipe.train.method
    assert isinstance(patterns, methods.Lora) and patterns.targets == ("q_proj", "v_proj")
    sft = ["train.objective=sft", "ingest.sources=[{name: t, role: domain, path: " + str(recipe) + ", format: text}]"]
    assert load(recipe, None, sft).recipe.train.objective == "sft"


def test_a_missing_package_is_told_with_what_to_install(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'deepen\[lora\]'"):
        load(recipe, None, [LORA])
