"""Commands before a run: a first recipe, what is wrong with it, what its keys mean, what it will cost, its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepen.board.console import print_explanation, print_table
from deepen.cli.options import (
    DEFAULT_RUNS,
    JsonOption,
    MachineOption,
    RecipeArgument,
    RunsOption,
    SetOption,
    load,
    print_json,
)
from deepen.errors import RecipeError


def init(
    path: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a first recipe with comments."""
    from deepen.recipe.starter import write_starter

    write_starter(path, force=force)
    print(f"wrote {path}; edit the paths in it, then: deepen check {path}")


def check(
    recipe: RecipeArgument, machine: MachineOption = None, sets: SetOption = None, as_json: JsonOption = False
) -> None:
    """Find everything that is wrong with a recipe, before any work."""
    try:
        loaded = load(recipe, machine, sets)
    except RecipeError as error:
        if not as_json:
            raise
        print_json({"ok": False, "problems": [vars(problem) for problem in error.problems]})
        raise typer.Exit(error.exit_code) from error
    if as_json:
        warnings = [vars(doubt) for doubt in loaded.doubts]
        described = loaded.recipe.model_dump(mode="json", by_alias=True)
        print_json({"ok": True, "warnings": warnings, "recipe": described})
    else:
        print(f"{recipe}: no problems found in recipe `{loaded.recipe.name}`")
        for doubt in loaded.doubts:
            print(f"warning: {doubt}")


def biographies(
    folder: Annotated[Path, typer.Argument(help="Folder for the four files.")],
    people: Annotated[int, typer.Option("--people", min=2, max=5000, help="How many people.")] = 1000,
    rewrites: Annotated[int, typer.Option("--rewrites", min=1, help="Texts about each person.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything.")] = 17,
) -> None:
    """Write people who do not exist: text that teaches facts, and questions that show whether they were learnt."""
    from deepen.evaluate.items.biographies import write_biographies

    for entry in write_biographies(folder, num_people=people, rewrites=rewrites, seed=seed):
        print(f"{folder / entry.path}: {entry.bytes:,} bytes")


def explain(
    key: Annotated[str, typer.Argument(help="Dotted key, for example train.schedule.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Say what a key means, with its default and its sources."""
    from deepen.recipe.explain import explain as look_up

    found = look_up(key)
    print_json(vars(found)) if as_json else print_explanation(found)


def plan(
    recipe: RecipeArgument, machine: MachineOption = None, sets: SetOption = None, as_json: JsonOption = False
) -> None:
    """Estimate tokens, compute, memory, disk and cost on one page."""
    from deepen.plan.estimate import estimate

    loaded = load(recipe, machine, sets)
    lines = estimate(loaded.recipe, loaded.machine)
    if as_json:
        print_json([vars(line) for line in lines])
    else:
        rows = [(line.what, line.shown, line.how) for line in lines]
        print_table(f"plan for {loaded.recipe.name}", "what, estimate, how", rows)


def fetch(
    recipe: RecipeArgument, sets: SetOption = None, runs: RunsOption = DEFAULT_RUNS, as_json: JsonOption = False
) -> None:
    """Download and hash base and data; then runs work offline."""
    from deepen.workflow.inputs.find import fetch as fetch_inputs

    loaded = load(recipe, None, sets)
    rows = fetch_inputs(loaded.recipe, runs / loaded.recipe.name)
    if as_json:
        print_json([dict(zip(("what", "where", "identity"), row, strict=True)) for row in rows])
    else:
        print_table("fetched", "what, where, identity", rows)
