"""Arguments and options that commands share, and what they all do with them.

``StageOptions`` is written once; ``with_stage_options`` gives a command its fields as options of its own, so that a
new option reaches every command that makes stages.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from deepen.recipe.reading import Loaded

RecipeArgument = Annotated[Path, typer.Argument(help="Recipe file, or the directory of an earlier run.")]
RunArgument = Annotated[Path, typer.Argument(help="Run directory, such as runs/NAME.")]
MachineOption = Annotated[Path | None, typer.Option("--machine", help="Machine file (default: this machine as it is).")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a key: train.tokens=1M. Repeatable.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_RUNS = Path("runs")


@dataclass(frozen=True)
class StageOptions:
    """Options of every command that makes stages of a run."""

    machine: MachineOption = None
    sets: SetOption = None
    runs: RunsOption = DEFAULT_RUNS
    redo: Annotated[bool, typer.Option("--redo", help="Make anew what was made from other settings or inputs.")] = False
    extend: Annotated[bool, typer.Option("--continue", help="Train on with a larger train.tokens.")] = False
    offline: Annotated[bool, typer.Option("--offline", help="Use nothing from the network.")] = False
    part: Annotated[str | None, typer.Option("--part", help="Do share I/N of the parts; the last to end goes on.")] = (
        None
    )
    as_json: JsonOption = False


def with_stage_options(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with the fields of ``StageOptions`` in place of its parameter ``options``."""
    signature = inspect.signature(command, eval_str=True)
    hints = get_type_hints(StageOptions, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(StageOptions)
    ]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name != "options"
    ]

    @functools.wraps(command)
    def spread(**given: Any) -> None:
        options = StageOptions(**{field.name: given.pop(field.name) for field in fields(StageOptions)})
        command(options=options, **given)

    spread.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return spread


def load(recipe: Path, machine: Path | None, sets: list[str] | None) -> Loaded:
    """The recipe and machine of a command line; raises ``RecipeError`` with all problems."""
    from deepen.recipe.reading import load as read

    return read(recipe, machine, sets or [])


def run_directory(recipe: Path, runs: Path, loaded: Loaded) -> Path:
    """Where the run lies; one that is given by its directory stays where it is."""
    return (recipe.resolve().parent if recipe.is_dir() else runs) / loaded.recipe.name


def print_json(value: Any) -> None:
    """A result for machines."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def write_report(directory: Path) -> Path:
    """Write a run's report; returns its path."""
    from deepen.board.report import write_report as write

    return write(directory)
