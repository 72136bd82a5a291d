"""What ingest tells at its end: one table, or the error that names every source that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from deepen.errors import SourceError
from deepen.formats.files.records import read_records
from deepen.progress import plain_console, readable

_HINT = "mend or leave out these records, or raise `ingest.max_rejected`"


def check_counts(counts: Mapping[str, dict[str, Any]], max_rejected: float, rejected_file: Path) -> None:
    """Raise ``SourceError`` for all sources that gave no documents or too many rejects, with reasons and examples."""
    bad = [line for name, count in counts.items() if (line := _complaint(name, count, max_rejected)) is not None]
    if not bad:
        return
    examples = _examples(rejected_file)
    lines = []
    for name, complaint in bad:
        lines.append(complaint)
        for reason, number in sorted(counts[name]["rejected"].items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"  {reason:20} {number:>8}  {examples.get((name, reason), '')}".rstrip())
    hint = f"{_HINT}; every reject is in `{rejected_file}`" if examples else "check the `path` of the source"
    raise SourceError("\n".join(lines), hint=hint)


def _complaint(name: str, count: dict[str, Any], max_rejected: float) -> tuple[str, str] | None:
    rejected = sum(count["rejected"].values())
    if count["files"] == 0:
        return name, f"source `{name}` has no files"
    if count["documents"] == 0:
        return name, f"source `{name}` has no text: {count['files']} files, {rejected} records, all rejected"
    share = rejected / (rejected + count["documents"])
    if share > max_rejected:
        of = f"{rejected} of {rejected + count['documents']}"
        return name, f"source `{name}`: {of} records were rejected ({share:.1%}, allowed are {max_rejected:.1%})"
    return None


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
        if encodings := count.get("encodings"):
            told = ", ".join(f"{encoding} {number}" for encoding, number in encodings.items())
            console.print(f"{name}: documents that were not UTF-8: {told}")
