"""The tree stays a tree: folders that can be seen at once, and no two files that need each other."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import deepen

PACKAGE = Path(deepen.__file__).parent
MOST_FILES = 12


def modules(package: Path) -> dict[str, Path]:
    names = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in sorted(package.rglob("*.py"))
    }
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules that a file imports anywhere in it, inside functions and for types alone too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in known else node.module for name in inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(known)


def circle(package: Path) -> list[str]:
    """Some files that import each other in a circle, or nothing."""
    known = modules(package)
    graph = {name: imports(path, known) - {name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def crowded(package: Path) -> dict[str, int]:
    folders = {path.parent for path in package.rglob("*.py")}
    counts = {str(folder): sum(path.name != "__init__.py" for path in folder.glob("*.py")) for folder in folders}
    return {folder: count for folder, count in counts.items() if count > MOST_FILES}


WAY = ("cli/running", "workflow/run", "workflow/stages", "train/stage", "train/loop", "train/step")
"""From `deepen train` to the gradient: each file names the next one."""


def test_the_way_from_the_command_to_the_gradient_is_short():
    texts = [(PACKAGE / f"{name}.py").read_text() for name in WAY]
    modules_ = [f"deepen.{name.replace('/', '.')}" for name in WAY]
    missing = [(WAY[number], name) for number, name in enumerate(modules_[1:]) if name not in texts[number]]
    assert missing == []
    assert ".backward()" in texts[-1]
    assert sum(text.count("\n") for text in texts) <= 1500


def test_no_files_import_each_other_in_a_circle():
    assert circle(PACKAGE) == []


def test_no_folder_has_too_many_files():
    assert crowded(PACKAGE) == {}


@pytest.mark.parametrize("line", ["from made import b", "import made.b", "def f():\n    from made.b import x"])
def test_circles_and_crowds_would_be_seen(tmp_path, line):
    package = tmp_path / "made"
    package.mkdir()
    for name in ("__init__", *(f"module_{number}" for number in range(MOST_FILES - 1))):
        (package / f"{name}.py").write_text("")
    (package / "a.py").write_text(line)
    assert circle(package) == [] and crowded(package) == {}
    (package / "b.py").write_text("from made.a import f")
    assert set(circle(package)) == {"made.a", "made.b"}
    assert list(crowded(package).values()) == [MOST_FILES + 1]
