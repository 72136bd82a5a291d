"""Reading a recipe and a machine file: every problem at once, with place, value and remedy, before any work starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deepen.errors import Problem, RecipeError, RunError
from deepen.formats.files.yaml_text import Key, YamlText, dotted_path, read_yaml, set_value, shortened, write_yaml
from deepen.plug import field_names
from deepen.recipe.checks import check, key_of, salvage, sections_of
from deepen.recipe.doubts import doubts
from deepen.recipe.layouts import config_of, layout_problems
from deepen.recipe.models import Machine, Recipe
from deepen.settings import Settings


@dataclass(frozen=True)
class Loaded:
    """A recipe and a machine that were read and found sound, with the places of their keys."""

    recipe: Recipe
    machine: Machine
    text: YamlText

    @property
    def doubts(self) -> list[Problem]:
        """What can be done and is probably not meant."""
        return doubts(self.recipe, self.text)


def load(recipe_path: Path, machine_path: Path | None = None, sets: Sequence[str] = ()) -> Loaded:
    """Read a recipe and a machine file, apply ``--set`` assignments; raises ``RecipeError`` with all problems.

    ``recipe_path`` may be the directory of a run, which has both."""
    if recipe_path.is_dir():
        used = recipe_path / "machine.yaml"
        machine_path = machine_path or (used if used.is_file() else None)
        recipe_path = recipe_path / "recipe.yaml"
    problems: list[Problem] = []
    text = _read(recipe_path, "recipe", problems)
    machine_text = _read(machine_path, "machine file", problems) if machine_path else YamlText(data={})
    for assignment in sets:
        set_value(machine_text if assignment.startswith("machine.") else text, assignment.removeprefix("machine."))
    problems += [*text.problems, *machine_text.problems]
    machine = _validate(Machine, machine_text, problems)
    recipe = _validate(Recipe, text, problems)
    if recipe is not None:
        problems += check(sections_of(recipe), text)
    elif text.data:
        wrong = [key_of(problem.path) for problem in problems]
        known = {problem.path for problem in problems}
        problems += [
            problem
            for problem in check(salvage(_as_meant(text.data, problems), wrong), text)
            if problem.path not in known
        ]
    if recipe is not None and machine is not None and not problems:
        found = layout_problems(recipe, machine, config_of(recipe.base))
        places = {"mesh": machine_text, "train": text}
        problems += [
            replace(problem, place=places[problem.path.split(".")[0]].place(key_of(problem.path))) for problem in found
        ]
    if problems or recipe is None or machine is None:
        raise RecipeError(sorted(problems, key=_line))
    return Loaded(recipe, machine, text)


def _as_meant(data: Any, problems: Sequence[Problem]) -> Any:
    """The data with the values of mistyped keys under the keys that were meant, so that no default is complained of."""
    data = deepcopy(data)
    for problem in problems:
        close = re.match("unknown key; did you mean `(.*)`", problem.message)
        *above, last = key_of(problem.path)
        holder = data
        for part in above:
            inside = part in holder if isinstance(holder, dict) else isinstance(holder, list)
            holder = holder[part] if inside else None
        if close is not None and isinstance(holder, dict) and last in holder:
            holder.setdefault(close[1], holder[last])
    return data


def recipe_of(run: Path) -> Recipe:
    """The recipe that a run was started with, for looking at what came of it: its inputs may be gone by now.

    Raises ``RunError`` when ``run`` is no run directory, ``RecipeError`` for what is no recipe.
    """
    path = run / "recipe.yaml"
    if not path.is_file():
        raise RunError(
            f"`{run}` is no run directory: it has no `{path.name}`",
            hint="give the folder that `deepen run` printed, such as runs/NAME",
        )
    problems: list[Problem] = []
    text = _read(path, "recipe", problems)
    problems += text.problems
    recipe: Recipe | None = _validate(Recipe, text, problems)
    if problems or recipe is None:
        remedy = f"`{path}` is written when a run starts: put it back, or run again with the recipe it came from"
        raise RecipeError([replace(problem, remedy=problem.remedy or remedy) for problem in problems])
    return recipe


def _line(problem: Problem) -> tuple[str, int]:
    name, _, line = problem.place.rpartition(":")
    return name, int(line) if line.isdigit() else 0


_REMEDIES = {"recipe": "`deepen init` writes a first recipe", "machine file": "see the folder `machines/`"}


def _read(path: Path, what: str, problems: list[Problem]) -> YamlText:
    name = "" if what == "recipe" else what
    if (message := _absence(path, what)) is not None:
        problems.append(Problem(name, message, _near(path, what)))
        return YamlText(data={})
    text = read_yaml(path)
    text.problems = [problem if problem.path else replace(problem, path=name) for problem in text.problems]
    if not isinstance(text.data, dict) and not text.problems:
        message = "is empty" if text.data is None else "holds no keys and values such as `name: my-run`"
        problems.append(Problem(name, message, _REMEDIES[what], place=path.name))
    if not isinstance(text.data, dict):
        text.data = {}
    return text


def _absence(path: Path, what: str) -> str | None:
    """Why there is nothing to be read at ``path``; None when there is a file."""
    if path.is_file():
        return None
    if path.is_dir():
        return f"`{path}` is a folder, not a file"
    if path.is_symlink():
        return f"`{path}` is a link to `{path.readlink()}`, which is not there"
    if path.exists():
        return f"`{path}` is no ordinary file but a pipe or a device"
    if path.parent.is_dir() and path.name == "recipe.yaml" and path.parent != Path():
        return f"there is no {what} at `{path}`: `{path.parent}` is no directory of a run"
    return f"there is no {what} at `{path}`"


def _near(path: Path, what: str) -> str:
    """What to do about a path where nothing is: names that are like it, or how far the path goes."""
    if path.parts[:1] == ("~",):
        return "`~` is put in by the shell only where an argument begins with it: write the folder out"
    folder = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    if folder != path.absolute().parent:
        return f"there is no such folder; the nearest one is `{folder}`"
    with suppress(OSError):
        names = [entry.name for entry in islice(folder.iterdir(), 1000)]
        close = get_close_matches(path.name, names, n=1)
        if close and close[0] != path.name:
            return f"did you mean `{path.parent / close[0]}`?"
    return _REMEDIES[what]


def _validate(model: type[Any], text: YamlText, problems: list[Problem]) -> Any:
    """Validate; a model whose text could not be read at all is not complained about a second time."""
    if not text.data and problems:
        return None
    try:
        return model.model_validate(text.data)
    except ValidationError as error:
        details = [dict(detail) for detail in error.errors(include_url=False)]
        problems += [explain_error(model, text, detail) for detail in _worth_saying(model, details, text)]
        return None


def _worth_saying(model: type[Settings], details: Sequence[dict[str, Any]], text: YamlText) -> list[dict[str, Any]]:
    """Errors that are no mere consequence of others: of a value that could not be read, of wrong entries, of a typo."""
    locations = [detail["loc"] for detail in details]
    keys = [_key_in_text(location, text.data) for location in locations]
    unread = [any(key[: len(other)] == other for other in text.unread) for key in keys]
    meant = {(*key[:-1], name) for key, name in _typos(model, details, keys)}
    return [
        detail
        for detail, location, done in zip(details, locations, unread, strict=True)
        if not done and not (detail["type"] == "too_short" and _has_inner(location, locations))
        if not (detail["type"] == "missing" and _key_in_text(location, text.data) in meant)
    ]


def _typos(model: type[Settings], details: Sequence[dict[str, Any]], keys: Sequence[Key]) -> Iterator[tuple[Key, str]]:
    """Unknown keys, each with the known one that it is most like."""
    for detail, key in zip(details, keys, strict=True):
        if detail["type"] == "extra_forbidden":
            for name in get_close_matches(str(key[-1]), field_names(model, key[:-1]), n=1):
                yield key, name


def _has_inner(location: tuple[str | int, ...], others: Sequence[tuple[str | int, ...]]) -> bool:
    return any(len(other) > len(location) and other[: len(location)] == location for other in others)


_EXPECTED = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "string_type": "expected text",
    "bool_type": "expected `true` or `false`",
    "tuple_type": "expected a list",
    "dict_type": "expected keys and values",
    "model_type": "expected keys and values",
    "missing": "is required",
}


def explain_error(model: type[Settings], text: YamlText, detail: dict[str, Any]) -> Problem:
    """One validation error of ``model`` as a problem that names key, place, value and remedy."""
    key = _key_in_text(detail["loc"], text.data)
    dotted = dotted_path(key)
    message = _EXPECTED.get(detail["type"], detail["msg"])
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    remedy = f"`deepen explain {dotted_path(tuple(part for part in key if isinstance(part, str)))}` says what is meant"
    if detail["type"] == "extra_forbidden":
        names = field_names(model, key[:-1])
        close = get_close_matches(str(key[-1]), names, n=1)
        message = "unknown key" + (f"; did you mean `{close[0]}`?" if close else "")
        remedy = f"known keys here: {', '.join(names)}"
    value = "" if detail["type"] == "missing" else shortened(str(detail["input"]))
    return Problem(dotted, message, remedy, value, text.place(key))


def _key_in_text(loc: tuple[str | int, ...], data: Any) -> Key:
    """Drop what pydantic adds to a location (names of plugs and of union branches) and the text does not have."""
    key: list[str | int] = []
    for index, part in enumerate(loc):
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if in_list or (isinstance(data, dict) and part in data):
            data = data[part]
        elif index < len(loc) - 1 or not isinstance(data, dict):
            continue
        key.append(part)
    return tuple(key)


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write the recipe with every default visible; reading it back gives the same recipe."""
    header = "Resolved recipe: every default is written out. `deepen explain KEY` says what a key means."
    write_yaml(path, recipe.model_dump(mode="json", by_alias=True), header)


def write_settings(run: Path, recipe: Recipe, machine: Machine) -> None:
    """Write recipe and machine file of a run, with every default visible."""
    write_recipe(run / "recipe.yaml", recipe)
    described = machine.model_dump(mode="json", by_alias=True)
    write_yaml(run / "machine.yaml", described, "Machine on which the run was last started.")
