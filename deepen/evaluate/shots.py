"""Examples before a question: solved items, each followed by a blank line (few-shot prompts)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deepen.evaluate.items.files import Item


def shown(item: Item, between: str) -> str:
    """A solved item as text."""
    answer = item.choices[item.gold] if item.choices else item.answers[0]
    return item.prompt.rstrip() + between + answer + item.rest


def with_shots(items: Sequence[Item], examples: Sequence[str]) -> list[Item]:
    """The items with the examples before their prompts."""
    before = "".join(f"{example}\n\n" for example in examples)
    return [replace(item, prompt=before + item.prompt) for item in items]
