"""What a vocabulary lacks for a corpus: new tokens and merges that continue its own BPE.

Words are split by the base's own merges first, and every new merge ranks after all old ones. So the base's merges are
done before any new one, and a text changes only where a new token stands in it (docs/tokenize.md has the argument).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deepen.formats.files.arrays import Array
from deepen.tokenize.vocabulary.base_model import BaseModel
from deepen.tokenize.vocabulary.growth_kernel import HASH_BASE, learn

Merge = tuple[str, str]

_WRAP = (1 << 64) - 1  # Python's numbers have no end: cut to what the kernel's wrap around to


@dataclass(frozen=True)
class Growth:
    """New tokens in the order of their ids, and merges in the order of their ranks."""

    tokens: tuple[str, ...] = ()
    merges: tuple[Merge, ...] = ()
    saved: tuple[int, ...] = ()
    """Tokens that the first k new tokens save in the sample, for k = 1, 2, ..., len(tokens)."""
    sample_tokens: int = 0
    """Tokens of the sample before."""
    uses: tuple[int, ...] = ()
    """How often each new token stands in the sample once all are there; 0 for those that are steps to others only."""

    @property
    def saved_share(self) -> float:
        """Share of the sample's tokens that is saved."""
        return self.saved[-1] / self.sample_tokens if self.saved else 0.0


@dataclass(frozen=True)
class _Symbols:
    """Pieces and lacking characters of a set of words, numbered without gaps."""

    names: list[str]
    costs: list[int]
    words: tuple[Array, Array, Array]


def grow(base: BaseModel, counts: Counter[str], most: int) -> Growth:
    """Learn up to ``most`` tokens from words in the model's spelling; ties go by the order of ids, then of strings."""
    symbols = _symbols(base, counts)
    hashes = np.array([_hash(name) for name in symbols.names], dtype=np.uint64)
    powers = np.array([pow(HASH_BASE, len(name), 1 << 64) for name in symbols.names], dtype=np.uint64)
    classes = np.array([base.class_of(name) for name in symbols.names], dtype=np.int64)
    costs = np.array(symbols.costs, dtype=np.int64)
    old = np.sort(np.array([_hash(name) for name in base.vocabulary], dtype=np.uint64))
    steps, state = learn(symbols.words, (hashes, powers, classes, costs), old, most)
    return _named(base, symbols, steps, state)


def _symbols(base: BaseModel, counts: Counter[str]) -> _Symbols:
    """Split the words by the base's merges; a character that it lacks is one symbol that costs its bytes less one."""
    words = sorted(counts)
    lacking = _lacking(base, words)
    names: dict[str, int] = {}
    by_id = {number: token for token, number in base.vocabulary.items()}
    pieces: list[list[str]] = []
    whole = [cut_around(word, lacking.__contains__) for word in words] if lacking else [[word] for word in words]
    encoded = iter(base.encode_words([part for parts in whole for part in parts if part not in lacking]))
    for parts in whole:
        row: list[str] = []
        for part in parts:
            row += [part] if part in lacking else [by_id[number] for number in next(encoded)]
        pieces.append(row)
    used = {piece for row in pieces for piece in row}
    # The kernel breaks ties by these numbers, so they must not depend on the order in which words were met.
    order = sorted(used, key=lambda piece: (base.vocabulary.get(piece, base.size), piece))
    names = {piece: at for at, piece in enumerate(order)}
    flat = np.array([names[piece] for row in pieces for piece in row], dtype=np.int64)
    offsets = np.cumsum([0, *(len(row) for row in pieces)], dtype=np.int64)
    times = np.array([counts[word] for word in words], dtype=np.int64)
    costs = [lacking.get(piece, 0) for piece in order]
    return _Symbols(order, costs, (flat, offsets, times))


def _lacking(base: BaseModel, words: Sequence[str]) -> dict[str, int]:
    """Characters that the vocabulary lacks, with the tokens that one more would save each time.

    Without pieces for bytes such a character is lost: it is worth one token, though none is saved.
    """
    if base.is_byte_level:
        return {}
    known = base.vocabulary.keys()
    characters = set().union(*map(set, words)) - known
    lacking = [character for character in characters if not character.isascii()]
    return {character: len(character.encode()) - 1 if base.byte_fallback else 1 for character in lacking}


def cut_around(word: str, is_lacking: Callable[[str], bool]) -> list[str]:
    """A word cut around the characters that the vocabulary lacks: merges never cross them."""
    parts, begin = [], 0
    for at, character in enumerate(word):
        if is_lacking(character):
            parts += [word[begin:at]] * (at > begin) + [character]
            begin = at + 1
    return parts + [word[begin:]] * (len(word) > begin)


def _hash(text: str) -> int:
    """The kernel's hash of a string: a polynomial in its code points plus one, modulo 2**64."""
    value = 0
    for character in text:
        # Plus one: or NUL before a string would not change its hash.
        value = (value * HASH_BASE + ord(character) + 1) & _WRAP
    return value


def _named(base: BaseModel, symbols: _Symbols, steps: Array, state: Array) -> Growth:
    """The kernel's steps in strings; proves that no two strings shared a hash."""
    names = list(symbols.names)
    tokens: dict[str, None] = {}
    merges: dict[Merge, None] = {}
    saved, total = [], 0
    for left, right, made, count in steps.tolist():
        total += count if right >= 0 or base.byte_fallback else 0
        if right < 0:
            tokens[names[left]] = None
            saved.append(total)
            continue
        name = names[left] + names[right]
        if made == len(names):  # a new string; else one more merge for a known one, whose gain grows
            names.append(name)
            tokens[name] = None
            saved.append(total)
        else:
            saved[-1] = total
        assert names[made] == name and name not in base.vocabulary, f"hashes of strings collide at {name!r}"
        merges[names[left], names[right]] = None
    _, offsets, times = symbols.words
    owner = np.repeat(np.arange(len(times)), np.diff(offsets))
    kept = state >= 0  # -1: merged into the symbol before it
    finally_used = np.bincount(state[kept], weights=times[owner[kept]], minlength=len(names)).astype(np.int64)
    number_of = {name: at for at, name in enumerate(names)}
    extra = np.array(symbols.costs, dtype=np.int64) * base.byte_fallback
    # A lacking character counts the bytes that it was written in.
    before = int((times[owner] * (1 + extra[symbols.words[0]])).sum())
    uses = tuple(int(finally_used[number_of[token]]) for token in tokens)
    return Growth(tuple(tokens), tuple(merges), tuple(saved), before, uses)
