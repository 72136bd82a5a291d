import os

import pytest

from deepen.errors import RecipeError
from deepen.recipe.explain import explain
from deepen.recipe.reading import load, write_recipe

GOOD = """\
name: test
base: {init: random, hidden_size: 32, layers: 2, heads: 2, max_length: 64}
ingest:
  sources:
    - {name: code, role: domain, path: FOLDER/code.txt}
    - {name: prose, role: replay, path: FOLDER/prose.txt}
tokenize: {vocabulary: {train: 400}}
mix: {sequence_length: 64, domain_share: 0.7}
train:
  tokens: 64k tokens
  batch_tokens: 640
  learning_rate: 5e-5
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "code.txt").write_text("code")
    (tmp_path / "prose.txt").write_text("prose")

    def write(text=GOOD, **replacements):
        for old, new in replacements.items():
            text = text.replace(old, new)
        path = tmp_path / "recipe.yaml"
        path.write_text(text.replace("FOLDER", str(tmp_path)))
        return path

    return write


def problems(path, *sets):
    with pytest.raises(RecipeError) as caught:
        load(path, None, sets)
    return {problem.path: problem for problem in caught.value.problems}


def test_a_good_recipe_loads_and_numbers_are_numbers(recipe):
    loaded = load(recipe())
    assert float(str(loaded.recipe.train.learning_rate)) == 5e-5
    assert loaded.recipe.train.tokens == 64_000


def test_all_problems_come_at_once_with_place_value_and_remedy(recipe):
    text = GOOD.replace("domain_share: 0.7", "domain_share: 1.7, pakcing: best_fit").replace("64k tokens", "0")
    text += "name: again\nevalute: {every: 5%}\nseed: many\n"
    found = problems(recipe(text))
    assert {"mix.domain_share", "mix.pakcing", "train.tokens", "name", "evalute", "seed"} <= set(found)
    assert "did you mean `packing`" in found["mix.pakcing"].message
    assert "did you mean `evaluate`" in found["evalute"].message
    assert found["mix.domain_share"].value == "1.7"
    assert found["mix.domain_share"].place == "recipe.yaml:8"
    assert "twice (first on line 1)" in found["name"].message
    assert all(problem.place and problem.remedy for problem in found.values())


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("domain_share: 0.7", "domain_share: -0.1", "mix.domain_share"),
        ("role: replay", "role: watch", "mix.domain_share"),
        ("FOLDER/code.txt", "FOLDER/nothing.txt", "ingest.sources[0].path"),
        ("sequence_length: 64", "sequence_length: 128", "base.max_length"),
        ("{train: 400}", "keep", "tokenize.vocabulary"),
        ("batch_tokens: 640", "batch_tokens: 640\n  new_rows_first: 5%", "train.new_rows_first"),
        ("batch_tokens: 640", "batch_tokens: 670", "train.batch_tokens"),
        ("tokens: 64k tokens", "tokens: 100", "train.tokens"),
        ("learning_rate: 5e-5", "learning_rate: 0.1x base", "train.learning_rate"),
        ("learning_rate: 5e-5", "learning_rate: 5e-5\n  save: {every: 5000 steps}", "train.save.every"),
        ("name: test", "name: test\nevaluate: {every: 5000 steps}", "evaluate.every"),
        ("name: test", "name: test\nbase: models/none", "base"),
        ("name: test", "name: a/b", "name"),
    ],
)
def test_what_cannot_work_is_found_before_any_work(recipe, old, new, path):
    assert path in problems(recipe(GOOD.replace(old, new)))


def test_missing_files_and_wrong_values_are_reported_together(recipe):
    text = GOOD.replace("FOLDER/code.txt", "FOLDER/nothing.txt").replace("domain_share: 0.7", "domain_share: 7")
    text = text.replace("learning_rate: 5e-5", "learning_rate: 5e-5\n  save: {every: 9000 steps}\n  colour: red")
    found = problems(recipe(text))
    assert set(found) == {"ingest.sources[0].path", "mix.domain_share", "train.colour", "train.save.every"}


def test_an_unknown_plug_is_refused_with_the_known_ones(recipe):
    found = problems(recipe(GOOD + "select: bst\n"))
    assert "known: `best_new_within_budget`" in found["select"].message


def test_set_changes_values_and_its_problems_say_so(recipe):
    assert load(recipe(), None, ["train.tokens=128k tokens", "seed=3"]).recipe.seed == 3
    assert problems(recipe(), "train.tokens=-5")["train.tokens"].place == "--set"


def test_missing_and_empty_files(tmp_path):
    assert "there is no recipe" in problems(tmp_path / "none.yaml")[""].message
    (tmp_path / "empty.yaml").write_text("")
    assert "is empty" in problems(tmp_path / "empty.yaml")[""].message


def test_a_written_recipe_shows_every_default_and_reads_back_equal(recipe, tmp_path):
    loaded = load(recipe()).recipe
    write_recipe(tmp_path / "resolved.yaml", loaded)
    assert load(tmp_path / "resolved.yaml").recipe == loaded
    assert "weight_decay: 0.1" in (tmp_path / "resolved.yaml").read_text()


def test_what_is_no_file_is_refused_at_once_with_the_way_to_mend_it(tmp_path, recipe, monkeypatch):
    good = recipe()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to("nowhere.yaml")
    (tmp_path / "folder").mkdir()
    says = {
        tmp_path / "pipe.yaml": "a pipe or a device",
        tmp_path / "link.yaml": "a link to `nowhere.yaml`, which is not there",
        tmp_path / "folder": "is no directory of a run",
        tmp_path / "far" / "away.yaml": "there is no recipe",
    }
    for path, message in says.items():
        assert message in problems(path)[""].message
    assert f"the nearest one is `{tmp_path}`" in problems(tmp_path / "far" / "away.yaml")[""].remedy
    assert "did you mean" in problems(good.with_name("recpie.yaml"))[""].remedy
    with pytest.raises(RecipeError, match="machine file: .*is a folder, not a file"):
        load(good, tmp_path / "folder")


def test_a_value_that_cannot_be_read_is_complained_about_once(recipe):
    text = GOOD.replace("learning_rate: 5e-5", "learning_rate: .inf").replace("FOLDER/code.txt", '"co\\0de"')
    found = problems(recipe(text))
    assert set(found) == {"train.learning_rate", "ingest.sources[0].path"}


def test_only_the_first_of_very_many_problems_are_printed(recipe):
    text = GOOD + "".join(f"wrong{number}: 1\n" for number in range(500))
    with pytest.raises(RecipeError, match="and 460 more") as caught:
        load(recipe(text))
    assert len(caught.value.problems) == 500


@pytest.mark.parametrize("config", ["", "[1]", "[" * 100_000])
def test_a_damaged_config_of_the_base_is_named(recipe, tmp_path, config):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(config)
    text = GOOD.replace("{init: random, hidden_size: 32, layers: 2, heads: 2, max_length: 64}", "FOLDER/model")
    assert "config.json" in problems(recipe(text.replace("{train: 400}", "keep")))["base"].message


@pytest.mark.parametrize(
    ("old", "new", "key"), [("\ntrain:", "\ntrian:", "trian"), ("batch_tokens", "batch_tokns", "train.batch_tokns")]
)
def test_a_typo_in_a_key_is_one_problem(recipe, old, new, key):
    assert set(problems(recipe(GOOD.replace(old, new)))) == {key}


def test_a_required_key_that_is_really_missing_is_still_said(recipe):
    assert {"train", "colour"} <= set(problems(recipe(GOOD[: GOOD.index("train:\n")] + "colour: red\n")))


def test_the_hint_of_a_missing_path_names_how_far_it_goes(recipe, tmp_path):
    found = problems(recipe(GOOD.replace("FOLDER/code.txt", "FOLDER/far/away/code.txt")))
    remedy = found["ingest.sources[0].path"].remedy
    assert f"`{tmp_path}`" in remedy and "relative" not in remedy
    found = problems(recipe(GOOD.replace("FOLDER/code.txt", "far/away/code.txt")))
    assert "relative paths" in found["ingest.sources[0].path"].remedy


def test_explain_writes_as_recipes_do():
    assert "``" not in str(explain("train.method"))
    assert explain("train.save.self_test").default == "true"
    assert explain("mix.anneal").default == "null"
