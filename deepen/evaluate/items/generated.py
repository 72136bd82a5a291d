"""Test items that need no file: sums, and instructions whose answer can be checked to the letter. Our own.

They are small on purpose: they show whether an ability that every usable base has is being lost, not how large it is.
The same seed gives the same items; examples before every question show the form of an answer to base models, which
were never told to follow instructions.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from deepen.evaluate.items.files import Item

_WORDS = (
    *("apple", "river", "stone", "window", "garden", "letter", "summer", "copper"),
    *("button", "silver", "market", "pencil", "winter", "basket", "candle", "harbour"),
)
_SUMS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "addition": ("+", lambda a, b: a + b),
    "subtraction": ("-", lambda a, b: a - b),
    "multiplication": ("*", lambda a, b: a * b),
}
_SUM_EXAMPLES = "7 + 5 = 12\n9 - 4 = 5\n6 * 3 = 18\n"


def arithmetic_items(count: int, seed: int) -> list[Item]:
    """Sums of numbers of one and two digits, one task per operation, easy and hard in turn."""
    draw = random.Random(seed)
    kinds = list(_SUMS)
    items = []
    for place in range(count):
        kind = kinds[place % len(kinds)]
        first, second = _numbers(draw, kind, most=9 if place % 2 else 99)
        sign, compute = _SUMS[kind]
        name, answer = f"{first}{sign}{second}", str(compute(first, second))
        prompt = f"{_SUM_EXAMPLES}{first} {sign} {second} ="
        items.append(Item(f"{place}:{name}", kind, name, prompt, answers=(answer,)))
    return items


def _numbers(draw: random.Random, kind: str, *, most: int) -> tuple[int, int]:
    """Two numbers up to ``most``; a product has one digit on one side, a difference is not negative."""
    first, second = draw.randint(1, most), draw.randint(1, 9 if kind == "multiplication" else most)
    return (max(first, second), min(first, second)) if kind == "subtraction" else (first, second)


_INSTRUCTIONS: dict[str, Callable[[list[str]], tuple[str, str]]] = {
    "capitals": lambda w: (f"Write the word {w[0]} in capital letters.", w[0].upper()),
    "repeat": lambda w: (f"Write the word {w[0]} three times.", f"{w[0]} {w[0]} {w[0]}"),
    "commas": lambda w: (f"Write {w[0]}, then {w[1]}, then {w[2]}, separated by commas.", f"{w[0]}, {w[1]}, {w[2]}"),
    "brackets": lambda w: (f"Write the word {w[0]} in square brackets.", f"[{w[0]}]"),
    "first_letter": lambda w: (f"Write the first letter of the word {w[0]}.", w[0][0]),
    "last_word": lambda w: (f"Write the last of these words: {w[0]} {w[1]} {w[2]}.", w[2]),
    "backwards": lambda w: (f"Write these words in the opposite order: {w[0]} {w[1]} {w[2]}.", f"{w[2]} {w[1]} {w[0]}"),
    "quotes": lambda w: (f"Write the word {w[0]} in double quotes.", f'"{w[0]}"'),
}
_INSTRUCTION_EXAMPLES = (
    "Instruction: Write the word table in capital letters.\nAnswer: TABLE\n\n"
    "Instruction: Write the words cloud and paper with a dash between them.\nAnswer: cloud-paper\n\n"
)


def instruction_items(count: int, seed: int) -> list[Item]:
    """Instructions about words whose right answer is a single text; all kinds are one task."""
    draw = random.Random(seed)
    kinds = list(_INSTRUCTIONS)
    items = []
    for place in range(count):
        kind = kinds[place % len(kinds)]
        text, answer = _INSTRUCTIONS[kind](draw.sample(_WORDS, 3))
        prompt = f"{_INSTRUCTION_EXAMPLES}Instruction: {text}\nAnswer:"
        items.append(Item(f"{place}:{kind}", "instructions", f"{kind}:{answer}", prompt, answers=(answer,)))
    return items
