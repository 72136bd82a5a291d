"""What ingest tells at its end: one table, or the error that names every source that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from deepen.errors import SourceError
from deepen.formats.files.records import read_records
from deepen.ingest.carry_over import REJECTED
from deepen.ingest.config import IngestConfig
from deepen.progress import plain_console, readable

_HINTS = {
    "records": "mend or leave out these records, or raise `ingest.max_rejected`",
    "files": "mend or leave out these files, or raise `ingest.max_lost`",
    "left_out": "give the tables a source of their own with `text: FIELD`, or leave them out by a glob",
    "text": "see the reasons",
}


_MOST_LEFT_OUT = 0.5
"""Share of a source's files or bytes; when most of it are tables without a text, they are not what lies beside it."""


def check_counts(counts: Mapping[str, dict[str, Any]], config: IngestConfig, rejected_file: Path) -> None:
    """Raise ``SourceError`` for all sources that gave no documents, too many rejects or too many damaged files, with
    reasons and examples."""
    bad = [found for name, count in counts.items() if (found := _complaint(name, count, config)) is not None]
    if not bad:
        return
    examples = _examples(rejected_file)
    lines = []
    for name, complaint, _ in bad:
        lines.append(complaint)
        for reason, number in sorted(counts[name]["rejected"].items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"  {reason:20} {number:>8}  {examples.get((name, reason), '')}".rstrip())
    ways = "; ".join(dict.fromkeys(_HINTS[kind] for _, _, kind in bad))
    hint = f"{ways}; every reject is in `{rejected_file}`" if examples else "check the `path` of the source"
    raise SourceError("\n".join(lines), hint=hint)


def _complaint(name: str, count: dict[str, Any], config: IngestConfig) -> tuple[str, str, str] | None:
    """The source's name, what is wrong with it and which hint goes with that."""
    lost, left_out, rejected = count.get("lost"), count.get("left_out"), _rejected_records(count)
    if count["files"] == 0:
        return name, f"source `{name}` has no files", "text"
    if count["documents"] == 0:
        what = [f"{count['files']} files", f"{rejected} records, all rejected"]
        what += [f"{count['empty_files']} files empty"] if count.get("empty_files") else []
        what += [f"{lost['files']} damaged"] if lost else []
        return name, f"source `{name}` has no text: {', '.join(what)}", "files" if lost else "text"
    if lost and (share := _share(lost)) > config.max_lost:
        problem = (
            f"source `{name}`: {lost['files']} of {lost['of_files']} files are damaged ({share:.1%} of the files or of"
            f" their bytes was not read, allowed are {config.max_lost:.1%}); how many records that hides is unknown"
        )
        return name, problem, "files"
    if left_out and _share(left_out) > _MOST_LEFT_OUT:
        problem = f"source `{name}`: {left_out['files']} of {left_out['of_files']} files are tables without a text"
        return name, problem, "left_out"
    share = rejected / (rejected + count["documents"])
    if share > config.max_rejected:
        of = f"{rejected} of {rejected + count['documents']}"
        problem = f"source `{name}`: {of} records were rejected ({share:.1%}, allowed are {config.max_rejected:.1%})"
        return name, problem, "records"
    return None


def _rejected_records(count: Mapping[str, Any]) -> int:
    """Rejects that do not stand for a file."""
    of_files = sum(count[kind]["files"] for kind in ("lost", "left_out") if kind in count)
    return int(sum(count["rejected"].values()) - of_files)


def _share(files: Mapping[str, int]) -> float:
    """The larger of two shares: of the files, and of their bytes."""
    return max(files["files"] / max(1, files["of_files"]), files["bytes"] / max(1, files["of_bytes"]))


def _examples(rejected_file: Path) -> dict[tuple[str, str], str]:
    """Place and detail of the first reject for each source and reason."""
    first: dict[tuple[str, str], str] = {}
    for record in read_records(rejected_file):
        key = (record["source"], record["reason"])
        if key not in first:
            first[key] = f"e.g. {record['location']}" + (f" ({record['detail']})" if record["detail"] else "")
    return first


def print_summary(counts: Mapping[str, dict[str, Any]]) -> None:
    """One row per source on standard error."""
    table = Table(title="ingest", title_justify="left")
    for column in ("source", "role"):
        table.add_column(column)
    for column in ("files", "documents", "bytes", "rejected"):
        table.add_column(column, justify="right")
    table.add_column("reasons")
    for name, count in counts.items():
        rejected = sum(count["rejected"].values())
        reasons = ", ".join(f"{reason} {number}" for reason, number in count["rejected"].items())
        numbers = [str(count["files"]), str(count["documents"]), readable(count["bytes"]), str(rejected)]
        table.add_row(name, count["role"], *numbers, reasons)
    console = plain_console(stderr=True)
    console.print(table)
    for name, count in counts.items():
        if empty := count.get("empty_files"):
            console.print(f"{name}: {empty} empty files or marks of other programs, nothing lost")
        if lost := count.get("lost"):
            what = f"{lost['files']} of {lost['of_files']} files are damaged, {readable(lost['bytes'])}B not read"
            console.print(f"{name}: {what}; how many records that hides is unknown")
        if left_out := count.get("left_out"):
            console.print(f"{name}: {left_out['files']} tables without a text were left out (see {REJECTED})")
        if encodings := count.get("encodings"):
            told = ", ".join(f"{encoding} {number}" for encoding, number in encodings.items())
            console.print(f"{name}: documents that were not UTF-8: {told}")
