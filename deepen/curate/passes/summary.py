"""What curate tells at its end: the funnel of every source, or the error that names the sources with nothing left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from deepen.errors import SourceError
from deepen.progress import plain_console, readable


def check_counts(counts: Mapping[str, dict[str, Any]]) -> None:
    """Raise ``SourceError`` for all sources of which nothing is left to train on (watch: nothing to score)."""
    lines = []
    for name, count in counts.items():
        needed = "held_out" if count["role"] == "watch" else "documents_kept"
        if count[needed] > 0:
            continue
        purpose = "score" if count["role"] == "watch" else "train on"
        lines.append(f"source `{name}`: nothing is left to {purpose} of {count['documents_in']} documents")
        for reason, number in sorted(count["dropped"].items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"  {reason:32} {number:>10}")
    if lines:
        raise SourceError("\n".join(lines), hint="change or remove the steps under `curate.steps` that drop so much")


def print_summary(counts: Mapping[str, dict[str, Any]]) -> None:
    """The funnel, one row per source, and the drops by reason, on standard error."""
    table = Table(title="curate", title_justify="left")
    for column in ("source", "role"):
        table.add_column(column)
    for column in ("in", "dropped", "held out", "kept", "bytes kept"):
        table.add_column(column, justify="right")
    reasons = []
    for name, count in counts.items():
        drops = sorted(count["dropped"].items(), key=lambda item: (-item[1], item[0]))
        numbers = [count["documents_in"], sum(count["dropped"].values()), count["held_out"], count["documents_kept"]]
        table.add_row(name, count["role"], *map(str, numbers), readable(count["bytes_kept"]))
        if drops:
            reasons.append(f"dropped of {name}: " + ", ".join(f"{reason} {number}" for reason, number in drops))
    console = plain_console(stderr=True)
    console.print(table)
    for line in reasons:
        console.print(line)
