"""Cutting very long texts, so that memory and time of encoding do not grow with one document.

A piece is encoded behind a short context whose tokens are taken off again, so that a tokenizer that treats the
beginning of a text specially gives the ids of the middle of a text. Cuts lie where words end; whether that changes no
id is tested for each tokenizer on real text before it is relied on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

Boundary = Literal["word", "line", "none"]

CONTEXTS = ("", "a", "a\n")
_LETTER = r"[^\W\d_]"
# Letters on both sides: splitters treat runs of spaces, numbers and signs in ways of their own (`\s+(?!\S)`).
_AFTER_LINE = rf"(?<=\S\n)(?={_LETTER})"
_BEFORE_SPACE = rf"(?<={_LETTER})(?= {_LETTER})"
_CUTS = {"line": re.compile(_AFTER_LINE), "word": re.compile(f"{_AFTER_LINE}|{_BEFORE_SPACE}")}


def cut(text: str, most_characters: int, boundary: Boundary) -> Iterator[tuple[str, str]]:
    """Yield (context, piece): pieces join to ``text`` and are cut at the first boundary after ``most_characters``.

    ``line`` cuts after a newline between a visible character and a letter, ``word`` also before a single space between
    letters, ``none`` not at all. A stretch without a boundary stays whole.
    """
    begin, context = 0, CONTEXTS[0]
    while boundary != "none" and begin + most_characters < len(text):
        found = _CUTS[boundary].search(text, begin + most_characters)
        if found is None:
            break
        yield context, text[begin : found.start()]
        begin = found.start()
        # A stand-in that ends as the text before does.
        context = CONTEXTS[2] if text[begin - 1] == "\n" else CONTEXTS[1]
    yield context, text[begin:]
