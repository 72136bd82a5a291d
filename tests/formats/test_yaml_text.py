from deepen.formats.files.yaml_text import dotted_path, read_yaml, set_value, write_yaml


def read(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return read_yaml(path)


def test_numbers_and_words_are_read_by_yaml_1_2(tmp_path):
    text = read(tmp_path, "a: 5e-5\nb: no\nc: 1_000\nd: '5'\ne: 2026-05-01\nf:\n")
    assert text.data == {"a": 5e-5, "b": "no", "c": 1000, "d": "5", "e": "2026-05-01", "f": None}


def test_every_duplicate_key_is_a_problem_with_both_lines(tmp_path):
    text = read(tmp_path, "a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")
    assert [(problem.path, problem.place) for problem in text.problems] == [
        ("b.c", "recipe.yaml:4"),
        ("a", "recipe.yaml:5"),
    ]
    assert text.data == {"a": 1, "b": {"c": 1}}


def test_broken_yaml_is_a_problem_not_an_exception(tmp_path):
    text = read(tmp_path, "a: [1, 2\nb: 3\n")
    assert len(text.problems) == 1
    assert "not valid YAML" in text.problems[0].message


def test_places_name_the_line_of_a_key_or_of_what_encloses_it(tmp_path):
    text = read(tmp_path, "a: 1\nlist:\n  - {use: x}\n  - y\n")
    assert text.place(("list", 0, "use")) == "recipe.yaml:3"
    assert text.place(("list", 0, "missing")) == "recipe.yaml:3"
    assert text.place(("nowhere",)) == "recipe.yaml"


def test_set_reaches_into_lists_and_makes_mappings(tmp_path):
    text = read(tmp_path, "list:\n  - {use: x}\n")
    set_value(text, "list.0.size=3")
    set_value(text, "train.learning_rate=2e-5")
    assert text.data == {"list": [{"use": "x", "size": 3}], "train": {"learning_rate": 2e-5}}
    assert text.place(("train", "learning_rate")) == "--set"


def test_set_to_nowhere_is_a_problem(tmp_path):
    text = read(tmp_path, "list: [1]\n")
    set_value(text, "list.7.x=3")
    set_value(text, "novalue")
    assert len(text.problems) == 2


def test_writing_and_reading_back(tmp_path):
    value = {"z": 1, "a": {"list": [{"x": 1e-5}, "no"], "none": None}}
    write_yaml(tmp_path / "recipe.yaml", value, "a comment")
    assert read_yaml(tmp_path / "recipe.yaml").data == value


def test_dotted_path():
    assert dotted_path(("curate", "steps", 0, "min")) == "curate.steps[0].min"
