"""The training order: which row of which source comes next.

Rows hold different numbers of real tokens, so shares are kept in *tokens*: the next row comes from the role (domain or
replay), and within it from the source, that is furthest behind its share. Being behind is counted in whole numbers, so
nothing drifts, and after any row a role is at most one row of tokens away from its share. Within a source rows come in
the order of a fresh shuffle per epoch; none repeats before all were seen. The result depends on seed, names, shares and
token counts only, and a longer order begins with every shorter one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepen.engine.compiled import njit
from deepen.formats.order import SOURCE_SHIFT
from deepen.mix.permutation import half_bits_for, item_at, make_round_keys, source_key

Array = npt.NDArray[Any]

_WHOLE = 1 << 32
"""Shares are multiples of 2^-32; lag times tokens of a row stays far below 2^63."""
_BLOCK_ROWS = 1 << 20
_SHIFT = np.uint64(SOURCE_SHIFT)
_NO_EPOCH = np.int64(-1)


@dataclass(frozen=True)
class Supply:
    """What one source offers to the order."""

    name: str
    role: str
    """``domain`` or ``replay``."""
    tokens_per_row: Array
    """int32[num_rows]: real tokens in each packed row."""

    @property
    def num_rows(self) -> int:
        """Number of packed rows."""
        return len(self.tokens_per_row)

    @property
    def num_tokens(self) -> int:
        """Number of packed tokens."""
        return int(self.tokens_per_row.sum(dtype=np.int64))


@dataclass(frozen=True)
class Drawn:
    """What an order takes from one source."""

    rows: int
    """Rows in the order, repeats included."""
    tokens: int
    """Tokens in the order, repeats included."""
    seen_rows: int
    """Different rows in the order."""
    seen_tokens: int
    """Tokens of the different rows."""


class OrderBuilder:
    """Draws rows one after another; ``blocks`` yields them, ``drawn`` tells what was taken so far."""

    def __init__(self, supplies: Sequence[Supply], *, domain_share: float, max_epochs: float, seed: int) -> None:
        self.supplies = tuple(supplies)
        roles = np.array([0 if supply.role == "domain" else 1 for supply in supplies], dtype=np.int64)
        domain = round(domain_share * _WHOLE)
        self._role_weights = np.array([domain, _WHOLE - domain], dtype=np.int64)
        self._roles, self._weights = roles, _weights_within_roles(supplies, roles)
        for role, weight in enumerate(self._role_weights):
            assert weight == 0 or self._weights[roles == role].any(), "a role with a share needs a source with tokens"
        self._sizes = np.array([supply.num_rows for supply in supplies], dtype=np.int64)
        self._caps = np.array([int(max_epochs * size) for size in self._sizes], dtype=np.int64)
        self._first_row = np.concatenate([[0], np.cumsum(self._sizes)])
        self._tokens = np.concatenate([supply.tokens_per_row.astype(np.int32) for supply in supplies])
        self._keys = np.array([source_key(seed, supply.name) for supply in supplies], dtype=np.uint64)
        self._state = _State.fresh(len(supplies))
        self.exhausted: int | None = None
        """Index of the source that had no row left within ``max_epochs``; None as long as there was one."""

    def blocks(self, num_rows: int) -> Iterator[Array]:
        """The next ``num_rows`` row ids (uint64); ends early, with ``exhausted`` set, when a source is spent."""
        for begin in range(0, num_rows, _BLOCK_ROWS):
            block = np.empty(min(_BLOCK_ROWS, num_rows - begin), dtype=np.uint64)
            num_filled, exhausted = _draw(
                block, self._tokens, self._first_row, (self._roles, self._role_weights, self._weights),
                (self._sizes, self._caps, self._keys), self._state.arrays,
            )  # fmt: skip
            yield block[:num_filled]
            if exhausted >= 0:
                self.exhausted = int(exhausted)
                return

    def drawn(self) -> list[Drawn]:
        """What was taken from each source so far, in the order of the supplies."""
        counts = self._state.counts
        return [
            Drawn(int(rows), int(tokens), int(min(rows, size)), int(seen_tokens))
            for rows, tokens, seen_tokens, size in zip(*counts, self._sizes, strict=True)
        ]


@dataclass(frozen=True)
class _State:
    """What the drawing loop carries from block to block."""

    lags: Array
    """int64[sources]: tokens x 2^32 a source is behind its share of its role."""
    role_lags: Array
    """int64[2]: the same for domain and replay."""
    counts: Array
    """int64[3, sources]: rows drawn, tokens drawn, tokens of rows seen for the first time."""
    epochs: Array
    """int64[sources]: the epoch whose round keys are in ``round_keys``; -1 when there are none yet."""
    round_keys: Array

    @classmethod
    def fresh(cls, num_sources: int) -> _State:
        return cls(
            np.zeros(num_sources, np.int64),
            np.zeros(2, np.int64),
            np.zeros((3, num_sources), np.int64),
            np.full(num_sources, _NO_EPOCH, np.int64),
            np.zeros((num_sources, len(make_round_keys(np.uint64(0), np.uint64(0)))), np.uint64),
        )

    @property
    def arrays(self) -> tuple[Array, ...]:
        return self.lags, self.role_lags, self.counts, self.epochs, self.round_keys


def _weights_within_roles(supplies: Sequence[Supply], roles: Array) -> Array:
    """Each source's part of its role's tokens in units of 2^-32; what rounding leaves goes to the largest source."""
    tokens = [supply.num_tokens for supply in supplies]
    weights = np.zeros(len(supplies), dtype=np.int64)
    for role in (0, 1):
        members = [index for index in range(len(supplies)) if roles[index] == role]
        total = sum(tokens[index] for index in members)
        if total == 0:
            continue
        for index in members:
            weights[index] = tokens[index] * _WHOLE // total
        weights[max(members, key=lambda index: tokens[index])] += _WHOLE - weights[members].sum()
    return weights


@njit(cache=True)  # type: ignore[untyped-decorator]
def _draw(
    block: Array,
    tokens_of_rows: Array,
    first_row: Array,
    shares: tuple[Array, Array, Array],
    sources: tuple[Array, Array, Array],
    state: tuple[Array, Array, Array, Array, Array],
) -> tuple[int, int]:
    """Fill ``block`` with row ids; returns how many there are and the source that was spent, or -1."""
    roles, role_weights, weights = shares
    sizes, caps, keys = sources
    lags, role_lags, counts, epochs, round_keys = state
    for at in range(len(block)):
        role = 0 if role_lags[0] > role_lags[1] or (role_lags[0] == role_lags[1] and role_weights[0] > 0) else 1
        source = _furthest_behind(lags, weights, roles, role)
        drawn = counts[0, source]
        if drawn >= caps[source]:
            return at, source
        size = sizes[source]
        epoch = drawn // size
        if epochs[source] != epoch:
            epochs[source] = epoch
            round_keys[source] = make_round_keys(keys[source], np.uint64(epoch))
        place = np.uint64(drawn - epoch * size)
        row = item_at(place, np.uint64(size), half_bits_for(np.uint64(size)), round_keys[source])
        block[at] = (np.uint64(source) << _SHIFT) | row
        tokens = np.int64(tokens_of_rows[first_row[source] + np.int64(row)])
        _take(source, role, tokens, shares, (lags, role_lags))
        counts[0, source] += 1
        counts[1, source] += tokens
        if epoch == 0:
            counts[2, source] += tokens
    return len(block), -1


@njit(cache=True)  # type: ignore[untyped-decorator]
def _furthest_behind(lags: Array, weights: Array, roles: Array, role: int) -> int:
    """The source of a role with the largest lag, the first of equals."""
    best = -1
    for source in range(len(lags)):
        if roles[source] == role and weights[source] > 0 and (best < 0 or lags[source] > lags[best]):
            best = source
    return best


@njit(cache=True)  # type: ignore[untyped-decorator]
def _take(
    source: int, role: int, tokens: np.int64, shares: tuple[Array, Array, Array], lags: tuple[Array, Array]
) -> None:
    """Book ``tokens`` of one row: everyone's share grows by its weight, the one taken from has got a whole row."""
    roles, role_weights, weights = shares
    source_lags, role_lags = lags
    for other in range(len(source_lags)):
        if roles[other] == role:
            source_lags[other] += weights[other] * tokens
    source_lags[source] -= _WHOLE * tokens
    role_lags[0] += role_weights[0] * tokens
    role_lags[1] += role_weights[1] * tokens
    role_lags[role] -= _WHOLE * tokens
