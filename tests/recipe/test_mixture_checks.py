"""Mixtures that cannot be had are found with everything else, each with its key, line and remedy."""

import pytest

from deepen.errors import RecipeError
from deepen.recipe.reading import load

RECIPE = """\
name: wrong
base: {init: random, hidden_size: 32, layers: 1, heads: 2, max_length: 64}
ingest: {sources: [{name: code, role: domain, path: FOLDER/code.txt}]}
tokenize: {vocabulary: {train: 300}}
mix:
  sequence_length: [{until: 50%, length: 48}, {length: 128}]
  domain_share: [{until: 200 steps, share: 0.5}, {share: 1.0}]
  weights: {prose: 1.0}
  max_epochs: 40
  anneal: {last: 3min, domain_share: 1.0}
train: {tokens: 100k tokens, batch_tokens: 1024, learning_rate: 1e-3}
"""


def test_all_problems_of_a_mixture_come_at_once(tmp_path):
    (tmp_path / "code.txt").write_text("x")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("FOLDER", str(tmp_path)))
    with pytest.raises(RecipeError) as caught:
        load(path)
    found = {problem.path: problem for problem in caught.value.problems}
    assert set(found) == {
        "base.max_length",
        "mix.sequence_length[0].length",
        "mix.domain_share[0].until",
        "mix.domain_share[0].share",
        "mix.weights.prose",
        "mix.max_epochs",
        "mix.anneal.last",
    }
    assert found["mix.weights.prose"].place == "recipe.yaml:8"
    assert all(problem.remedy for problem in found.values())


def test_a_curriculum_that_can_be_had_is_no_problem(tmp_path):
    (tmp_path / "code.txt").write_text("x")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("FOLDER", str(tmp_path)).replace("max_length: 64", "max_length: 128"))
    sets = ["mix={sequence_length: [{until: 50%, length: 64}, {length: 128}], domain_share: 1}"]
    assert load(path, None, sets).recipe.mix.longest == 128
