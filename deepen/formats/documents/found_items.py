"""Test items that stand in trained documents: what is looked for, and the record of what was found.

``evaluate`` knows the items, ``curate`` how to look for them; this is what they tell each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepen.settings import Many, Settings

CONTAMINATION = "contamination.jsonl"
"""In the directory of ``evaluate``: a ``Hit`` per line."""


@dataclass(frozen=True)
class ProbeItem:
    """A test item with all its texts."""

    probe: str
    task: str
    id: str
    """Unique within the task."""
    texts: tuple[str, ...]


class Hit(Settings):
    """An item that was found."""

    probe: str
    task: str
    id: str
    measure: str
    """``13_gram``, ``8_grams`` or ``phrase``, as in curation's ``contaminated_*``; the first of them that holds."""
    value: float
    """Of this measure, the largest of all documents: how many runs of 13 words, which share of the runs of 8 words of a
    text, or how many words the phrase has."""
    documents: int
    """How many hold the item by any measure."""
    first: Many[str]
    """Ids of the first of them, in the order of the files."""


@dataclass(frozen=True)
class Found:
    """The outcome of a search."""

    hits: tuple[Hit, ...]
    """In the order of the items."""
    too_short: Mapping[str, int] = field(default_factory=dict)
    """By probe, items without a text that is long enough to be looked for."""


def strings_in(value: Any) -> list[str]:
    """All strings in a JSON value, however deep, in order; keys aside."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in strings_in(item)] if isinstance(value, list | tuple) else []
