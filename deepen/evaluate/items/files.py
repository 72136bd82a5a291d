"""Reading test items from JSON lines: every row becomes an item, or a reason why it cannot be used.

A row is turned into a prompt by a template with the names of its fields, so files are used as they were published.
Nothing is dropped silently: a bad row stays in the table of results with its line and its reason.
"""

from __future__ import annotations

import gzip
import json
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Any

from deepen.errors import SourceError
from deepen.evaluate.items.tables import smallest, stratified
from deepen.formats.documents.found_items import strings_in

NO_JSON, NO_OBJECT, MISSING, DUPLICATE = "no_json", "not_an_object", "missing_field", "duplicate_id"
FEW_CHOICES, NO_ANSWER, EMPTY = "fewer_than_two_choices", "answer_not_among_choices", "empty_text"
NOT_UNICODE = "not_unicode"
"""Reasons of items that cannot be used."""


@dataclass(frozen=True)
class Item:
    """One question."""

    id: str
    task: str
    cluster: str
    prompt: str = ""
    choices: tuple[str, ...] = ()
    gold: int = 0
    """Index of the right choice."""
    answers: tuple[str, ...] = ()
    """Accepted answers, the first one is shown."""
    rest: str = ""
    """Text behind the choice (of a cloze)."""
    texts: tuple[str, ...] = ()
    """All texts of the row."""
    reason: str | None = None


@dataclass(frozen=True)
class Layout:
    """Which fields of a row mean what."""

    task: str
    """Task of all items, unless ``by`` names a field."""
    by: str | None = None
    id: str = "id"
    group: str | None = None


class BadRowError(ValueError):
    """A row cannot be used; the message is one of the reasons above."""


def read_items(path: Path, layout: Layout, parse: Callable[[dict[str, Any]], Item]) -> list[Item]:
    """Every line of a ``.jsonl`` or ``.jsonl.gz`` as an item; ``parse`` fills in all but id, task and cluster.

    Raises ``SourceError`` when the file cannot be opened.
    """
    items: list[Item] = []
    seen: set[str] = set()
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row = _row(line)
            texts = _texts_of(row)
            name = place if row.get(layout.id) is None else str(row[layout.id])
            if name in seen:
                raise BadRowError(DUPLICATE)
            seen.add(name)
            task = layout.task if layout.by is None else str(field_of(row, layout.by))
            cluster = name if layout.group is None else str(field_of(row, layout.group))
            items.append(replace(parse(row), id=name, task=task, cluster=cluster, texts=texts))
        except BadRowError as error:
            items.append(Item(place, layout.task, place, reason=str(error)))
    return items


def limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most ``limit`` usable items, each task with its share, chosen by hash; those that cannot be used stay."""
    by_task: dict[str, list[str]] = {}
    for item in items:
        if item.reason is None:
            by_task.setdefault(item.task, []).append(item.id)
    if limit is None:
        return list(items)
    shares = stratified({task: len(ids) for task, ids in by_task.items()}, limit)
    chosen = {(task, name) for task, ids in by_task.items() for name in smallest(ids, shares[task])}
    return [item for item in items if item.reason is not None or (item.task, item.id) in chosen]


def fill(template: str, row: dict[str, Any]) -> str:
    """The template with ``{field}`` replaced by the row's values; lists are joined by blank lines."""
    parts = []
    for literal, name, _, _ in Formatter().parse(template):
        parts.append(literal)
        if name is not None:
            value = field_of(row, name)
            parts.append("\n\n".join(map(str, value)) if isinstance(value, list) else str(value))
    return "".join(parts)


def choices_of(row: dict[str, Any], choices: str | tuple[str, ...], options: tuple[str, ...]) -> tuple[str, ...]:
    """The texts to choose from: fixed ``options``, the list in one field, or the texts in several."""
    if options:
        return options
    found = field_of(row, choices) if isinstance(choices, str) else [field_of(row, name) for name in choices]
    if not isinstance(found, list) or len(found) < 2:
        raise BadRowError(FEW_CHOICES)
    texts = tuple(str(choice) for choice in found)
    if not all(text.strip() for text in texts):
        raise BadRowError(EMPTY)
    return texts


def gold_of(answer: Any, choices: Sequence[str]) -> int:
    """Index of the right choice: given as index from 0, as the text itself, or as a letter from A."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        text = answer.strip()
        # The text itself first: a choice may be called `B` or `2`.
        if text in choices:
            return list(choices).index(text)
        letter = string.ascii_uppercase.find(text.upper()) if len(text) == 1 else -1
        if 0 <= letter < len(choices):
            return letter
        if text.isdecimal() and int(text) < len(choices):
            return int(text)
    raise BadRowError(NO_ANSWER)


def answers_of(value: Any) -> tuple[str, ...]:
    """Accepted answers: a text, a number, or a list of them."""
    found = tuple(str(one).strip() for one in (value if isinstance(value, list) else [value]))
    if not found or not all(found):
        raise BadRowError(EMPTY)
    return found


def field_of(row: dict[str, Any], name: str) -> Any:
    """A row's field; raises ``BadRowError`` when it is not there or null."""
    if row.get(name) is None:
        raise BadRowError(MISSING)
    return row[name]


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRowError(NO_JSON) from error
    if not isinstance(row, dict):
        raise BadRowError(NO_OBJECT)
    return row


def _texts_of(row: dict[str, Any]) -> tuple[str, ...]:
    """All texts of a row; half of a surrogate pair, which JSON can spell, is no text that any tokenizer reads."""
    try:
        texts = tuple(strings_in(row))
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise BadRowError(NOT_UNICODE) from error
    except RecursionError as error:
        raise BadRowError(NO_JSON) from error
    return texts


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            yield from lines
    except (OSError, EOFError) as error:
        raise SourceError(
            f"the test items in `{path}` cannot be read: {error}", hint="give a JSON lines file"
        ) from error
