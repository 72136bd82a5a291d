"""The training order: which row of which source comes next.

Rows hold different numbers of real tokens, so shares are kept in *tokens*. They form a tree: roles, their sources, the
parts of a source (its categories and lengths). The next row is found by going down it, at each node to the child that
is furthest behind its share of the node's tokens. Being behind is counted in whole numbers, so nothing drifts. Within a
part rows come in the order of a fresh shuffle per epoch; none repeats before all were seen. The result depends on seed,
names, shares and token counts only, and a longer order begins with every shorter one of the same shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deepen.engine.compiled import njit
from deepen.formats.files.arrays import Array
from deepen.formats.tokens.order import SOURCE_SHIFT
from deepen.mix.order.permutation import half_bits_for, item_at, make_round_keys, source_key

_WHOLE = 1 << 32
"""Shares are multiples of 2^-32; lag times tokens of a row stays far below 2^63."""
_BLOCK_ROWS = 1 << 20  # ids in memory at a time: 8 MB
_SHIFT = np.uint64(SOURCE_SHIFT)
_NO_EPOCH = np.int64(-1)


@dataclass(frozen=True)
class Supply:
    """Rows that are drawn as one: those of a source, or of one category and length in it."""

    name: str
    """Unique; with the seed it decides the shuffle."""
    source: str
    """The source it is, or is part of."""
    role: str
    """``domain`` or ``replay``."""
    source_index: int
    """Index of its source in the order."""
    tokens_per_row: Array
    """int32[num_rows]: real tokens in each packed row."""
    sequence_length: int
    """Positions in each of its rows."""
    first_row: int = 0
    """Its first row among the rows of its source."""

    @property
    def num_rows(self) -> int:
        """Number of packed rows."""
        return len(self.tokens_per_row)

    @property
    def num_tokens(self) -> int:
        """Number of packed tokens."""
        return int(self.tokens_per_row.sum(dtype=np.int64))

    @property
    def first_id(self) -> int:
        """The id of its first row in the order."""
        return self.source_index << SOURCE_SHIFT | self.first_row

    @property
    def path(self) -> tuple[str, str, str]:
        """Where it stands in the tree of shares: role, source, supply."""
        return self.role, self.source, self.name


Shares = Mapping[tuple[str, ...], float]
"""Shares by path: ``("domain",)`` of all tokens, ``("domain", "papers")`` of domain tokens and so on; siblings add up
to 1, and what is not named has none."""


@dataclass(frozen=True)
class Phase:
    """A range of batches with one length of rows, whose shares are constant or go in straight lines."""

    first_batch: int
    num_batches: int
    rows_per_batch: int
    begin: Shares
    end: Shares


@dataclass(frozen=True)
class Tree:
    """The tree of shares as arrays; the children of a node stand side by side, node 0 is the root."""

    paths: tuple[tuple[str, ...], ...]
    first_child: Array
    num_children: Array
    supply: Array
    """The supply of a leaf, -1 at inner nodes."""
    parent: Array

    @classmethod
    def of(cls, supplies: Sequence[Supply]) -> Tree:
        """The tree over all supplies, level by level."""
        leaves = {supply.path: index for index, supply in enumerate(supplies)}
        below: dict[tuple[str, ...], dict[tuple[str, ...], None]] = {}
        for leaf in leaves:
            for depth in range(len(leaf)):
                below.setdefault(leaf[:depth], {})[leaf[: depth + 1]] = None
        paths: list[tuple[str, ...]] = [()]
        first_child, num_children, parent = [], [], [-1]
        for node, path in enumerate(paths):
            children = below.get(path, {})
            first_child.append(len(paths))
            num_children.append(len(children))
            paths += children  # the loop goes on over what is appended
            parent += [node] * len(children)
        supply = [leaves.get(path, -1) if len(path) == 3 else -1 for path in paths]
        return cls(
            tuple(paths), *(np.array(values, dtype=np.int64) for values in (first_child, num_children, supply, parent))
        )

    @property
    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """What the drawing loop reads."""
        return self.first_child, self.num_children, self.supply, self.parent

    def weights(self, shares: Shares) -> Array:
        """int64[nodes]: shares in units of 2^-32, summed over the siblings up to and with each; the last is 2^32."""
        sums = np.zeros(len(self.paths), dtype=np.int64)
        for first, number in zip(self.first_child, self.num_children, strict=True):
            given = [max(0.0, shares.get(self.paths[node], 0.0)) for node in range(first, first + number)]
            total = sum(given)
            ends = np.cumsum(given) / total * _WHOLE if total else np.zeros(number)
            # Sums are rounded, not shares, so that the parts always make up the whole.
            sums[first : first + number] = np.round(ends).astype(np.int64)
        return sums


class OrderBuilder:
    """Draws rows one after another; ``blocks`` yields them, ``drawn`` says how many came from where.

    A supply that was passed ``max_epochs`` times is spent. Then the order ends, with ``exhausted`` set; or what is
    nearest to it in the tree takes over its share, within its ``role`` or in the whole ``run``, as ``heirs`` says.
    """

    def __init__(
        self,
        supplies: Sequence[Supply],
        *,
        max_epochs: float,
        seed: int,
        heirs: Literal["none", "role", "run"] = "none",
        drawn: Array | None = None,
    ) -> None:
        self.supplies = tuple(supplies)
        self.tree = Tree.of(supplies)
        self._heirs = heirs
        sizes = np.array([supply.num_rows for supply in supplies], dtype=np.int64)
        # In rows, so that a part of an epoch can be allowed.
        caps = np.array([int(max_epochs * size) for size in sizes], dtype=np.int64)
        keys = np.array([source_key(seed, supply.name) for supply in supplies], dtype=np.uint64)
        first = np.array([supply.first_id for supply in supplies], dtype=np.uint64)
        self._sources = (sizes, caps, keys, first)
        # One array for all supplies, whose rows begin at the offsets.
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        self._tokens = np.concatenate([supply.tokens_per_row for supply in supplies]).astype(np.int32, copy=False)
        self._state = _State.fresh(len(self.tree.paths), len(supplies))
        if drawn is not None:  # an order that goes on: cursors stay, lags begin at zero
            self._state.drawn[:] = drawn
        self.num_rows = 0
        """Rows drawn so far."""
        self.exhausted: int | None = None
        """The supply that had no row left within ``max_epochs``, or -1 when all had none; None as long as rows came."""
        self.spent: dict[int, int] = {}
        """Supplies that reached ``max_epochs`` and have heirs, with the number of rows drawn by then."""

    def blocks(self, phases: Sequence[Phase]) -> Iterator[Array]:
        """The row ids (uint64) of all phases, one after another; ends early when there is nothing left to draw."""
        for phase in phases:
            begin, end = self.tree.weights(phase.begin), self.tree.weights(phase.end)
            first, num_rows, everything = 0, phase.num_batches * phase.rows_per_batch, False
            while first < num_rows:
                block = np.empty(min(_BLOCK_ROWS, num_rows - first), dtype=np.uint64)
                place = (begin, end, first, phase.rows_per_batch, phase.num_batches)
                num_filled, supply = _draw(
                    block, (self._tokens, self._offsets), self.tree.arrays, place, self._sources, self._state.arrays
                )
                first += num_filled
                self.num_rows += num_filled
                yield block[:num_filled]
                if num_filled == len(block):
                    continue
                # With all roles allowed there was nothing, either.
                if not self._has_heir(int(supply)) or (supply < 0 and everything):
                    self.exhausted = int(supply)
                    return
                if supply < 0:  # nothing is left of what has a share: whatever there is takes over
                    everything = True
                    # Equal weights for both roles: the one that is spent weighs nothing, and the other gives all.
                    begin = end = self.tree.weights({**phase.end, ("domain",): 1.0, ("replay",): 1.0})

    def _has_heir(self, supply: int) -> bool:
        """Whether something may be drawn instead of a supply that is spent (-1: instead of all with a share)."""
        if supply >= 0 and self._heirs != "none":
            self._state.is_spent[supply] = True
            self.spent[supply] = self.num_rows
        left = [other for index, other in enumerate(self.supplies) if not self._state.is_spent[index]]
        role = {other.role for other in left if other.num_rows}
        found = {"none": False, "run": bool(role), "role": supply >= 0 and self.supplies[supply].role in role}
        return found[self._heirs]

    @property
    def drawn(self) -> Array:
        """int64[supplies]: rows drawn so far, repeats included."""
        return self._state.drawn


@dataclass(frozen=True)
class _State:
    """What the drawing loop carries from block to block."""

    lags: Array
    """int64[nodes]: tokens x 2^32 a node is behind its share of its parent's tokens."""
    is_spent: Array
    """bool[supplies]: nothing is drawn from it any more."""
    drawn: Array
    """int64[supplies]: rows drawn."""
    epochs: Array
    """int64[supplies]: the epoch whose round keys are in ``round_keys``; -1 when there are none yet."""
    round_keys: Array
    weights: Array
    """int64[nodes]: the shares of the present batch in units of 2^-32 of their parent's."""

    @classmethod
    def fresh(cls, num_nodes: int, num_supplies: int) -> _State:
        return cls(
            np.zeros(num_nodes, np.int64),
            np.zeros(num_supplies, np.bool_),
            np.zeros(num_supplies, np.int64),
            np.full(num_supplies, _NO_EPOCH, np.int64),
            np.zeros((num_supplies, len(make_round_keys(np.uint64(0), np.uint64(0)))), np.uint64),
            np.zeros(num_nodes, np.int64),
        )

    @property
    def arrays(self) -> tuple[Array, ...]:
        return self.lags, self.is_spent, self.drawn, self.epochs, self.round_keys, self.weights


@njit(cache=True)  # type: ignore[untyped-decorator]
def _draw(
    block: Array,
    rows: tuple[Array, Array],
    tree: tuple[Array, Array, Array, Array],
    shares: tuple[Array, Array, int, int, int],
    sources: tuple[Array, Array, Array, Array],
    state: tuple[Array, Array, Array, Array, Array, Array],
) -> tuple[int, int]:
    """Fill ``block`` with row ids; returns how many there are and the supply that was spent, or -1."""
    begin, end, first, rows_per_batch, num_batches = shares
    sizes, caps, keys, first_ids = sources
    lags, is_spent, num_drawn, epochs, round_keys, weights = state
    tokens_of_rows, offsets = rows
    batch = -1  # weights are set at the first row of every call: a supply may have been spent since
    for at in range(len(block)):
        if (first + at) // rows_per_batch != batch:
            batch = (first + at) // rows_per_batch
            # Where shares go in a line, a batch has those of its middle.
            _set_weights((weights, is_spent), tree, begin, end, (2 * batch + 1, 2 * num_batches))
        leaf = _furthest_behind(lags, weights, tree)
        supply = tree[2][leaf]  # the root has -1: then the next line reads the last supply, and does nothing with it
        drawn, size = num_drawn[supply], sizes[supply]
        # Back to Python, which decides who takes over; nothing was booked, so the same row is drawn again afterwards.
        if leaf == 0 or drawn >= caps[supply]:
            return at, supply
        epoch = drawn // size
        if epochs[supply] != epoch:  # the round keys are made once per epoch, not once per row
            epochs[supply] = epoch
            round_keys[supply] = make_round_keys(keys[supply], np.uint64(epoch))
        place = np.uint64(drawn - epoch * size)
        row = item_at(place, np.uint64(size), half_bits_for(np.uint64(size)), round_keys[supply])
        block[at] = first_ids[supply] + row
        tokens = np.int64(tokens_of_rows[offsets[supply] + np.int64(row)])
        _book(leaf, tokens, (lags, weights), tree)
        num_drawn[supply] += 1
    return len(block), -1


@njit(cache=True)  # type: ignore[untyped-decorator]
def _set_weights(
    nodes: tuple[Array, Array],
    tree: tuple[Array, Array, Array, Array],
    begin: Array,
    end: Array,
    place: tuple[int, int],
) -> None:
    """The weights at ``part / parts`` of the way from ``begin`` to ``end``, which are sums over siblings.

    What is spent weighs nothing, nor does a node whose children all weigh nothing: siblings take over its share.
    """
    weights, is_spent = nodes
    first_child, num_children, supply = tree[0], tree[1], tree[2]
    part, parts = place
    for node in range(len(first_child) - 1, -1, -1):  # children come after their parents
        before = np.int64(0)
        for child in range(first_child[node], first_child[node] + num_children[node]):
            # The line is drawn through the sums: they stay ascending, so no weight is negative and all make the whole.
            here = begin[child] + (end[child] - begin[child]) * part // parts
            is_empty = is_spent[supply[child]] if supply[child] >= 0 else weights[child] == 0
            weights[child] = 0 if is_empty else here - before
            before = here
        if num_children[node]:
            weights[node] = 0
            for child in range(first_child[node], first_child[node] + num_children[node]):
                weights[node] += weights[child]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _furthest_behind(lags: Array, weights: Array, tree: tuple[Array, Array, Array, Array]) -> int:
    """The leaf that is furthest behind at every level, the first of equals; 0, the root, when nothing is left."""
    first_child, num_children, supply = tree[0], tree[1], tree[2]
    node = 0
    while supply[node] < 0:
        best = -1
        for child in range(first_child[node], first_child[node] + num_children[node]):
            # Strictly more, so that of equals the first in the recipe is taken: the same order on every machine.
            if weights[child] > 0 and (best < 0 or lags[child] > lags[best]):
                best = child
        if best < 0:
            return 0
        node = best
    return node


# The lags of siblings always add up to zero: together they are given what one of them takes. So none can drift, and
# each stays within a few rows of its share. What weighs nothing is owed nothing, and keeps its lag.
@njit(cache=True)  # type: ignore[untyped-decorator]
def _book(leaf: int, tokens: np.int64, nodes: tuple[Array, Array], tree: tuple[Array, Array, Array, Array]) -> None:
    """Book ``tokens`` of one row: at each level everyone's share grows by its weight, the one taken from has a row."""
    lags, weights = nodes
    first_child, num_children, parent = tree[0], tree[1], tree[3]
    node = leaf
    while node > 0:
        above = parent[node]
        total = np.int64(0)
        for child in range(first_child[above], first_child[above] + num_children[above]):
            lags[child] += weights[child] * tokens
            total += weights[child]
        lags[node] -= total * tokens
        node = above
