import re

import pytest

from deepen.formats.files.yaml_text import YamlText, dotted_path, read_yaml, set_value, write_yaml


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


def bomb(levels):
    lines = ["x0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        (bomb(9), "more than 30,000 values", 5),
        ("a: 1\nx: &a [*a]\n", "has no end", 2),
        ("a: 1\nx: &a {b: {c: *a}}\n", "has no end", 2),
        ("a: 1\nx: " + "[" * 20_000 + "]" * 20_000, "nested more than", 2),
        ("\n".join(" " * depth + "a:" for depth in range(200)), "nested more than", 42),
        ("&a [1]\n".join(["x: "] + [f"y{n}: " for n in range(3)]) + "*b", "no `&b` before it", 4),
        ("a: 1\nb: 2\0\n", r"no text \(U\+0000\)", 2),
        ("a: 1\nb: \x07\n", r"no text \(U\+0007\)", 2),
        ("a:\n\tb: 1\n", "cannot start any token", 2),
        ("a: 1\n? [b, c]\n: 1\n", "a key must be text", 2),
        ("a: 1\n---\nb: 1\n", "a second document", 2),
        ('a: 1\nb: "\\UFFFFFFFF"\n', "an escape that is no character", 1),
        ("a: 1\n" + "b" * 300 + ": 1\n", "a key of 300 characters", 2),
        ("\n".join(f"k{n}: 1" for n in range(3_000)), "more than 2,000 keys", 2_001),
        ("a: [" + "1," * 31_000 + "]", "more than 30,000 values", 1),
        ("\n" * 200_000, "more than 100,000 lines", 100_000),
        ("a: " + "b" * 2_000_000, "too large", None),
    ],
)
def test_hostile_text_is_refused_with_its_line(tmp_path, text, says, line):
    (problem,) = read(tmp_path, text).problems
    assert re.search(says, problem.message)
    assert problem.place == ("recipe.yaml" if line is None else f"recipe.yaml:{line}")
    assert problem.remedy


@pytest.mark.parametrize(
    "text", ["!!python/object:os.system x", "!foo x", ".inf", "-.inf", ".nan", "1e999", "9" * 5000]
)
def test_values_that_cannot_be_used_are_named_with_their_key(tmp_path, text):
    found = read(tmp_path, f"a: 1\nb: {{c: {text}}}\n")
    assert [(problem.path, problem.place) for problem in found.problems] == [("b.c", "recipe.yaml:2")]


def test_escapes_that_no_file_name_can_hold_are_refused(tmp_path):
    found = read(tmp_path, 'a: "x\\0y"\nb: "\\ud800"\nc: "\\n"\n')
    assert [problem.path for problem in found.problems] == ["a", "b"]
    assert found.data == {"a": None, "b": None, "c": "\n"}


def test_merge_keys_and_aliases_are_read_and_what_is_given_counts(tmp_path):
    text = read(tmp_path, "one: &one {a: 1, b: {c: 2}}\ntwo:\n  <<: *one\n  a: 3\nthree: *one\nfour: {<<: 5}\n")
    assert text.data == {
        "one": {"a": 1, "b": {"c": 2}},
        "two": {"a": 3, "b": {"c": 2}},
        "three": {"a": 1, "b": {"c": 2}},
        "four": {},
    }
    assert [(problem.path, problem.place) for problem in text.problems] == [("four.<<", "recipe.yaml:6")]
    assert text.place(("three", "b", "c")) == "recipe.yaml:1"
    set_value(text, "three.b.c=9")
    assert text.data["one"]["b"]["c"] == 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marks_of_byte_order_are_understood(tmp_path, encoding):
    (tmp_path / "recipe.yaml").write_bytes("a: ä\r\nb: 2\r\n".encode(encoding))
    assert read_yaml(tmp_path / "recipe.yaml").data == {"a": "ä", "b": 2}


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"a: 1\nb: \xff\n")
    (problem,) = read_yaml(tmp_path / "recipe.yaml").problems
    assert "not UTF-8" in problem.message
    assert problem.place == "recipe.yaml:2"


@pytest.mark.parametrize(
    "assignment",
    [
        "a=[" + "[" * 5_000,
        "a=.inf",
        "a=!foo x",
        "a=*x",
        'a="\\0"',
        "a..b=1",
        "a[²]=1",
        "a=&x [*x]",
        f"a.{'9' * 5000}=1",
        "=1",
    ],
)
def test_hostile_assignments_are_problems(assignment):
    text = YamlText(data={"a": [1]})
    set_value(text, assignment)
    (problem,) = text.problems
    assert problem.place == "--set"
    assert len(str(problem)) < 6_000


def test_set_takes_the_notation_of_messages_and_leaves_dates_as_text(tmp_path):
    text = read(tmp_path, "list:\n  - {use: x}\n")
    set_value(text, "list[0].size=3")
    set_value(text, "date=2026-13-45")
    assert text.data == {"list": [{"use": "x", "size": 3}], "date": "2026-13-45"}
