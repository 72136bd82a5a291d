"""What the code imports is declared, and what is declared is imported or has a reason to be there."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import deepen

ROOT = Path(deepen.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INDIRECT = {
    "protobuf": "transformers reads sentencepiece models with it",
    "sentencepiece": "transformers converts tokenizer.model with it",
    "tiktoken": "transformers converts the original tokenizers of Llama 3 with it",
    "jinja2": "transformers renders chat templates with it",
    "lxml-html-clean": "trafilatura needs it beside lxml",
    "aiohttp": "fsspec's client of web servers",
    "s3fs": "fsspec's client of s3",
    "gcsfs": "fsspec's client of Google's store",
    "peft": "imported by its name, so that a missing extra is told",
    "tensorboard": "torch.utils.tensorboard writes with it",
}
"""Declared and imported by no file of ours, and why."""
PARTS = {"pydantic-core": "pydantic"}
"""Distributions that are pinned by another one and belong to it."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def imported(package: Path) -> dict[str, str]:
    """Distributions by the modules of others that a package imports anywhere, with a file that does."""
    known = packages_distributions()
    found = {}
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            for module in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"deepen"}:
                name = normal(known.get(module, [module])[0])
                found[PARTS.get(name, name)] = f"{path}: {module}"
    return found


def undeclared(package: Path, requirements: list[str]) -> dict[str, str]:
    return {name: place for name, place in imported(package).items() if name not in declared(requirements)}


def all_requirements() -> list[str]:
    extras = PROJECT["optional-dependencies"]
    return PROJECT["dependencies"] + [one for name in extras if name != "dev" for one in extras[name]]


def test_what_is_imported_is_declared():
    assert undeclared(ROOT / "deepen", all_requirements()) == {}


def test_what_is_declared_is_imported_or_has_a_reason():
    used = set(imported(ROOT / "deepen"))
    assert declared(all_requirements()) - used - set(INDIRECT) == set()
    assert used & set(INDIRECT) == set()


def test_an_import_that_is_not_declared_would_be_seen(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    import numpy.linalg\n    from pluggy import PluginManager\n")
    assert list(undeclared(tmp_path, ["numpy>=2"])) == ["pluggy"]


def test_what_is_declared_has_its_version_in_the_constraints():
    pinned = {normal(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    extras_not_pinned = {"wandb", "mlflow", "liger-kernel", "aiohttp", "s3fs", "gcsfs"}
    assert declared(all_requirements()) - pinned == extras_not_pinned
