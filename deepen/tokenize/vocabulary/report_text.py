"""The vocabulary report as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepen.progress import aligned, readable

_COLUMNS = ("source", "language", "tokens per", "bytes/token", "chars/token", "split", "bytes", "lost", "x English")
_SHOWN_WORDS = 5
_WORD_CHARACTERS = 24


def rendered(report: Mapping[str, Any]) -> str:
    """``report.json`` in a few lines: one per source and language, the verdict, and what it costs and saves."""
    rows = [_COLUMNS, *(_row(source) for source in report["sources"])]
    english = report["english"]
    lines = [
        f"vocabulary of {report['vocabulary_size']:,}; English: {english['fertility']:.2f} tokens per word in "
        f"{english['measured_on']}",
        *(f"  {line}" for line in aligned(rows, 3)),
        *(_words(source) for source in report["sources"] if source["fragmented"] and source["role"] == "domain"),
        f"verdict: {report['verdict']} ({report['reason']})",
    ]
    if report["gains"]:
        gains = ", ".join(f"{int(number):,}: {share:.1%}" for number, share in report["gains"].items())
        lines.append(f"tokens saved there by so many more: {gains}")
    return "\n".join([*lines, *_costs(report["cost"])])


def _row(source: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        source["source"], source["language"] or "-", f"{source['unit']} {source['fertility']:.2f}",
        f"{source['bytes_per_token']:.2f}", f"{source['characters_per_token']:.2f}",
        f"{source['continued_share']:.1%}", f"{source['byte_share']:.1%}", f"{source['unknown_share']:.1%}",
        f"{source['premium']:.2f}",
    )  # fmt: skip


def _words(source: Mapping[str, Any]) -> str:
    words = ", ".join(f"{_short(word)} ({tokens})" for word, tokens, _ in source["fragmented"][:_SHOWN_WORDS])
    return f"most split in {source['source']}: {words}"


def _short(word: str) -> str:
    return word if len(word) <= _WORD_CHARACTERS else f"{word[:_WORD_CHARACTERS]}..."


def _costs(cost: Mapping[str, float]) -> list[str]:
    if not cost:
        return []
    parts = []
    if "parameters" in cost:
        numbers = readable(cost["parameters"]), readable(cost["bytes_bf16"])
        parts.append("{:,} rows, {} parameters, {} bytes in bf16".format(cost["rows"], *numbers))
    if cost["tokens_saved"]:
        flops = f" and {cost['flops_saved']:.1e} FLOP of training" if "flops_saved" in cost else ""
        parts.append(f"saves {readable(cost['tokens_saved'])} tokens{flops} in a pass over the domain")
    even = cost.get("break_even_tokens")
    parts.append(f"pays after {readable(even)} old tokens" if even is not None else "costs more compute than it saves")
    return ["cost: " + "; ".join(parts)]
