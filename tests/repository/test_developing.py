"""docs/developing.md must be true: files that it names are there, lists suffice, examples run as they stand there."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deepen
from deepen.curate.config import STEPS
from deepen.evaluate.config import PROBES
from deepen.ingest.read.table import READERS
from deepen.train.schedule.schedules import SCHEDULES

ROOT = Path(deepen.__file__).parents[1]
PAGE = (ROOT / "docs" / "developing.md").read_text()
BLOCKS = re.findall(r"^\*\*`([^`\n]+)`\*\*\n\n```(python|diff)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
NEW = {path for path, kind, _ in BLOCKS if kind == "python"}
EXAMPLES = sorted(path for path in NEW if path.startswith("tests/"))


def changed(text: str, patch: str) -> str:
    """A file after a patch: hunks without numbers, each of which must fit at one place."""
    for hunk in patch.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] or "\n" for line in lines if line[0] in " -")
        after = "".join(line[1:] or "\n" for line in lines if line[0] in " +")
        assert text.count(before) == 1, f"does not fit at one place:\n{hunk}"
        text = text.replace(before, after)
    return text


def copy_with(folder: Path, left_out: tuple[str, ...] = ()) -> Path:
    """A copy of the package and its tests in which everything is done that the page says, but for some files."""
    for name in ("deepen", "tests"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("README.md", "docs", "recipes", "machines"):
        (folder / name).symlink_to(ROOT / name)
    for name, kind, code in BLOCKS:
        path = folder / name
        if name in left_out:
            continue
        if kind == "python":
            assert not path.exists(), f"{name} is there already: the page needs another example"
            path.write_text(code)
        else:
            path.write_text(changed(path.read_text(), code))
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    python = [sys.executable, "-m", *command]
    return subprocess.run(python, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def run_tests(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "pytest", "-p", "no:cacheprovider", *arguments)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_with(tmp_path_factory.mktemp("copy"))


def test_the_examples_run_as_they_stand_on_the_page(copy):
    kinds = {path.split("/")[1] for path in EXAMPLES}
    assert kinds == {"ingest", "curate", "train", "evaluate"}
    explained = "tests/repository/test_story.py::test_every_key_can_be_explained"
    family = (
        "tests/model/compute/test_packed.py::test_a_packed_document_has_the_logits_that_it_has_alone[seed_oss-sdpa]"
    )
    counts = "tests/formats/test_architecture.py"
    done = run_tests(copy, *EXAMPLES, explained, family, counts, "-rp")
    assert done.returncode == 0, done.stdout
    assert all(f"PASSED {path}::" in done.stdout for path in EXAMPLES)
    assert f"PASSED {family}\n" in done.stdout and "[seed_oss-True]\n" in done.stdout


def test_the_examples_keep_the_rules_of_the_code(copy):
    paths = sorted({path for path, _, _ in BLOCKS})
    for command in (("check",), ("format", "--check")):
        done = run(copy, "ruff", *command, "--no-cache", *paths)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("left_out", "example"),
    [
        (path, example)
        for path, kind, _ in BLOCKS
        if path.startswith("deepen/")
        for example in EXAMPLES
        if path.split("/")[1] == example.split("/")[1]
    ],
)
def test_every_file_of_a_list_is_needed(tmp_path, left_out, example):
    done = run_tests(copy_with(tmp_path, (left_out,)), example)
    assert done.returncode != 0, f"the example does without {left_out}"


def test_every_file_that_the_page_names_is_there():
    named = set(re.findall(r"`((?:deepen|tests|docs)/[\w/]+\.\w+|[A-Z]+\.md)`", PAGE))
    assert len(named) > 40
    assert {path for path in named - NEW if not (ROOT / path).is_file()} == set()
    assert set(re.findall(r"`([\w/.]+)` \(new\)", PAGE)) == NEW


def test_every_file_that_an_example_touches_is_in_its_list():
    for section in PAGE.split("\n## ")[1:]:
        touched = {path for path, _, _ in BLOCKS if f"**`{path}`**" in section}
        rows = " ".join(line for line in section.splitlines() if line.startswith("|"))
        assert [path for path in touched if f"`{path}`" not in rows] == []


@pytest.mark.parametrize(
    ("table", "page"), [(READERS, "ingest"), (STEPS, "curate"), (SCHEDULES, "train"), (PROBES, "probes")]
)
def test_what_is_in_a_table_is_on_the_page_that_the_list_names(table, page):
    assert f"`docs/{page}.md`" in PAGE
    words = set(re.findall(r"[\w-]+", (ROOT / "docs" / f"{page}.md").read_text()))
    assert [name for name in table if name not in words] == []


def test_the_way_to_the_gradient_is_the_way():
    steps = re.findall(r"^(\d+)\. (.*)$", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, 11))
    for _, text in steps:
        path = None
        for file, name in re.findall(r"`(deepen/[\w/]+\.py)`|`(\w+)`", text):
            path = file or path
            assert path is not None, f"no file is named first: {text}"
            assert not name or name in defined(ROOT / path), f"{path} has no {name}"


def defined(path: Path) -> set[str]:
    """Functions of a file, and what it gives names to."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    targets = {
        node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return targets | {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
