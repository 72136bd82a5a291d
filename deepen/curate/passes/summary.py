"""What curate tells at its end: the funnel of every source, or the error that names the sources with nothing left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from deepen.errors import SourceError
from deepen.progress import plain_console, readable, say

_MUCH = 0.1
"""Share of a domain source's documents or bytes; a larger loss is told by itself."""
_MOST_REASONS = 3


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


def print_summary(counts: Mapping[str, dict[str, Any]], out: Path) -> None:
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
    for line in large_losses(counts, out):
        say(line)


def large_losses(counts: Mapping[str, dict[str, Any]], out: Path) -> Iterator[str]:
    """A line for each domain source that lost more than a tenth of its documents or bytes: how much, why, and where to
    look. Domain text is scarce, and rules made for web pages may not be made for it."""
    for name, count in counts.items():
        dropped = sum(count["dropped"].values())
        lost_bytes = count["bytes_in"] - count["bytes_kept"] - count["held_out_bytes"]
        shares = dropped / max(1, count["documents_in"]), lost_bytes / max(1, count["bytes_in"])
        if count["role"] != "domain" or max(shares) <= _MUCH:
            continue
        most = sorted(count["dropped"].items(), key=lambda item: (-item[1], item[0]))[:_MOST_REASONS]
        why = f", mostly {', '.join(f'{reason} ({number})' for reason, number in most)}" if most else " by edits"
        look = f"; look at them: `deepen show {out} --dropped all --sample 20`" if dropped else ""
        yield (
            f"curate: WARNING: domain source `{name}` lost {dropped:,} of {count['documents_in']:,} documents "
            f"({shares[0]:.0%}) and {shares[1]:.0%} of its bytes{why}{look}"
        )
