"""The command that starts a run on several nodes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from deepen.cli.options import DEFAULT_RUNS, MachineOption, RecipeArgument, RunsOption, SetOption, load, run_directory
from deepen.errors import DeepenError


def launch(
    recipe: RecipeArgument,
    slurm: Annotated[bool, typer.Option("--slurm", help="As a Slurm job.")] = False,
    ssh: Annotated[Path | None, typer.Option("--ssh", help="On the hosts of this file, one a line.")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Nodes (default: launch.nodes, or all).")] = None,
    submit: Annotated[bool, typer.Option("--submit/--print", help="Start it, or only print what would be.")] = False,
    until: Annotated[str, typer.Option("--until", help="Last stage to make.")] = "export",
    machine: MachineOption = None,
    sets: SetOption = None,
    runs: RunsOption = DEFAULT_RUNS,
    offline: Annotated[bool, typer.Option("--offline", help="Use nothing from the network.")] = False,
) -> None:
    """Start a run on several nodes, with Slurm or over ssh; prints the script or the commands, or submits them."""
    from deepen.workflow.training.nodes import Launching, job_for, over_ssh, submit_script

    if slurm == (ssh is not None):
        raise DeepenError("give either --slurm or --ssh HOSTFILE", hint="see `deepen launch --help`")
    loaded = load(recipe, machine, sets)
    directory = run_directory(recipe, runs, loaded)
    options = ["run", str(recipe), "--runs", str(runs), "--until", until]
    options += ["--machine", str(machine)] if machine is not None else []
    options += [word for assignment in sets or () for word in ("--set", assignment)]
    options += ["--offline"] if offline else []
    made = job_for(loaded.machine, Launching(loaded.recipe.name, tuple(options), directory, nodes, ssh))
    if not submit:
        print(made.text)
        print("nothing was started: add --submit", file=sys.stderr)
    elif slurm:
        print(submit_script(made))
    else:
        over_ssh(made)
