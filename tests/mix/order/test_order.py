"""The order keeps the shares it was asked for, repeats nothing early, and only ever grows at its end."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen.formats.tokens.order import row_of, source_of
from deepen.mix.order.build import OrderBuilder, Phase, Supply

TOKENS = 64


def supply(name: str, role: str, num_rows: int) -> Supply:
    random = np.random.RandomState(len(name) * 1000 + num_rows)
    return Supply(name, name, role, len(name) - 1, random.randint(1, TOKENS + 1, num_rows).astype(np.int32), TOKENS)


def shares_of(supplies: list[Supply], domain: float) -> dict[tuple[str, ...], float]:
    """Roles by share, sources of a role by their tokens."""
    shares: dict[tuple[str, ...], float] = {("domain",): domain, ("replay",): 1 - domain}
    for one in supplies:
        shares[one.path[:2]] = one.num_tokens
        shares[one.path] = 1.0
    return shares


SUPPLIES = [
    supply("a", "domain", 40),
    supply("bb", "domain", 9),
    supply("ccc", "replay", 30),
    supply("dddd", "replay", 5),
]


def build(num_rows: int, supplies: list[Supply] = SUPPLIES, share: float = 0.7, epochs: float = 1e6, seed: int = 1):
    builder = OrderBuilder(supplies, max_epochs=epochs, seed=seed)
    shares = shares_of(supplies, share)
    return builder, np.concatenate(list(builder.blocks([Phase(0, num_rows, 1, shares, shares)])))


def tokens_of(supplies: list[Supply], ids: np.ndarray) -> np.ndarray:
    return np.array(
        [supplies[s].tokens_per_row[r] for s, r in zip(source_of(ids), row_of(ids), strict=True)], dtype=np.int64
    )


@given(st.floats(0, 1), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_the_domain_share_holds_after_every_row(share: float, seed: int) -> None:
    _, ids = build(500, share=share, seed=seed)
    tokens = tokens_of(SUPPLIES, ids)
    domain = np.cumsum(np.where(source_of(ids) < 2, tokens, 0))
    assert (np.abs(domain - share * np.cumsum(tokens)) <= TOKENS + 1e-6 * tokens.sum()).all()


def test_sources_of_a_role_are_taken_by_their_tokens() -> None:
    _, ids = build(3000)
    drawn = np.bincount(source_of(ids), tokens_of(SUPPLIES, ids))
    held = [supply.num_tokens for supply in SUPPLIES]
    for first, second in ((0, 1), (2, 3)):
        got = drawn[first] / (drawn[first] + drawn[second])
        assert abs(got - held[first] / (held[first] + held[second])) < 0.01


@given(st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_no_row_repeats_before_all_rows_were_seen(seed: int) -> None:
    _, ids = build(700, seed=seed)
    for source, of in enumerate(SUPPLIES):
        rows = row_of(ids[source_of(ids) == source])
        for begin in range(0, len(rows), of.num_rows):
            epoch = rows[begin : begin + of.num_rows]
            assert len(set(epoch.tolist())) == len(epoch)


@given(st.integers(1, 400), st.integers(1, 400))
@settings(deadline=None, max_examples=30)
def test_a_longer_order_begins_with_the_shorter(first: int, second: int) -> None:
    short, long = sorted((first, second))
    assert np.array_equal(build(short)[1], build(long)[1][:short])


def test_blocks_make_no_difference(monkeypatch) -> None:
    _, whole = build(300)
    monkeypatch.setattr("deepen.mix.order.build._BLOCK_ROWS", 7)
    _, pieces = build(300)
    assert np.array_equal(whole, pieces)


def test_golden_order() -> None:
    supplies = [
        Supply("papers", "papers", "domain", 0, np.array([8, 7, 6, 8, 5], np.int32), 8),
        Supply("notes", "notes", "domain", 1, np.array([8, 8], np.int32), 8),
        Supply("web", "web", "replay", 2, np.array([8, 4, 8], np.int32), 8),
    ]
    _, ids = build(14, supplies, seed=17)
    assert list(zip(source_of(ids).tolist(), row_of(ids).tolist(), strict=True)) == [
        (0, 1), (2, 2), (1, 0), (0, 2), (2, 0), (0, 0), (1, 1), (0, 3), (2, 1), (0, 4), (2, 1), (1, 0), (2, 0), (0, 1),
    ]  # fmt: skip


def test_what_was_drawn_is_counted() -> None:
    builder, ids = build(200)
    assert builder.drawn.tolist() == np.bincount(source_of(ids), minlength=4).tolist()


def test_the_order_stops_where_a_source_is_spent() -> None:
    builder, ids = build(10_000, epochs=2)
    assert builder.exhausted is not None
    assert all(rows <= 2 * of.num_rows for rows, of in zip(builder.drawn, SUPPLIES, strict=True))
    assert build(len(ids), epochs=2)[0].exhausted is None


def test_no_shares_but_the_asked_ones() -> None:
    assert set(source_of(build(100, share=0.0)[1]).tolist()) == {2, 3}
    assert set(source_of(build(100, share=1.0)[1]).tolist()) == {0, 1}


def test_neighbouring_rows_are_no_neighbours_in_the_corpus() -> None:
    _, ids = build(2000, [supply("a", "domain", 2000)], share=1.0)
    assert np.mean([abs(a - b) == 1 for a, b in pairwise(row_of(ids).tolist())]) < 0.01
