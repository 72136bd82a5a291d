"""What the command line shows in the terminal: tables, two documents side by side, the outcome of a dry run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from deepen.board.masking import masked
from deepen.progress import plain_console, readable

if TYPE_CHECKING:
    from deepen.formats.training.decisions import Decision
    from deepen.formats.training.scores import Score
    from deepen.recipe.explain import Explanation
    from deepen.runs.account import AccountLine
    from deepen.runs.compare import Comparison
    from deepen.runs.diagnose.evidence import Finding
    from deepen.runs.lineage import StageStatus

_EXAMPLE_CHARACTERS = 100
_PIECE_CHARACTERS = 120


def print_table(title: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under ``columns``, names separated by commas."""
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns.split(", "):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    plain_console().print(table)


def print_status(run: Path, stages: Iterable[StageStatus]) -> None:
    """Print the state of every stage of a run."""
    rows = [
        (s.name, s.state, s.fingerprint[:8], s.made_from, readable(s.num_bytes), s.detail or s.finished[:16])
        for s in stages
    ]
    print_table(str(run), "stage, state, identity, made from, bytes, when or where", rows)


def print_checkpoints(records: Iterable[Mapping[str, Any]]) -> None:
    """Print what each checkpoint of a run is kept for; nothing where there are none."""
    rows = [
        (
            one["checkpoint"],
            ", ".join(one["roles"]).replace("_", " "),
            "weights only" if one["weights_only"] else "weights, optimizer",
            readable(one["bytes"]),
        )
        for one in records
    ]
    if rows:
        print_table("checkpoints", "checkpoint, kept as, holds, bytes", rows)


def print_findings(run: Path, findings: Sequence[Finding], looked_for: Iterable[str]) -> None:
    """Print what went wrong in a run, or that nothing did."""
    console = plain_console(soft_wrap=True)
    if not findings:
        console.print(f"{run}: nothing found; looked for {', '.join(looked_for)}")
    for finding in findings:
        console.print(f"{finding.name}\n  evidence: {finding.evidence}\n  remedy:   {finding.remedy}")


def print_comparison(found: Comparison) -> None:
    """Print the scores of several runs, the noise between seeds, and changes against the control."""
    from deepen.formats.training.said import said, said_chance, said_change  # the formats need more than a console

    rows = [
        (one.name, one.scores.step, score.ability, score.probe, f"{score.value:.4g}", said(score), said_chance(score))
        for one in found.runs
        for score in one.scores.scores
    ]
    print_table("against the base", "run, step, ability, probe, value, change, chance", rows)
    for group in found.seeds:
        noise = [
            (ability, probe, f"{one.mean:+.2%}", f"{one.deviation:.2%}", one.runs)
            for (ability, probe), one in group.noise.items()
        ]
        title = f"one recipe, other seeds: {', '.join(group.names)}"
        print_table(title, "ability, probe, mean change, standard deviation, runs", noise)
    for name, scores in found.against_control.items():
        changes = [
            (s.ability, s.probe, f"{s.baseline:.4g}", f"{s.value:.4g}", said_change(s), _sureness(s)) for s in scores
        ]
        columns = "ability, probe, control, run, change, 95 % interval"
        print_table(f"{name} against the control {found.control}", columns, changes)


def _sureness(score: Score) -> str:
    from deepen.formats.training.said import said_detectable, said_interval

    if score.interval is None:
        return "not known"
    if score.minimum_detectable is None:
        return "nothing differs"
    return f"{said_interval(score)} (detectable {said_detectable(score)})"


def print_account(lines: Iterable[AccountLine]) -> None:
    """Print the token account."""
    rows = [(e.source, e.what, f"{e.left:,}", f"{e.right:,}", e.terms, "yes" if e.balances else "NO") for e in lines]
    print_table("token account", "source, what, left, right, which is, balances", rows)


def print_decisions(decisions: Sequence[Decision]) -> None:
    """Print what a training decided about itself, if anything."""
    if decisions:
        from deepen.board.decisions import COLUMNS, decision_rows  # loads the charts of the report, too

        print_table("decisions", ", ".join(COLUMNS), decision_rows(decisions))


def print_explanation(found: Explanation) -> None:
    """Print what a key means, its default and the keys below it."""
    console = plain_console(soft_wrap=True)
    console.print(f"{found.path}: {found.meaning}")
    if found.kind:
        console.print(f"  takes:   {found.kind}\n  default: {found.default}")
    for name, meaning in found.keys:
        console.print(f"  {name:<24} {meaning}")


def print_row(record: Mapping[str, Any]) -> None:
    """Print one row of a batch: each piece of a document with its place, its part of the loss, and how it reads."""
    console = plain_console(soft_wrap=True)
    walls = "" if record["isolated"] else ", documents joined"
    numbers = f"{record['tokens']} tokens, {record['loss_tokens']} in the loss, {record['padding']} padding{walls}"
    console.print(f"step {record['step']}, row {record['row']}, source {record['source']}: {numbers}", style="bold")
    for piece in record["segments"]:
        first, end = piece["positions"]
        whole = f"tokens {piece['start']} to {piece['start'] + piece['tokens']} of {piece['document_tokens']}"
        quiet = ", ".join(f"{begin}-{end}" for begin, end in piece["without_loss"])
        console.print(f"  {first}-{end} document {piece['document']}, {whole}; no loss at {quiet or 'none'}")
        console.print(f"    {_head_and_tail(piece['text'])}")


def _head_and_tail(text: str) -> str:
    """A text on one line, its middle left out where it is long."""
    line = " ".join(text.split())
    half = _PIECE_CHARACTERS // 2
    return line if len(line) <= _PIECE_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


def print_pair(record: Mapping[str, Any]) -> None:
    """Print a dropped document beside the one that it is a copy of."""
    other = record["copy_of"]
    title = f"{record['reason']}, similarity {record['value']:.3f}"
    left = f"dropped: {record['source']} {record['id'][:8]}"
    right = f"{other['state']}: {other['source']} {other['id'][:8]}"
    table = Table(title=title, title_justify="left", expand=True)
    table.add_column(left, ratio=1, overflow="fold")
    table.add_column(right, ratio=1, overflow="fold")
    table.add_row(record["text"], other["text"])
    plain_console().print(table)


def print_preview(counts: Mapping[str, Mapping[str, Any]], examples: Iterable[Mapping[str, Any]]) -> None:
    """Print what became of a sample: a row per outcome, a column per source, then an example of every drop."""
    outcomes = {name: outcomes_of(source) for name, source in counts.items()}
    totals: Counter[str] = Counter()
    for own in outcomes.values():
        totals.update(own)
    names = sorted(totals, key=lambda name: (name not in ("kept", "held out"), -totals[name], name))
    rows = [(name, *(_share(own.get(name, 0), sum(own.values())) for own in outcomes.values())) for name in names]
    sizes = ("documents in the sample", *(str(sum(own.values())) for own in outcomes.values()))
    print_table("curate, on a sample; nothing is written", ", ".join(("outcome", *outcomes)), [sizes, *rows])
    shown = [(e["source"], e["reason"], f"{e['value']:.4g}", _short(masked(e["text"]))) for e in examples]
    if shown:
        print_table("an example of each", "source, reason, value, text", shown)


def print_proofs(proofs: Sequence[Any]) -> None:
    """Print what each proof found: name, whether it held, and what was measured."""
    words = {True: "holds", False: "FAILS", None: "not proven"}
    print_table("proofs", "proof, , found", [(proof.name, words[proof.passed], proof.found) for proof in proofs])


def outcomes_of(source: Mapping[str, Any]) -> dict[str, int]:
    """What became of a source's documents, from the counts of the curate stage: kept, held out, drops by reason."""
    return {"kept": source["documents_kept"], "held out": source["held_out"], **source["dropped"]}


def _share(number: int, total: int) -> str:
    return f"{number} ({number / total:.1%})" if number else "0"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXAMPLE_CHARACTERS else line[:_EXAMPLE_CHARACTERS] + " ..."
