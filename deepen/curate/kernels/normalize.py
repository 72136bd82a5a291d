"""Which texts are in normal form already, told in one compiled walk.

Only characters count as common of which the Unicode tables need not be asked: in no script that composes, and no
control characters. A text with any other one is left to the careful way.
"""

from __future__ import annotations

import numpy as np

from deepen.curate.kernels.text import code_point
from deepen.engine.compiled import njit

COMMON, BLANK, UNUSUAL = 0, 1, 2
"""Nothing to do; nothing but white space; to be looked at more closely."""


@njit(cache=True)
def look_at(buffer, starts, ends):  # type: ignore[no-untyped-def]
    """``COMMON``, ``BLANK`` or ``UNUSUAL`` for each text, uint8 [n]."""
    found = np.empty(len(starts), dtype=np.uint8)
    for number in range(len(starts)):
        found[number] = _look(buffer[starts[number] : ends[number]])
    return found


@njit(cache=True)
def _look(text):  # type: ignore[no-untyped-def]
    position, visible, after_lead = 0, False, False
    while position < len(text):
        byte = text[position]
        if byte < 0x80:
            # Control characters are removed, and CR becomes LF.
            if byte < 0x20 and byte != 0x0A and byte != 0x09 or byte == 0x7F:
                return UNUSUAL
            visible = visible or byte > 0x20
            after_lead = False
            position += 1
            continue
        point, width = code_point(text, position)
        if after_lead or not _is_common(point):
            return UNUSUAL
        # A lead byte of UTF-8, if it was read in Latin-1: with more beyond ASCII behind it this may be mojibake.
        after_lead = 0xC2 <= point <= 0xF4
        visible = visible or point > 0xA0
        position += width
    return COMMON if visible else BLANK


@njit(cache=True)
def _is_common(point):  # type: ignore[no-untyped-def]
    """Whether a character beyond ASCII stays as it is under NFC, joins with no other and is no control character."""
    return (
        0xA0 <= point < 0x300
        or 0x400 <= point <= 0x482  # Cyrillic up to its combining marks
        or 0x2010 <= point <= 0x2027  # up to the line separator (2028), which becomes a line feed
        or point == 0x2022
        or point == 0x20AC
        or point == 0x2122
        or 0x3001 <= point <= 0x3029  # up to the combining tone marks
        or 0x3041 <= point <= 0x3096  # hiragana up to the combining voice marks
        or 0x30A1 <= point <= 0x30FA
        or 0x4E00 <= point <= 0x9FFF
        or 0xFF01 <= point <= 0xFF5E
    )
