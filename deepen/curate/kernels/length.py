"""Lengths of many texts in one compiled walk: characters, and words between white space."""

from __future__ import annotations

import numpy as np

from deepen.curate.kernels.text import code_point, is_space
from deepen.engine.compiled import njit


@njit(cache=True)
def measure_lengths(buffer, starts, ends):  # type: ignore[no-untyped-def]
    """Characters and words of each text, int64 [n, 2]; white space is what Python's ``str.split`` takes for it."""
    lengths = np.zeros((len(starts), 2), dtype=np.int64)
    for number in range(len(starts)):
        characters, words, inside, position = 0, 0, False, starts[number]
        while position < ends[number]:
            byte = buffer[position]
            if byte < 0x80:
                # Python also splits at the information separators, 0x1C to 0x1F, which are no Unicode space.
                space = byte <= 0x20 and (byte == 0x20 or 0x09 <= byte <= 0x0D or byte >= 0x1C)
                position += 1
            else:
                point, width = code_point(buffer, position)
                space = is_space(point)
                position += width
            characters += 1
            words += inside and space  # a word is counted at its end; one that ends the text follows below
            inside = not space
        lengths[number, 0], lengths[number, 1] = characters, words + inside
    return lengths
