"""Commands that look at a run, or remove it; none loads torch, but for `chat`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deepen.board.console import (
    print_account,
    print_checkpoints,
    print_comparison,
    print_decisions,
    print_findings,
    print_pair,
    print_row,
    print_status,
    print_table,
)
from deepen.cli.options import JsonOption, RunArgument, print_json, write_report
from deepen.errors import DeepenError


def status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show which stages of a run are done and what they were made from."""
    from deepen.runs.decisions import decisions_of
    from deepen.runs.lineage import checkpoints
    from deepen.runs.lineage import status as stage_status

    rows = stage_status(run)
    if as_json:
        print_json([{**vars(row), "inputs": {k: v.fingerprint for k, v in row.inputs.items()}} for row in rows])
    else:
        print_status(run, rows)
        print_checkpoints(checkpoints(run))
        print_decisions(decisions_of(run))


def diagnose(run: RunArgument, as_json: JsonOption = False) -> None:
    """Say what went wrong in a run: evidence and remedy for each finding."""
    from deepen.runs.diagnose.evidence import case_of
    from deepen.runs.diagnose.findings import RULES
    from deepen.runs.diagnose.findings import diagnose as findings_of

    findings = findings_of(case_of(run))
    if as_json:
        print_json({"findings": [vars(finding) for finding in findings]})
    else:
        print_findings(run, findings, RULES)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Directories of evaluated runs, a control among them if any.")],
    step: Annotated[
        int | None, typer.Option("--step", help="Checkpoint of every run (default: each one's last).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: each against the base, seeds of one recipe with each other, all against their control."""
    from deepen.runs.compare import compare_runs

    found = compare_runs(runs, step)
    if as_json:
        print_json(found.to_json())
    else:
        print_comparison(found)


def account(run: RunArgument, as_json: JsonOption = False) -> None:
    """Print the token account and fail if it does not balance."""
    from deepen.runs.account import account as lines_of

    lines = lines_of(run)
    if not lines:
        raise DeepenError(f"`{run}` has no finished stages to account for", hint="run it first: `deepen run RECIPE`")
    balances = all(line.balances for line in lines)
    if as_json:
        print_json({"balances": balances, "lines": [{**vars(line), "balances": line.balances} for line in lines]})
    else:
        print_account(lines)
    if not balances:
        hint = "`deepen verify` checks the files; then run again with --redo"
        raise DeepenError("the account does not balance", hint=hint)


def verify(path: Annotated[Path, typer.Argument(help="Run or stage directory.")], as_json: JsonOption = False) -> None:
    """Hash every file again and compare with the manifests."""
    from deepen.errors import DamageError
    from deepen.runs.verify import verify as check_files

    result = check_files(path)
    if as_json:
        print_json(vars(result))
    else:
        print(f"{result.num_files} files, {result.num_bytes:,} bytes checked")
    if result.damages:
        raise DamageError("damage found:\n  " + "\n  ".join(result.damages), hint="\n  ".join(result.remedies))


def show(
    path: Annotated[Path, typer.Argument(help="Run, stage directory, or a .parquet, .json or .jsonl file.")],
    sample: Annotated[int, typer.Option("--sample", min=0, help="How many items to show.")] = 5,
    dropped: Annotated[
        str | None, typer.Option("--dropped", help="Show drops of this reason or step, or `all`; copies in pairs.")
    ] = None,
    step: Annotated[int | None, typer.Option("--step", help="Show the batch of this optimizer step.")] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", "--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Open any artifact: documents, drops, batches, scores."""
    from deepen.runs.show.artifact import ShowOptions
    from deepen.runs.show.artifact import show as records_of

    for record in records_of(path, ShowOptions(sample=sample, dropped=dropped, step=step)):
        if "copy_of" in record and not jsonl:
            print_pair(record)
        elif "segments" in record and not jsonl:
            print_row(record)
        else:
            print(json.dumps(record, ensure_ascii=False, default=str, indent=None if jsonl else 1))


def trace(
    run: RunArgument,
    document: Annotated[str, typer.Argument(help="Document id, a unique beginning of one, or SOURCE:LOCATION.")],
    as_json: JsonOption = False,
) -> None:
    """Say in which steps a document is trained, or why it is not."""
    from deepen.runs.order.trace import trace as traced

    found = traced(run, document)
    if as_json:
        print_json({**vars(found), "visits": [vars(visit) for visit in found.visits]})
    elif found.reason:
        print(f"document {found.document} of {found.source}: {found.reason}")
    else:
        rows = [(visit.step, visit.row, visit.position, visit.start, visit.tokens) for visit in found.visits]
        title = f"document {found.document} of {found.source}: {len(rows)} visits"
        print_table(title, "step, row, position, from token, tokens", rows)


def quarantine(run: RunArgument) -> None:
    """List the documents that a training stumbled over, for `curate.quarantine` of a later recipe."""
    from deepen.runs.decisions import quarantined

    for record in quarantined(run):
        print(json.dumps(record, ensure_ascii=False))


def report(run: RunArgument) -> None:
    """Write the report of a run as one HTML file."""
    print(write_report(run))


def rm(path: Annotated[Path, typer.Argument(help="Run, or one stage of a run.")]) -> None:
    """Remove a run or a stage; refuses what other runs refer to."""
    from deepen.runs.lineage import remove

    remove(path)
    print(f"removed {path}")


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
