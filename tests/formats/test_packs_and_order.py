"""Rows are found, batches are found, later segments replace earlier ones from their first batch on."""

from pathlib import Path

import numpy as np
import pytest

from deepen.errors import DamageError
from deepen.formats.tokens.order import (  # fmt: skip
    Hole,
    Order,
    Segment,
    Segments,
    begins_with,
    row_ids,
    row_of,
    source_of,
    write_order,
    write_segments,
)
from deepen.formats.tokens.packs import Packs, write_packs


def make_order(
    directory: Path, rows: int, *, first_batch: int = 0, holes: tuple[Hole, ...] = (), offset: int = 0
) -> Path:
    """An order of batches of two rows; returns its segments file."""
    ids = np.arange(rows, dtype=np.uint64) + np.uint64(offset)
    write_order(directory / "order" / "000.u64", [ids[:3], ids[3:]], directory)
    segment = Segment(
        file="order/000.u64", first_batch=first_batch, num_batches=rows // 2, sequence_length=8, rows_per_batch=2
    )
    write_segments(directory, Segments(sources=("a", "b"), segments=(segment,), holes=holes))
    return directory / "segments.json"


def test_ids_hold_source_and_row() -> None:
    ids = row_ids(3, np.array([0, 2**48 - 1]))
    assert (source_of(ids).tolist(), row_of(ids).tolist()) == ([3, 3], [0, 2**48 - 1])


def test_any_batch_is_found(tmp_path: Path) -> None:
    make_order(tmp_path, 8)
    order = Order.open(tmp_path)
    assert (order.num_batches, order.sources, order.segment_of(3).sequence_length) == (4, ("a", "b"), 8)
    assert [order.batch(b).tolist() for b in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_the_file_is_plain_little_endian(tmp_path: Path) -> None:
    make_order(tmp_path, 4, offset=258)
    assert (tmp_path / "order/000.u64").read_bytes()[:9].hex() == "020100000000000003"


def test_a_later_segment_replaces_the_future(tmp_path: Path) -> None:
    make_order(tmp_path / "mix", 8)
    extra = make_order(tmp_path / "train", 6, first_batch=2, offset=100)
    order = Order.open(tmp_path / "mix", extra)
    assert order.num_batches == 5
    assert [int(order.batch(b)[0]) for b in range(5)] == [0, 2, 100, 102, 104]


def test_a_gap_between_segments_is_refused(tmp_path: Path) -> None:
    make_order(tmp_path / "mix", 4)
    extra = make_order(tmp_path / "train", 6, first_batch=3)
    with pytest.raises(DamageError, match="no order for batches 2 to 3"):
        Order.open(tmp_path / "mix", extra)


def test_holes_are_passed_over(tmp_path: Path) -> None:
    make_order(tmp_path, 8, holes=(Hole(first_batch=1, num_batches=2), Hole(first_batch=3, num_batches=1)))
    order = Order.open(tmp_path)
    assert [order.is_hole(b) for b in range(4)] == [False, True, True, True]
    assert (order.next_batch(0), order.next_batch(1)) == (0, 4)


def test_a_short_or_missing_order_is_refused(tmp_path: Path) -> None:
    make_order(tmp_path, 8)
    path = tmp_path / "order/000.u64"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DamageError, match="000.u64"):
        Order.open(tmp_path)
    (tmp_path / "segments.json").write_text("{")
    with pytest.raises(DamageError, match=r"segments\.json"):
        Order.open(tmp_path)


def test_begins_with(tmp_path: Path) -> None:
    make_order(tmp_path / "long", 8)
    make_order(tmp_path / "short", 4)
    make_order(tmp_path / "other", 4, offset=1)
    assert begins_with(tmp_path / "long", tmp_path / "short")
    assert not begins_with(tmp_path / "short", tmp_path / "long")
    assert not begins_with(tmp_path / "long", tmp_path / "other")


def test_packs_give_rows_and_find_documents(tmp_path: Path) -> None:
    make_order(tmp_path, 4)
    segments = np.array([[0, 0, 8], [0, 8, 1], [1, 0, 6], [2, 0, 3]], dtype=np.int32)
    write_packs(tmp_path, "a", np.array([0, 1, 3, 4]), segments)
    packs = Packs.open(tmp_path, "a")
    assert packs.num_rows == 3
    assert packs.row(1).tolist() == [[0, 8, 1], [1, 0, 6]]
    assert packs.tokens_per_row.tolist() == [8, 7, 3]
    assert packs.rows_with(0) == {0: [(0, 8)], 1: [(8, 1)]}


def test_rows_and_segments_that_disagree_are_refused(tmp_path: Path) -> None:
    make_order(tmp_path, 4)
    write_packs(tmp_path, "a", np.array([0, 1, 5]), np.zeros((4, 3), dtype=np.int32))
    with pytest.raises(DamageError, match="do not belong together"):
        Packs.open(tmp_path, "a")
