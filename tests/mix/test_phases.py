"""From settings to phases: shares over the run, weights of sources, and the published vectors."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen.errors import SourceError
from deepen.formats.tokens.order import row_of, source_of
from deepen.mix.config import MixConfig
from deepen.mix.order.build import OrderBuilder, Supply
from deepen.mix.order.mixture import StoredSupply, Stretch
from deepen.mix.phases import SourceTokens, effective_tokens, phases_of, plan_stretches, unimax

SOURCES = [SourceTokens("a", "domain", 300), SourceTokens("b", "domain", 100), SourceTokens("c", "replay", 50)]


def stretches(batches: int = 100, **keys: Any) -> list[Stretch]:
    config = MixConfig.model_validate({"sequence_length": 8, **keys})
    return plan_stretches(config, SOURCES, num_batches=batches, batch_tokens=64)


def shares(**keys: Any) -> list[tuple[int, int, float, float]]:
    return [(s.first_batch, s.num_batches, *(round(x, 9) for x in s.domain_share)) for s in stretches(**keys)]


def test_published_unimax_vector() -> None:
    assert unimax([1, 10, 100], 60, 4) == [4, 28, 28]


def test_published_worth_of_repeats() -> None:
    assert [round(effective_tokens(1, epochs), 3) for epochs in (0.5, 1, 4)] == [0.5, 1, 3.726]
    assert effective_tokens(1, 16) == pytest.approx(10.58, abs=0.005)


def test_published_replay_vector() -> None:
    """200B tokens with a quarter of replay are 150B new and 50B old ones."""
    assert [s.positions * s.role_share("replay") for s in stretches(domain_share=0.75)] == [100 * 64 * 0.25]


def test_one_share_is_one_phase_and_defaults_depend_on_replay() -> None:
    assert shares() == [(0, 100, 0.7, 0.7)]
    assert shares(domain_share="proportional") == [(0, 100, round(400 / 450, 9), round(400 / 450, 9))]
    assert shares(control=True, domain_share=0.4) == [(0, 100, 0, 0)]


def test_steps_and_ramps_and_annealing() -> None:
    parts = [{"until": "10%", "share": 0.4}, {"until": "60 steps", "share": 0.7, "ramp": "linear"}, {"share": 0.5}]
    assert shares(domain_share=parts) == [(0, 10, 0.4, 0.4), (10, 50, 0.4, 0.7), (60, 40, 0.5, 0.5)]
    annealed = shares(domain_share=parts, anneal={"last": "20%", "domain_share": 0.9})
    assert annealed[-2:] == [(60, 20, 0.5, 0.5), (80, 20, 0.9, 0.9)]


def test_annealing_cuts_a_ramp_where_it_begins() -> None:
    parts = [{"until": "20%", "share": 0.0}, {"share": 0.8, "ramp": "linear"}]
    found = shares(domain_share=parts, anneal={"last": "40%", "domain_share": 1.0})
    assert found == [(0, 20, 0, 0), (20, 40, 0, 0.4), (60, 40, 1, 1)]


def test_lengths_are_phases_with_as_many_tokens_in_a_batch() -> None:
    found = stretches(sequence_length=[{"until": "80%", "length": 8}, {"length": 32}])
    assert [(s.num_batches, s.sequence_length, s.rows_per_batch) for s in found] == [(80, 8, 8), (20, 32, 2)]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [0.75, 0.25]),
        ({"temperature": 2}, [3**0.5 / (1 + 3**0.5), 1 / (1 + 3**0.5)]),
        ({"weights": "equal"}, [0.5, 0.5]),
        ({"weights": {"a": 1, "b": 4}}, [0.2, 0.8]),
        ({"weights": "unimax", "domain_share": 0.9, "max_epochs": 16}, [4160 / 5760, 1600 / 5760]),
    ],
)
def test_weights_within_a_role(keys: dict[str, Any], expected: list[float]) -> None:
    (found,) = stretches(**keys)
    assert [found.weights["a"], found.weights["b"]] == pytest.approx(expected)
    assert found.weights["c"] == 1


def test_annealing_has_weights_of_its_own() -> None:
    first, last = stretches(anneal={"last": "10%", "weights": {"a": 1, "b": 1}})
    assert (first.weights["a"], last.weights["a"], last.domain_share) == (0.75, 0.5, (0.7, 0.7))


def test_a_role_without_tokens_is_refused() -> None:
    with pytest.raises(SourceError, match="asked from replay sources, and no source has the role replay"):
        plan_stretches(MixConfig(domain_share=0.5), SOURCES[:2], num_batches=9, batch_tokens=64)


POINTS = st.lists(st.tuples(st.integers(1, 30), st.floats(0, 1), st.booleans()), min_size=1, max_size=4)


@given(POINTS, st.integers(1, 9), st.integers(1, 9), st.integers(3, 8), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_shares_are_within_a_batch_of_those_asked_at_every_point(
    parts: list[tuple[int, float, bool]], domains: int, replays: int, rows_per_batch: int, seed: int
) -> None:
    """For any supplies and any steps and ramps, after any row, for every source and both roles."""
    random = np.random.default_rng(seed)
    names = [(f"s{n}", "domain" if n < domains else "replay") for n in range(domains + replays)]
    supplies = [
        Supply(name, name, role, index, random.integers(1, 65, random.integers(1, 40)).astype(np.int32), 64)
        for index, (name, role) in enumerate(names)
    ]
    sources = [SourceTokens(supply.name, supply.role, supply.num_tokens) for supply in supplies]
    ends = np.cumsum([length for length, _, _ in parts])
    curriculum = [
        {"until": f"{end} steps", "share": share, "ramp": "linear" if ramp and number else "step"}
        for number, (end, (_, share, ramp)) in enumerate(zip(ends, parts, strict=True))
    ]
    config = MixConfig.model_validate({"sequence_length": 64, "domain_share": curriculum})
    planned = plan_stretches(config, sources, num_batches=int(ends[-1]), batch_tokens=64 * rows_per_batch)
    stored = [
        StoredSupply(
            name=s.name, source=s.source, role=s.role, sequence_length=64, weight=1, first_row=0, rows=s.num_rows,
            tokens=s.num_tokens, documents=1, pieces=1,
        ) for s in supplies
    ]  # fmt: skip
    builder = OrderBuilder(supplies, max_epochs=1e9, seed=seed)
    ids = np.concatenate(list(builder.blocks(phases_of(planned, stored))))
    tokens = np.array([supplies[s].tokens_per_row[r] for s, r in zip(source_of(ids), row_of(ids), strict=True)])
    middles = (np.arange(len(ids)) // rows_per_batch) + 0.5
    knots = [(s.first_batch, s.domain_share[0]) for s in planned] + [(int(ends[-1]), planned[-1].domain_share[1])]
    share = np.empty(len(ids))
    for stretch, (first, after) in zip(planned, pairwise(knots), strict=True):
        inside = (middles >= first[0]) & (middles < after[0])
        begin, end = stretch.domain_share
        share[inside] = begin + (end - begin) * (middles[inside] - first[0]) / stretch.num_batches
    within = np.array([planned[0].weights.get(name, 0.0) for name, _ in names])
    is_domain = np.array([role == "domain" for _, role in names])
    asked = np.where(is_domain, share[:, None], 1 - share[:, None]) * within * tokens[:, None]
    got = np.where(source_of(ids)[:, None] == np.arange(len(names)), tokens[:, None], 0)
    behind = np.cumsum(asked - got, axis=0)
    assert np.abs(behind).max() <= 64 * rows_per_batch
    assert np.abs(behind[:, is_domain].sum(axis=1)).max() <= 64 + 1e-6 * tokens.sum()
