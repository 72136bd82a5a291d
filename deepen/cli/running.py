"""Commands that make stages of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepen.board.console import print_preview, print_proofs
from deepen.cli.options import (
    DEFAULT_RUNS,
    JsonOption,
    RecipeArgument,
    RunArgument,
    RunsOption,
    StageOptions,
    load,
    print_json,
    run_directory,
    with_stage_options,
    write_report,
)
from deepen.errors import DeepenError, RunError
from deepen.parallel.processes.environment import read_environment

if TYPE_CHECKING:
    from deepen.formats.manifest import Artifact
    from deepen.formats.training.scores_beside import ScoresBeside

STAGE_HELP = {
    "ingest": "Read files of any supported format into documents.",
    "mix": "Pack shards into rows and write down the training order.",
    "baseline": "Score the untouched base on the held-out documents.",
    "train": "Train; resumes at the newest intact checkpoint.",
    "select": "Choose one checkpoint, with the argument for it.",
    "export": "Write the chosen model as a proven Hugging Face folder.",
}
"""The stages whose command has no options of its own."""


@with_stage_options
def run(
    recipe: RecipeArgument,
    options: StageOptions,
    first: Annotated[str, typer.Option("--from", help="First stage to make.")] = "ingest",
    last: Annotated[str, typer.Option("--until", help="Last stage to make.")] = "export",
    control: Annotated[
        bool, typer.Option("--control", help="Then the same on replay alone, beside it, as NAME-control.")
    ] = False,
) -> None:
    """Run all stages that are not done yet, then write the report."""
    if control and read_environment() is not None:
        raise RunError(
            "a control is another training, and this launcher started its processes for one",
            hint="start it without the launcher: with `launch` in the machine file each training starts its own",
        )
    main = None
    for directory, artifacts in _made(recipe, options, first, last, control=control):
        if main is None:
            main = directory
            _tell(directory, artifacts, options)
            continue
        if (main / "report.html").is_file():
            write_report(main)  # its plane shows the control
        if not options.as_json:
            print(f"control: {directory} (`deepen compare {main} {directory}`)")


def _made(
    recipe: Path, options: StageOptions, first: str, last: str, *, control: bool = False
) -> Iterator[tuple[Path, dict[str, Artifact]]]:
    """Bring the stages from ``first`` to ``last`` up to date, then those of the control if there is to be one: each
    run's directory and what there is. Nothing in a process that has followed another one."""
    from deepen.workflow.commands.control import control_of
    from deepen.workflow.run import RunOptions, parse_share, run_pipeline
    from deepen.workflow.training.processes import together

    loaded = load(recipe, options.machine, options.sets)
    directory = run_directory(recipe, options.runs, loaded)
    how = RunOptions(first, last, options.redo, options.extend, options.offline, parse_share(options.part))
    wanted = [(loaded.recipe, directory, how)]
    if control:
        wanted.append((*control_of(loaded.recipe, directory), RunOptions(last="evaluate", offline=options.offline)))
    with together(directory) as gang:
        if gang is not None and gang.started.rank > 0:
            from deepen.workflow.training.worker import follow

            follow(gang)
            return
        for one, place, how in wanted:
            yield place, run_pipeline(one, loaded.machine, place, replace(how, gang=gang))


def run_stages(recipe: Path, options: StageOptions, first: str, last: str) -> None:
    """Bring the stages from ``first`` to ``last`` up to date and print where everything is."""
    for directory, artifacts in _made(recipe, options, first, last):
        _tell(directory, artifacts, options)


def _tell(directory: Path, artifacts: Mapping[str, Artifact], options: StageOptions) -> None:
    report_path = write_report(directory) if "export" in artifacts else None
    if options.as_json:
        stages = {
            name: {"path": a.path, "fingerprint": a.fingerprint, "counts": a.counts} for name, a in artifacts.items()
        }
        print_json({"run": str(directory), "report": report_path, "stages": stages})
        return
    print(f"run:    {directory}")
    if report_path is not None:
        print(f"model:  {artifacts['export'].path}\nreport: {report_path}")


def stage_command(name: str) -> Callable[..., None]:
    """The command that makes the stage ``name`` and what it needs."""

    def command(recipe: RecipeArgument, options: StageOptions) -> None:
        run_stages(recipe, options, "ingest", name)

    command.__doc__ = f"{STAGE_HELP[name]}\n\nEarlier stages that are not done are made first."
    return with_stage_options(command)


@with_stage_options
def curate(
    recipe: RecipeArgument,
    options: StageOptions,
    dry_run: Annotated[
        int | None, typer.Option("--dry-run", min=1, help="Only show what would become of so many documents.")
    ] = None,
) -> None:
    """Clean, deduplicate and hold out documents.

    Earlier stages that are not done are made first; with --dry-run nothing is written.
    """
    if dry_run is None:
        run_stages(recipe, options, "ingest", "curate")
        return
    from deepen.workflow.commands.preview_curation import preview_curate

    loaded = load(recipe, options.machine, options.sets)
    preview = preview_curate(loaded.recipe, run_directory(recipe, options.runs, loaded), dry_run)
    if options.as_json:
        print_json(vars(preview))
    else:
        print_preview(preview.counts, preview.examples)


@with_stage_options
def evaluate(
    recipe: RecipeArgument,
    options: StageOptions,
    base_only: Annotated[
        bool, typer.Option("--base-only", help="Measure the untouched base only: nothing is trained.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Beside a training: score the checkpoints of this run as they appear.")
    ] = False,
) -> None:
    """Score every kept checkpoint against the base.

    Earlier stages that are not done are made first; with --base-only they end before training, and the table of what
    the base can do is printed. With --watch nothing is made: the checkpoints of a run directory are scored while
    another process trains.
    """
    if watch:
        _watch(recipe, options, base_only=base_only)
        return
    if not base_only:
        run_stages(recipe, options, "ingest", "evaluate")
        return
    from deepen.evaluate.compare.summary_table import baseline_table

    for directory, artifacts in _made(recipe, options, "ingest", "baseline"):
        if "baseline" not in artifacts:  # another process goes on to it
            continue
        counts = artifacts["baseline"].counts
        if options.as_json:
            print_json({"run": str(directory), **counts})
        else:
            print(baseline_table({"probes": {}, "failed": {}, **counts}))


def _watch(run: Path, options: StageOptions, *, base_only: bool) -> None:
    """Score the checkpoints of a run as they appear, a line each."""
    others = {
        "--base-only": base_only,
        "--redo": options.redo,
        "--continue": options.extend,
        "--part": options.part is not None,
        "--runs": options.runs != DEFAULT_RUNS,
        "--set of the recipe": any(not assignment.startswith("machine.") for assignment in options.sets or []),
    }
    refused = [name for name, given in others.items() if given]
    if refused:
        hint = "only --machine, --set machine.KEY=VALUE, --offline and --json go with it"
        raise DeepenError(f"{refused[0]} has no meaning with --watch, which makes nothing", hint=hint)
    if not run.is_dir():
        hint = f"give the directory that holds its `recipe.yaml`, such as {options.runs}/NAME"
        raise DeepenError(f"--watch watches a run, and `{run}` is no directory", hint=hint)
    from deepen.evaluate.compare.summary_table import score_line
    from deepen.workflow.commands.score_beside import score_beside

    found: list[dict[str, Any]] = []

    def tell(scores: ScoresBeside) -> None:
        found.append(scores.model_dump(mode="json"))
        if not options.as_json:
            print(score_line(scores.everything), flush=True)

    count = score_beside(run, options.machine, options.sets or [], offline=options.offline, tell=tell)
    if options.as_json:
        print_json({"run": str(run), "scored": found})
    else:
        print(f"{count} checkpoints scored")


@with_stage_options
def tokenize(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Recipe file or directory of an earlier run; with --input: more inputs.")
    ] = None,
    *,
    options: StageOptions,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="Files, folders or globs, without a recipe. Repeatable.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="With --input: folder or hub id.")] = None,
    megatron: Annotated[
        Path | None, typer.Option("--megatron", help="With --input: folder for a .bin/.idx per input and dataset.bin.")
    ] = None,
    text_field: Annotated[str | None, typer.Option("--text-field", help="With --input: field of the text.")] = None,
    append_eod: Annotated[
        bool, typer.Option("--append-eod/--no-append-eod", help="With --input: end documents with the end token.")
    ] = True,
    workers: Annotated[int, typer.Option("--workers", min=1, help="With --input: processes.")] = 1,
    report: Annotated[
        bool, typer.Option("--report", help="With --input: only say how the vocabulary fits, and write nothing.")
    ] = False,
) -> None:
    """Turn documents into token shards.

    With a recipe, earlier stages that are not done are made first. With --input, --tokenizer and --megatron, files of
    any format become Megatron pairs, without a recipe.
    """
    if inputs is None:
        if paths is None or len(paths) != 1:
            raise DeepenError(
                "`deepen tokenize` takes one recipe, or --input FILES", hint="see `deepen tokenize --help`"
            )
        run_stages(Path(paths[0]), options, "ingest", "tokenize")
        return
    if tokenizer is None or (megatron is None and not report):
        raise DeepenError("--input needs --tokenizer, and --megatron or --report", hint="see `deepen tokenize --help`")
    from deepen.workflow.commands.tokenize_files import TokenizeFiles, report_files, tokenize_files

    out = megatron or Path()
    order = TokenizeFiles((*inputs, *(paths or ())), tokenizer, out, text_field, append_eod, workers, options.offline)
    if report:
        from deepen.tokenize.vocabulary.report_text import rendered

        found = report_files(order)
        print_json(found) if options.as_json else print(rendered(found))
        return
    made = tokenize_files(order)
    if options.as_json:
        print_json({"out": str(out), "fingerprint": made.fingerprint, "counts": made.counts})
    else:
        print(f"shards: {out / 'dataset'}.bin, .idx")


@with_stage_options
def prove(recipe: RecipeArgument, options: StageOptions) -> None:
    """Prove on a recipe's own model, data and machine that training is right, in minutes.

    Data stages that are not done are made first. Exit code 1 when a proof fails.
    """
    from deepen.workflow.commands.prove import prove_recipe
    from deepen.workflow.run import RunOptions

    loaded = load(recipe, options.machine, options.sets)
    how = RunOptions(last="mix", redo=options.redo, extend=options.extend, offline=options.offline)
    found = prove_recipe(loaded.recipe, loaded.machine, run_directory(recipe, options.runs, loaded), how)
    if options.as_json:
        print_json([vars(proof) for proof in found])
    else:
        print_proofs(found)
    if any(proof.passed is False for proof in found):
        raise typer.Exit(1)


def remix(
    run: RunArgument,
    step: Annotated[int, typer.Option("--at", min=0, help="The last step that stays as it is planned.")],
    domain_share: Annotated[float, typer.Option("--domain-share", min=0, max=1, help="Share of tokens after it.")],
    weights: Annotated[
        list[str] | None, typer.Option("--weight", help="SOURCE=NUMBER, for all sources of a role. Repeatable.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the change.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Change the mixture of a stopped training, from some step on."""
    from deepen.workflow.commands.remix import Remix, parse_weights, remix_run

    path, table = remix_run(run, Remix(step, domain_share, parse_weights(weights), reason))
    if as_json:
        print_json({"file": path, **table.model_dump(mode="json")})
        return
    print(f"{path}: {domain_share:.0%} domain text after step {step}; training reads it when it goes on")
    for note in table.notes:
        print(f"  {note}")


def branch(
    run: RunArgument,
    step: Annotated[int, typer.Option("--at", min=1, help="Step of the checkpoint that is left.")],
    decay: Annotated[
        str, typer.Option("--decay", help="Length of the decay: 10% of the steps so far, 200 steps, 1B tokens.")
    ] = "10%",
    name: Annotated[str | None, typer.Option("--name", help="Name of the new run (default: NAME-at-STEP).")] = None,
) -> None:
    """Anneal off a checkpoint of a run, as a new run beside it."""
    from deepen.settings import parse_amount
    from deepen.workflow.commands.branch import Branch, branch_run

    try:
        length = parse_amount(decay)
    except ValueError as error:
        raise DeepenError(f"`--decay {decay}`: {error}", hint="write --decay 10%, or 200 steps") from None
    directory, artifacts = branch_run(run, Branch(step, length, name))
    print(f"run:    {directory}\nmodel:  {artifacts['export'].path}\nreport: {write_report(directory)}")


def demo(
    runs: RunsOption = DEFAULT_RUNS,
    compare: Annotated[bool, typer.Option("--compare", help="Also run without replay.")] = False,
) -> None:
    """Run the built-in example: a tiny base, continued on Python code."""
    from deepen.workflow.commands.demo import run_demo

    for line in run_demo(runs, compare=compare):
        print(line)
    print(f"report: {write_report(runs / 'demo')}")
