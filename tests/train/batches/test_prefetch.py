"""Reading ahead: the same batches, sooner, and never one of another order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact
from deepen.model.loss.model import LossModel
from deepen.parallel.config import Compute
from deepen.train import loop
from deepen.train.batches.prefetch import Prefetch
from deepen.train.batches.read import Batch, Batches
from tests.train.conftest import read_metrics, read_tensors


@dataclass
class Order:
    num_batches: int = 12

    def next_batch(self, index: int) -> int:
        return index + 1 if index == 3 else index  # 3 is a hole


@dataclass
class Numbers:
    """Batches that are numbers; some cannot be read."""

    name: str = "a"
    broken: tuple[int, ...] = ()
    order: Order = field(default_factory=Order)
    read: list[tuple[int, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.order.num_batches

    def __getitem__(self, index: int) -> Any:
        self.read.append((index, threading.current_thread().name.split("_")[0]))
        if index in self.broken:
            raise OSError(f"batch {index}")
        return f"{self.name}{index}"


def until(happened: Callable[[], bool]) -> None:
    """Return when something has happened in the other thread."""
    limit = time.monotonic() + 600
    while not happened():
        assert time.monotonic() < limit, "it never happens"
        time.sleep(0.001)


def test_batches_are_those_of_their_index_and_each_is_read_once() -> None:
    batches, prefetch = Numbers(), Prefetch(2)
    indices = [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert [prefetch.take(batches, index) for index in indices] == [f"a{index}" for index in indices]  # type: ignore[arg-type]
    assert sorted(index for index, _ in batches.read) == indices
    assert {thread for index, thread in batches.read if index > 0} == {"prefetch"}


def test_it_reads_while_others_work() -> None:
    batches, prefetch = Numbers(), Prefetch(2)
    for index, ahead in ((0, {1, 2}), (1, {2, 4}), (2, {4, 5}), (4, {5, 6})):
        prefetch.take(batches, index)  # type: ignore[arg-type]
        until(lambda: ahead <= {number for number, _ in batches.read})  # noqa: B023 - used at once


def test_another_place_and_another_order_are_read_anew() -> None:
    first, second, prefetch = Numbers("a"), Numbers("b"), Prefetch(3)
    assert prefetch.take(first, 5) == "a5"  # type: ignore[arg-type, comparison-overlap]
    assert prefetch.take(first, 1) == "a1"  # type: ignore[arg-type, comparison-overlap]
    assert prefetch.take(second, 2) == "b2"  # type: ignore[arg-type, comparison-overlap]
    assert prefetch.take(second, 4) == "b4"  # type: ignore[arg-type, comparison-overlap]


def test_an_error_comes_with_its_batch_and_not_before() -> None:
    batches, prefetch = Numbers(broken=(2,)), Prefetch(3)
    assert prefetch.take(batches, 0) == "a0"  # type: ignore[arg-type, comparison-overlap]
    assert prefetch.take(batches, 1) == "a1"  # type: ignore[arg-type, comparison-overlap]
    with pytest.raises(OSError, match="batch 2"):
        prefetch.take(batches, 2)  # type: ignore[arg-type]
    assert prefetch.take(batches, 4) == "a4"  # type: ignore[arg-type, comparison-overlap]


def test_without_reading_ahead_there_is_no_thread() -> None:
    batches, prefetch = Numbers(), Prefetch(0)
    for index in range(3):
        prefetch.take(batches, index)  # type: ignore[arg-type]
    assert {thread for _, thread in batches.read} == {"MainThread"}


def test_real_batches_are_the_same_bits(inputs: dict[str, Artifact]) -> None:
    batches, prefetch = Batches.open(inputs["tokenize"].path, inputs["mix"].path), Prefetch(2)
    for index in range(len(batches)):
        found, expected = prefetch.take(batches, index), batches[index]
        for name in Batch.__dataclass_fields__:
            assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_a_run_waits_less_and_is_the_same(
    run: Callable[..., Any], settings: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock on which only reading takes time, and with steps in which all is read that can be."""
    read, forward, clock = Batches.__getitem__, LossModel.forward, [0.0]
    numbers, in_step = list[int](), threading.Event()

    def slowly(self: Batches, index: int) -> Batch:
        if threading.current_thread() is not threading.main_thread():
            assert in_step.wait(600), "no step comes"
        clock[0] += 1.0
        numbers.append(index)
        return read(self, index)

    monkeypatch.setattr(Batches, "__getitem__", slowly)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0], monotonic=time.monotonic))
    waits = {}
    for name, ahead in (("ahead", 2), ("plain", 0)):
        numbers.clear()
        steps = iter(range(1, 100))

        def work(self: LossModel, *inputs: Any, ahead: int = ahead, steps: Any = steps) -> Any:
            wanted = next(steps) + ahead  # what was read for this step and those before it, and what comes after it
            in_step.set()
            until(lambda: len(numbers) >= wanted)
            in_step.clear()
            return forward(self, *inputs)

        monkeypatch.setattr(LossModel, "forward", work)
        run(settings(), name, rows=4, compute=Compute(device="cpu", threads=1, prefetch_batches=ahead))
        records = read_records(tmp_path / name / "metrics.jsonl")
        waits[name] = [record["data_wait_seconds"] for record in records]
    assert waits == {"ahead": [1.0] + [0.0] * 7, "plain": [1.0] * 8}
    assert read_tensors(tmp_path / "ahead", 8) == read_tensors(tmp_path / "plain", 8)
    assert read_metrics(tmp_path / "ahead") == read_metrics(tmp_path / "plain")
