"""One self-contained HTML page out of sections: style, tables and escaping; no templates and no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_STYLE = """
:root { --ink: #1d2733; --soft: #5c6b7a; --line: #e3e8ee; --paper: #ffffff; --ground: #f5f7fa; --accent: #0b6e99;
        --good: #1a7f4b; --bad: #b3261e; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 0 0 6px; }
p { margin: 4px 0 10px; } .soft { color: var(--soft); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
          margin-top: 18px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin-top: 18px; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.card .value { font-size: 24px; font-weight: 650; } .card .note { color: var(--soft); font-size: 13px; }
.good .value { color: var(--good); } .bad .value { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 6px 22px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--ground); padding: 12px; border-radius: 8px; overflow-x: auto; font-size: 12.5px; }
details summary { cursor: pointer; color: var(--accent); } code { font-size: 13px; }
.scroll { overflow-x: auto; }
"""


@dataclass(frozen=True)
class Card:
    """One headline number; ``mood`` is ``good``, ``bad`` or empty."""

    title: str
    value: str
    note: str = ""
    mood: str = ""


@dataclass(frozen=True)
class Section:
    """One titled block of the page; ``body`` is HTML."""

    title: str
    lead: str
    body: str


def render(title: str, subtitle: str, cards: Iterable[Card], sections: Iterable[Section], script: str) -> str:
    """The whole page; ``script`` is put once into the head (the chart library)."""
    card_html = "".join(
        f'<div class="card {card.mood}"><div class="note">{escape(card.title)}</div>'
        f'<div class="value">{escape(card.value)}</div><div class="note">{escape(card.note)}</div></div>'
        for card in cards
    )
    body = "".join(
        f'<section><h2>{escape(section.title)}</h2><p class="soft">{escape(section.lead)}</p>{section.body}</section>'
        for section in sections
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>{script}</head>'
        f'<body><main><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>'
        f'<div class="cards">{card_html}</div>{body}</main></body></html>\n'
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table; cells that are numbers are set right-aligned with thousands separators."""
    materialised = [list(row) for row in rows]
    numeric = [
        bool(materialised) and all(isinstance(row[index], int | float) for row in materialised)
        for index in range(len(columns))
    ]
    head = "".join(f"<th{_class(number)}>{escape(name)}</th>" for name, number in zip(columns, numeric, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{_class(number)}>{_cell(cell)}</td>" for cell, number in zip(row, numeric, strict=True))
        + "</tr>"
        for row in materialised
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def fold(summary: str, body: str) -> str:
    """HTML behind a line that unfolds it."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def preformatted(summary: str, text: str) -> str:
    """Text behind a line that unfolds it."""
    return fold(summary, f"<pre>{escape(text)}</pre>")


def _class(number: bool) -> str:
    return ' class="number"' if number else ""


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return escape(str(value))
