"""Walking UTF-8 in compiled code: code points, spaces, and the scripts that are written without spaces.

Numba compiles these loops on first use and caches the result on disk. They take bytes, not Python strings, so that a
whole batch of documents is one call. All arithmetic is spelt in unsigned 64-bit numbers, because numba turns a mix of
signed and unsigned into floats.
"""

from __future__ import annotations

import numpy as np

from deepen.engine.compiled import njit

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the increment of splitmix64
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # of splitmix64 (Steele et al. 2014)
_S8, _S27, _S30, _S31, _S56 = np.uint64(8), np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(56)

# Not zero: from a state of zero `absorb` would not see leading zeros. (FNV's offset basis; any other would do.)
HASH_SEED = np.uint64(0xCBF29CE484222325)


@njit(cache=True, inline="always")
def code_point(text, position):  # type: ignore[no-untyped-def]
    """The code point that starts at byte ``position`` of valid UTF-8, and its number of bytes."""
    # The texts were Python strings once, so their UTF-8 is whole: neither bounds nor continuation bytes are tested.
    first = np.int64(text[position])
    if first < 0x80:
        return first, 1
    second = np.int64(text[position + 1]) & 0x3F
    if first < 0xE0:
        return ((first & 0x1F) << 6) | second, 2
    third = np.int64(text[position + 2]) & 0x3F
    if first < 0xF0:
        return ((first & 0x0F) << 12) | (second << 6) | third, 3
    fourth = np.int64(text[position + 3]) & 0x3F
    return ((first & 0x07) << 18) | (second << 12) | (third << 6) | fourth, 4


@njit(cache=True)
def room_for_lines(buffer, starts, ends):  # type: ignore[no-untyped-def]
    """How many lines some texts have at most: one per line feed and one more for each text."""
    count = len(starts)
    for number in range(len(starts)):
        for byte in buffer[starts[number] : ends[number]]:
            count += byte == 0x0A
    return count


@njit(cache=True)
def is_space(point):  # type: ignore[no-untyped-def]
    """Unicode white space."""
    if point < 0x80:
        return point == 0x20 or 0x09 <= point <= 0x0D
    return (
        point in (0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
        or 0x2000 <= point <= 0x200A
    )  # fmt: skip


@njit(cache=True)
def is_unspaced(point):  # type: ignore[no-untyped-def]
    """Letters of scripts without spaces between words: Chinese, Japanese, Thai, Lao, Tibetan, Burmese, Khmer, Yi."""
    if point < 0x0E00:  # below Thai every script parts its words: nearly all text leaves here
        return False
    return (
        point <= 0x109F
        or 0x1780 <= point <= 0x17FF
        or 0x2E80 <= point <= 0x2FDF
        or 0x3005 <= point <= 0x3007  # iteration mark and zero: letters that stand among punctuation
        or 0x3040 <= point <= 0x312F
        or 0x31A0 <= point <= 0x4DBF
        or 0x4E00 <= point <= 0xA4CF
        or 0xF900 <= point <= 0xFAFF
        or 0xFF66 <= point <= 0xFF9F  # half-width kana
        or 0x20000 <= point <= 0x3FFFF  # rare Chinese characters
    )


@njit(cache=True)
def is_separator(point):  # type: ignore[no-untyped-def]
    """Whatever is neither letter nor digit, as far as it is common: spaces, punctuation, symbols, emoji."""
    if point < 0x80:
        return not (0x30 <= point <= 0x39 or 0x41 <= point <= 0x5A or 0x61 <= point <= 0x7A)
    if point < 0xC0 or point == 0xD7 or point == 0xF7:  # the signs of times and division stand among Latin letters
        return True
    # The scripts below 0x2000 are nearly all letters and marks that belong to them: their few separators are named.
    if point < 0x2000:
        return point in (0x0589, 0x05BE, 0x060C, 0x061B, 0x061F, 0x06D4, 0x0964, 0x0965, 0x1680)
    return (
        point <= 0x206F
        or 0x2190 <= point <= 0x2BFF
        or 0x2E00 <= point <= 0x2E7F
        or (0x3000 <= point <= 0x303F and not 0x3005 <= point <= 0x3007)
        or 0xFE30 <= point <= 0xFE6F
        or 0xFF00 <= point <= 0xFF0F
        or 0xFF1A <= point <= 0xFF20
        or 0xFF3B <= point <= 0xFF40
        or 0xFF5B <= point <= 0xFF65
        or 0x1F000 <= point <= 0x1FAFF
    )


@njit(cache=True)
def is_ignored(point):  # type: ignore[no-untyped-def]
    """Invisible characters inside words: soft hyphen, zero-width space, joiners, byte order mark."""
    return point in (0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF)


@njit(cache=True)
def lower(point):  # type: ignore[no-untyped-def]
    """Small letter of a capital one in Latin-1, Greek and Cyrillic; other scripts stay as they are."""
    if 0x41 <= point <= 0x5A:
        return point + 0x20
    if point < 0xC0:
        return point
    # This would turn the sign of times (0xD7) into that of division; both are separators, which nobody asks about.
    if point <= 0xDE or 0x391 <= point <= 0x3A9 or 0x410 <= point <= 0x42F:
        return point + 0x20
    if 0x400 <= point <= 0x40F:
        return point + 0x50
    return point


@njit(cache=True, inline="always")
def absorb(state, value):  # type: ignore[no-untyped-def]
    """One step of an order-dependent hash over unsigned 64-bit values; finish with ``mix``."""
    # A product carries bits upwards only; the old state, shifted, brings the high ones down again.
    return ((state ^ value) * _MULTIPLIER) ^ (state >> _S31)


@njit(cache=True, inline="always")
def mix(state):  # type: ignore[no-untyped-def]
    """The finaliser of splitmix64: every bit of the result depends on every bit of ``state``."""
    state = (state ^ (state >> _S30)) * _MIX_1
    state = (state ^ (state >> _S27)) * _MIX_2
    return state ^ (state >> _S31)


@njit(cache=True, inline="always")
def finished(state, packed, size):  # type: ignore[no-untyped-def]
    """The hash of ``size`` bytes of which every full eight were absorbed and the rest is in ``packed``."""
    # At most seven bytes are left, so the highest byte is free for their number: else `a` and NUL `a` had one hash.
    return mix(absorb(state, packed | (np.uint64(size & 7) << _S56)))


@njit(cache=True)
def hash_bytes(text, position, end):  # type: ignore[no-untyped-def]
    """Hash of the bytes between two positions, eight at a time: absorbing waits for a product each time."""
    state, packed, start = HASH_SEED, np.uint64(0), position
    while position < end:
        packed = (packed << _S8) | np.uint64(text[position])
        position += 1
        if (position - start) & 7 == 0:
            state, packed = absorb(state, packed), np.uint64(0)
    return finished(state, packed, end - start)
