"""What CONTRIBUTING.md says of the checks, the hooks, CI and the changelog is so."""

import re
from pathlib import Path

from ruamel.yaml import YAML

import deepen
from deepen.settings import VERSION

ROOT = Path(deepen.__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def commands_of(target: str) -> str:
    return MAKEFILE.partition(f"\n{target}:")[2].partition("\n\n")[0].replace("$(BIN)", ".venv/bin")


def test_every_file_that_it_names_is_there():
    named = set(re.findall(r"`((?:tests/|docs/|\.)[\w/.-]+)`|\]\(([\w/.]+)\)", CONTRIBUTING))
    paths = {one or other for one, other in named} - {".venv"}
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_target_that_it_names_is_in_the_makefile():
    named = set(re.findall(r"make ([a-z]+(?:-[a-z]+)?)\b", CONTRIBUTING))
    assert {"check", "test", "format", "test-slow"} <= named
    assert [target for target in named if not commands_of(target)] == []


def test_hooks_run_what_make_check_runs():
    hooks = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    entries = {hook["entry"] for hook in hooks}
    checks = re.findall(r"^\t(\.venv/bin/\w[\w -]*?)(?: --check)?(?: \.)?$", commands_of("check"), re.MULTILINE)
    assert entries == set(checks) and len(checks) == 4
    assert {hook["language"] for hook in hooks} == {"system"}


def test_ci_runs_what_it_says():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith(("make ", ".ci/"))] == ["make check", "make test", ".ci/wheel"]


def test_the_changelog_has_an_open_section_and_the_present_version():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings[1:]]
    assert all(released) and released[0][1] == VERSION
    dates = [found[2] for found in released]
    assert dates == sorted(dates, reverse=True)


def test_the_licence_is_the_one_that_is_named():
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License\n")
    assert 'license = "Apache-2.0"\nlicense-files = ["LICENSE"]\n' in (ROOT / "pyproject.toml").read_text()
