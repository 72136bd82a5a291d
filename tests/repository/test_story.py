"""The repository's own story must be true: README, tree, commands, recipes, docs, sizes and imports agree."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deepen
from deepen.cli import app
from deepen.errors import RecipeError
from deepen.plug import field_names
from deepen.recipe.explain import explain
from deepen.recipe.models import Machine, Recipe
from deepen.recipe.reading import load

ROOT = Path(deepen.__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
SOURCES = sorted((ROOT / "deepen").rglob("*.py"))
VERBS = sorted(command.name or command.callback.__name__ for command in app.registered_commands)
STAGES = ["ingest", "curate", "tokenize", "mix", "train", "evaluate", "select", "export"]


def test_every_command_that_the_texts_name_exists():
    texts = "\n".join([README, *DOCS.values()])
    code = re.findall(r"^```\w*\n(.*?)^```", texts, re.MULTILINE | re.DOTALL)
    lines = [line for block in code for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", texts)
    named = {match[1] for line in lines if (match := re.match(r"(?:\.venv/bin/)?deepen ([a-z]+)", line.strip()))}
    assert len(named) > 15
    assert named - set(VERBS) == set()


def test_every_command_has_a_page():
    pages = {"baseline": "evaluate.md"}  # the base is scored by the same rules
    without = [verb for verb in VERBS if f"deepen {verb}" not in DOCS.get(pages.get(verb, f"{verb}.md"), "")]
    assert without == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_folder_key_command_page_and_test_folder(stage):
    assert (ROOT / "deepen" / stage / "stage.py").is_file()
    assert stage in Recipe.model_fields
    assert stage in VERBS
    assert f"{stage}.md" in DOCS
    assert list((ROOT / "tests" / stage).glob("test_*.py"))


def test_the_readme_shows_the_tree_as_it_is():
    rooms = {path.name for path in (ROOT / "deepen").iterdir() if path.is_dir() and path.name != "__pycache__"}
    shown = set(re.findall(r"^  ([a-z]+)/", README.partition("```text")[2].partition("```")[0], re.MULTILINE))
    assert shown == rooms


def test_the_readme_names_the_test_command_that_ci_runs():
    assert "make test" in README
    assert "make test\n" in (ROOT / ".ci" / "run").read_text()


def test_pictures_in_the_readme_are_there():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert [picture for picture in pictures if not (ROOT / picture).is_file()] == []


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_have_no_problem_but_the_users_files(path):
    try:
        load(path)
    except RecipeError as error:
        about_files = {"base", "base.run"} | {f"ingest.sources[{index}].path" for index in range(9)}
        assert {problem.path for problem in error.problems} <= about_files, str(error)


@pytest.mark.parametrize("path", sorted((ROOT / "machines").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_machines_are_sound(path):
    with pytest.raises(RecipeError) as caught:
        load(ROOT / "recipes" / "none.yaml", path)
    assert len(caught.value.problems) == 1  # the missing recipe, nothing about the machine


def every_key(model, path=(), depth=0):
    for name in field_names(model, path):
        yield (*path, name)
        if depth < 3:
            yield from every_key(model, (*path, name), depth + 1)


@pytest.mark.parametrize(("model", "prefix"), [(Recipe, ""), (Machine, "machine.")])
def test_every_key_can_be_explained(model, prefix):
    keys = [key for key in every_key(model) if key[-1] != "use"]
    unexplained = [".".join(key) for key in keys if not explain(prefix + ".".join(key)).meaning]
    assert unexplained == []
    assert len(keys) > 5


def test_public_names_are_there():
    assert all(getattr(deepen, name) is not None for name in deepen.__all__)
    with pytest.raises(AttributeError):
        _ = deepen.no_such_name


LIGHT = [
    "import deepen",
    "from deepen.cli import main; import sys; sys.argv = ['deepen', '--help']; main()",
    "from deepen.cli import main; import sys; sys.argv = ['deepen', 'explain', 'train']; main()",
    "import deepen.recipe.reading, deepen.plan.estimate, deepen.runs.lineage, deepen.runs.account",
    "import deepen.runs.verify, deepen.runs.show.artifact, deepen.runs.order.rows, deepen.board.report",
    "import deepen.workflow.run, deepen.ingest.stage, deepen.curate.stage, deepen.mix.stage, deepen.select.stage",
]


@pytest.mark.parametrize("code", LIGHT)
def test_looking_loads_neither_torch_nor_transformers(code):
    end = "import sys, json; print(json.dumps([n for n in ('torch', 'transformers') if n in sys.modules]))"
    program = f"try:\n exec({code!r})\nexcept SystemExit: pass\n{end}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_no_room_has_a_drawer_for_everything():
    banned = {"utils", "util", "common", "helpers", "helper", "core", "misc", "base"}
    assert [path for path in SOURCES if path.stem in banned or path.parent.name in banned] == []


def test_files_and_functions_stay_small():
    long_files = {str(path): n for path in SOURCES if (n := path.read_text().count("\n")) > 400}
    assert long_files == {}
    functions = [
        (path.name, node.name, node.end_lineno - node.lineno + 1)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    assert [entry for entry in functions if entry[2] > 60] == []


def test_print_is_the_command_lines_business():
    printing = [path for path in SOURCES if re.search(r"^\s+print\(", path.read_text(), re.MULTILINE)]
    elsewhere = [path for path in printing if path.parent.name != "cli"]
    assert {path.name for path in elsewhere} <= {"progress.py", "chat.py"}
