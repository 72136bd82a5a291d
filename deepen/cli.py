"""The command line: one command per verb. Parse, call, print; results on stdout, everything else on stderr."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepen import settings
from deepen.board.console import print_account, print_explanation, print_pair, print_preview, print_status, print_table
from deepen.errors import DeepenError, RecipeError

if TYPE_CHECKING:
    from deepen.recipe.reading import Loaded

app = typer.Typer(
    name="deepen",
    help="Continued pretraining for language models, from raw documents to a proven, exported model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[Path, typer.Argument(help="Recipe file, or the directory of an earlier run.")]
RunArgument = Annotated[Path, typer.Argument(help="Run directory, such as runs/NAME.")]
MachineOption = Annotated[Path | None, typer.Option("--machine", help="Machine file (default: this machine as it is).")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a key: train.tokens=1M. Repeatable.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RedoOption = Annotated[bool, typer.Option("--redo", help="Make anew what was made from other settings or inputs.")]
ExtendOption = Annotated[bool, typer.Option("--continue", help="Train on with a larger train.tokens.")]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use nothing from the network.")]
PartOption = Annotated[str | None, typer.Option("--part", help="Do share I/N of the parts; the last to end goes on.")]

DEFAULT_RUNS = Path("runs")


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"deepen {settings.VERSION}")
        raise typer.Exit


def main() -> None:
    """Entry point: run a command; users' errors are shown without a traceback."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except DeepenError as error:
        _error(f"{error.message}\n\nhint: {error.hint}" if error.hint else error.message)
        sys.exit(error.exit_code)
    except typer.Abort:
        _error("stopped")
        sys.exit(130)
    except KeyboardInterrupt:
        _error("stopped; run the same command again to go on from here")
        sys.exit(130)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _error(f"the disk is full: {error}\n\nhint: make room and run the same command again; finished parts are kept")
        sys.exit(1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own usage errors know how to show themselves
            raise
        error.show()  # type: ignore[attr-defined]
        sys.exit(2)


def _error(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def _load(recipe: Path, machine: Path | None, sets: list[str] | None) -> Loaded:
    from deepen.recipe.reading import load

    return load(recipe, machine, sets or [])


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a first recipe with comments."""
    from deepen.recipe.starter import write_starter

    write_starter(path, force=force)
    print(f"wrote {path}; edit the paths in it, then: deepen check {path}")


@app.command()
def check(
    recipe: RecipeArgument, machine: MachineOption = None, sets: SetOption = None, as_json: JsonOption = False
) -> None:
    """Find everything that is wrong with a recipe, before any work."""
    try:
        loaded = _load(recipe, machine, sets)
    except RecipeError as error:
        if not as_json:
            raise
        _print_json({"ok": False, "problems": [vars(problem) for problem in error.problems]})
        raise typer.Exit(error.exit_code) from error
    if as_json:
        _print_json({"ok": True, "recipe": loaded.recipe.model_dump(mode="json", by_alias=True)})
    else:
        print(f"{recipe}: no problems found in recipe `{loaded.recipe.name}`")


@app.command()
def explain(
    key: Annotated[str, typer.Argument(help="Dotted key, for example train.schedule.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Say what a key means, with its default and its sources."""
    from deepen.recipe.explain import explain as look_up

    found = look_up(key)
    _print_json(vars(found)) if as_json else print_explanation(found)


@app.command()
def plan(
    recipe: RecipeArgument, machine: MachineOption = None, sets: SetOption = None, as_json: JsonOption = False
) -> None:
    """Estimate tokens, compute, memory, disk and cost on one page."""
    from deepen.plan.estimate import estimate

    loaded = _load(recipe, machine, sets)
    lines = estimate(loaded.recipe, loaded.machine)
    if as_json:
        _print_json([vars(line) for line in lines])
    else:
        rows = [(line.what, line.shown, line.how) for line in lines]
        print_table(f"plan for {loaded.recipe.name}", "what, estimate, how", rows)


@app.command()
def fetch(
    recipe: RecipeArgument, sets: SetOption = None, runs: RunsOption = DEFAULT_RUNS, as_json: JsonOption = False
) -> None:
    """Download and hash base and data; then runs work offline."""
    from deepen.workflow.inputs import fetch as fetch_inputs

    loaded = _load(recipe, None, sets)
    rows = fetch_inputs(loaded.recipe, runs / loaded.recipe.name)
    if as_json:
        _print_json([dict(zip(("what", "where", "identity"), row, strict=True)) for row in rows])
    else:
        print_table("fetched", "what, where, identity", rows)


@app.command()
def run(
    recipe: RecipeArgument,
    machine: MachineOption = None,
    sets: SetOption = None,
    runs: RunsOption = DEFAULT_RUNS,
    first: Annotated[str, typer.Option("--from", help="First stage to make.")] = "ingest",
    last: Annotated[str, typer.Option("--until", help="Last stage to make.")] = "export",
    redo: RedoOption = False,
    extend: ExtendOption = False,
    offline: OfflineOption = False,
    part: PartOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run all stages that are not done yet, then write the report."""
    from deepen.workflow.run import RunOptions, parse_share, run_pipeline

    loaded = _load(recipe, machine, sets)
    directory = _directory(recipe, runs, loaded)
    options = RunOptions(first=first, last=last, redo=redo, extend=extend, offline=offline, share=parse_share(part))
    artifacts = run_pipeline(loaded.recipe, loaded.machine, directory, options)
    report_path = _write_report(directory) if "export" in artifacts else None
    if as_json:
        stages = {
            name: {"path": a.path, "fingerprint": a.fingerprint, "counts": a.counts} for name, a in artifacts.items()
        }
        _print_json({"run": str(directory), "report": report_path, "stages": stages})
        return
    print(f"run:    {directory}")
    if report_path is not None:
        print(f"model:  {artifacts['export'].path}\nreport: {report_path}")


def _directory(recipe: Path, runs: Path, loaded: Loaded) -> Path:
    """Where the run lies; one that is given by its directory stays where it is."""
    return (recipe.resolve().parent if recipe.is_dir() else runs) / loaded.recipe.name


def _write_report(directory: Path) -> Path:
    from deepen.board.report import write_report

    return write_report(directory)


def _stage_command(name: str, help_text: str) -> None:
    def command(
        recipe: RecipeArgument,
        machine: MachineOption = None,
        sets: SetOption = None,
        runs: RunsOption = DEFAULT_RUNS,
        redo: RedoOption = False,
        extend: ExtendOption = False,
        offline: OfflineOption = False,
        part: PartOption = None,
        as_json: JsonOption = False,
    ) -> None:
        run(recipe, machine, sets, runs, "ingest", name, redo, extend, offline, part, as_json)

    app.command(name, help=help_text)(command)


def curate(
    recipe: RecipeArgument,
    machine: MachineOption = None,
    sets: SetOption = None,
    runs: RunsOption = DEFAULT_RUNS,
    redo: RedoOption = False,
    offline: OfflineOption = False,
    part: PartOption = None,
    dry_run: Annotated[
        int | None, typer.Option("--dry-run", min=1, help="Only show what would become of so many documents.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Clean, deduplicate and hold out documents.

    Earlier stages that are not done are made first; with --dry-run nothing is written.
    """
    if dry_run is None:
        run(recipe, machine, sets, runs, "ingest", "curate", redo, False, offline, part, as_json)
        return
    from deepen.workflow.preview import preview_curate

    loaded = _load(recipe, machine, sets)
    preview = preview_curate(loaded.recipe, _directory(recipe, runs, loaded), dry_run)
    if as_json:
        _print_json(vars(preview))
    else:
        print_preview(preview.counts, preview.examples)


_STAGE_HELP = {
    "ingest": "Read files of any supported format into documents.",
    "tokenize": "Turn documents into token shards.",
    "mix": "Pack shards into rows and write down the training order.",
    "baseline": "Score the untouched base on the held-out documents.",
    "train": "Train; resumes at the newest intact checkpoint.",
    "evaluate": "Score every kept checkpoint against the base.",
    "select": "Choose one checkpoint, with the argument for it.",
    "export": "Write the chosen model as a proven Hugging Face folder.",
}
for _name, _help in _STAGE_HELP.items():
    _stage_command(_name, f"{_help}\n\nEarlier stages that are not done are made first.")
    if _name == "ingest":
        app.command("curate")(curate)


@app.command()
def demo(
    runs: RunsOption = DEFAULT_RUNS,
    compare: Annotated[bool, typer.Option("--compare", help="Also run without replay.")] = False,
) -> None:
    """Run the built-in example: a tiny base, continued on Python code."""
    from deepen.workflow.demo import run_demo

    for line in run_demo(runs, compare=compare):
        print(line)
    print(f"report: {_write_report(runs / 'demo')}")


@app.command()
def status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show which stages of a run are done and what they were made from."""
    from deepen.workflow.lineage import status as stage_status

    rows = stage_status(run)
    if as_json:
        _print_json([{**vars(row), "inputs": {k: v.fingerprint for k, v in row.inputs.items()}} for row in rows])
    else:
        print_status(run, rows)


@app.command()
def account(run: RunArgument, as_json: JsonOption = False) -> None:
    """Print the token account and fail if it does not balance."""
    from deepen.workflow.account import account as lines_of

    lines = lines_of(run)
    if not lines:
        raise DeepenError(f"`{run}` has no finished stages to account for", hint="run it first: `deepen run RECIPE`")
    balances = all(line.balances for line in lines)
    if as_json:
        _print_json({"balances": balances, "lines": [{**vars(line), "balances": line.balances} for line in lines]})
    else:
        print_account(lines)
    if not balances:
        hint = "`deepen verify` checks the files; then run again with --redo"
        raise DeepenError("the account does not balance", hint=hint)


@app.command()
def verify(path: Annotated[Path, typer.Argument(help="Run or stage directory.")], as_json: JsonOption = False) -> None:
    """Hash every file again and compare with the manifests."""
    from deepen.errors import DamageError
    from deepen.workflow.verify import verify as check_files

    result = check_files(path)
    if as_json:
        _print_json(vars(result))
    else:
        print(f"{result.num_files} files, {result.num_bytes:,} bytes checked")
    if result.damages:
        raise DamageError(
            "damage found:\n  " + "\n  ".join(result.damages), hint="remove the damaged stage and run again"
        )


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="Run, stage directory, or a .parquet, .json or .jsonl file.")],
    sample: Annotated[int, typer.Option("--sample", help="How many items to show.")] = 5,
    dropped: Annotated[
        str | None, typer.Option("--dropped", help="Show drops of this reason or step, or `all`; copies in pairs.")
    ] = None,
    step: Annotated[int | None, typer.Option("--step", help="Show the batch of this optimizer step.")] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", "--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Open any artifact: documents, drops, batches, scores."""
    from deepen.workflow.show import ShowOptions
    from deepen.workflow.show import show as records_of

    for record in records_of(path, ShowOptions(sample=sample, dropped=dropped, step=step)):
        if "copy_of" in record and not jsonl:
            print_pair(record)
        else:
            print(json.dumps(record, ensure_ascii=False, default=str, indent=None if jsonl else 1))


@app.command()
def trace(
    run: RunArgument,
    document: Annotated[str, typer.Argument(help="Document id, or a unique beginning of one.")],
    as_json: JsonOption = False,
) -> None:
    """Say in which steps a document is trained."""
    from deepen.workflow.batches import trace as visits_of

    visits = visits_of(run, document)
    if as_json:
        _print_json([vars(visit) for visit in visits])
    else:
        rows = [(visit.step, visit.row, visit.source, visit.start, visit.tokens) for visit in visits]
        print_table(f"document {document}: {len(visits)} visits", "step, row, source, from token, tokens", rows)


@app.command()
def report(run: RunArgument) -> None:
    """Write the report of a run as one HTML file."""
    print(_write_report(run))


@app.command()
def rm(path: Annotated[Path, typer.Argument(help="Run, or one stage of a run.")]) -> None:
    """Remove a run or a stage; refuses what other runs refer to."""
    from deepen.workflow.lineage import remove

    remove(path)
    print(f"removed {path}")


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(help="Run directory, or a model folder.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Length of an answer at most.")] = 200,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling.")] = 17,
) -> None:
    """Talk to an exported model."""
    from deepen.export.chat import Sampling
    from deepen.export.chat import chat as talk

    folder = model / "export" if (model / "export" / "manifest.json").is_file() else model
    talk(folder, Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed))


if __name__ == "__main__":
    main()
