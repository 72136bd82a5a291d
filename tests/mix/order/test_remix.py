"""A changed mixture appends: the past stays, every source goes on at its own cursor, and the cap wins."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen.errors import DamageError, RunError, SourceError
from deepen.formats.tokens.order import Order, appended_files, check_parents, row_of, source_of
from deepen.mix.config import MixConfig
from deepen.mix.order.mixture import open_supplies, read_mixture
from deepen.mix.order.permutation import source_key
from deepen.mix.order.remix import Change, remix
from deepen.mix.stage import mix
from tests.mix.order.test_permutation import permuted

SOURCES = {
    "papers": ("domain", [14, 7, 5, 2, 3, 40, 9]),
    "notes": ("domain", [8, 8, 30]),
    "web": ("replay", [6, 6, 21, 8, 1, 17]),
}
BATCHES = 12


@pytest.fixture
def mixed(make_job) -> Path:
    job = make_job("mix", **SOURCES)
    mix(MixConfig(sequence_length=8, max_epochs=50, allow_repetition=True), job, batch_tokens=32, num_batches=BATCHES)
    return job.out


def rows_forever(num_rows: int, key: np.uint64):
    """The rows of a source as the plain model has them: one shuffle of all of them after the other."""
    epoch = 0
    while True:
        yield from permuted(np.arange(num_rows), num_rows, key, epoch).tolist()
        epoch += 1


def assert_cursors_go_on(directory: Path, order: Order) -> None:
    mixture = read_mixture(directory)
    ids = np.concatenate([order.batch(batch) for batch in range(order.num_batches)])
    for index, supply in enumerate(open_supplies(directory, mixture)):
        mine = row_of(ids[source_of(ids) == index]).tolist()
        assert mine == list(islice(rows_forever(supply.num_rows, source_key(17, supply.name)), len(mine)))


def test_no_repeats_and_no_skips_however_often_the_mixture_changes(mixed, tmp_path_factory) -> None:
    @given(st.lists(st.tuples(st.integers(0, BATCHES - 1), st.floats(0, 1)), min_size=1, max_size=4))
    @settings(max_examples=40, deadline=None)
    def check(changes: list[tuple[int, float]]) -> None:
        folder = tmp_path_factory.mktemp("order")
        for batch, share in sorted(changes):
            remix(mixed, folder, Change(batch, share))
        files = appended_files(folder)
        check_parents(mixed, files)
        assert_cursors_go_on(mixed, Order.open(mixed, *files))

    check()


def test_the_past_stays_and_the_new_share_holds(mixed, tmp_path) -> None:
    path, table = remix(mixed, tmp_path, Change(5, 0.1, reason="too much forgetting", parent_step=4))
    before, after = Order.open(mixed), Order.open(mixed, path)
    assert after.num_batches == before.num_batches
    assert all(np.array_equal(before.batch(batch), after.batch(batch)) for batch in range(5))
    rows = np.concatenate([after.batch(batch) for batch in range(5, BATCHES)])
    assert np.mean(source_of(rows) < 2) == pytest.approx(0.1, abs=0.05)
    assert (table.reason, table.parent_step, table.parent, table.notes) == (
        "too much forgetting", 4, before.digest(5), (),
    )  # fmt: skip


def test_weights_of_a_role_change_and_the_other_keeps_its_own(mixed, tmp_path) -> None:
    path, _ = remix(mixed, tmp_path, Change(2, 0.5, {"papers": 1.0, "notes": 3.0}))
    order = Order.open(mixed, path)
    rows = source_of(np.concatenate([order.batch(batch) for batch in range(2, BATCHES)]))
    assert np.bincount(rows).tolist() == pytest.approx([5, 15, 20], abs=2)


def test_the_cap_wins_and_says_so(make_job, tmp_path) -> None:
    job = make_job("mix", **SOURCES)
    mix(MixConfig(sequence_length=8, max_epochs=3), job, batch_tokens=32, num_batches=BATCHES)
    path, table = remix(job.out, tmp_path / "order", Change(3, 0.0))
    order, caps = Order.open(job.out, path), [3 * s.num_rows for s in open_supplies(job.out, read_mixture(job.out))]
    ids = np.concatenate([order.batch(batch) for batch in range(BATCHES)])
    assert (np.bincount(source_of(ids)) <= caps).all()
    assert len(table.notes) == 1
    assert "`web` is spent (3 passes): the other role takes over its share" in table.notes[0]
    assert_cursors_go_on(job.out, order)


def test_when_everything_is_spent_nothing_is_written(make_job, tmp_path) -> None:
    job = make_job("mix", papers=("domain", [8] * 4), web=("replay", [8] * 9))
    mix(MixConfig(sequence_length=8, max_epochs=1, domain_share=0.3), job, batch_tokens=8, num_batches=13)
    remix(job.out, tmp_path / "order", Change(1, 0.3))
    job = make_job("more", papers=("domain", [8] * 4))
    mix(MixConfig(sequence_length=8, max_epochs=1), job, batch_tokens=8, num_batches=4)
    with pytest.raises(SourceError, match="no source has the role replay|replay document is left"):
        remix(job.out, tmp_path / "none", Change(1, 0.5))
    assert not list((tmp_path / "none").glob("*"))


def test_what_cannot_be_changed_is_refused(mixed, make_job, tmp_path) -> None:
    for change, message in (
        (Change(BATCHES, 0.5), "no batch 12"),
        (Change(1, 0.5, {"paper": 1.0}), "`paper` is no source"),
        (Change(1, 0.5, {"papers": 1.0}), "`notes` has no weight"),
        (Change(1, 0.5, {"papers": 0.0, "notes": 1.0}), "above 0"),
    ):
        with pytest.raises(RunError, match=message):
            remix(mixed, tmp_path, change)
    job = make_job("megatron", **SOURCES)
    mix(MixConfig(sequence_length=8, order="megatron"), job, batch_tokens=16, num_batches=2)
    with pytest.raises(RunError, match="Megatron"):
        remix(job.out, tmp_path, Change(1, 0.5))


def test_a_change_that_follows_another_order_is_refused(mixed, tmp_path) -> None:
    first, _ = remix(mixed, tmp_path, Change(2, 0.5))
    second, _ = remix(mixed, tmp_path, Change(6, 0.9))
    check_parents(mixed, [first, second])
    with pytest.raises(DamageError, match=r"002\.json"):
        check_parents(mixed, [second])
