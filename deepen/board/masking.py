"""Covering personal data in examples that are shown: addresses of e-mail and numbers that may be telephones or cards.

Deliberately coarse: a masked year range costs an example little, a shown telephone number costs a person much.
"""

from __future__ import annotations

import re

_EMAIL = re.compile(r"[^\s@<>()\[\]\"',;:]+@[^\s@<>()\[\]\"',;:]+\.[^\s@<>()\[\]\"',;:]{2,}")
_DIGITS = re.compile(r"(?:\+|\()?\d(?:[\s().\-/\u2010-\u2015\u00a0]{0,3}\d){6,}")
"""Seven digits or more with at most three separators between two of them; ``\\d`` are the digits of all scripts."""


def masked(text: str) -> str:
    """The text with e-mail addresses and telephone-like numbers replaced by ``[e-mail]`` and ``[number]``."""
    return _DIGITS.sub("[number]", _EMAIL.sub("[e-mail]", text))
