"""Reading ahead: the next batches are made while a step runs, by one thread.

What it hands out is what ``batches[index]`` would have given: batches are a function of their index, so anything that
was read for another order or another place is simply not used. On a GPU batches lie in pinned memory, so that copying
them does not stop the loop.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from deepen.formats.files.arrays import Array
from deepen.train.batches.read import Batch, Batches


class Prefetch:
    """Hands out batches, reading up to ``ahead`` of them before they are asked for (0: no thread)."""

    def __init__(self, ahead: int, *, pin: bool = False) -> None:
        self.ahead = ahead
        self._pin = pin
        self._batches: Batches | None = None
        self._waiting: dict[int, Future[Batch]] = {}
        self._thread: ThreadPoolExecutor | None = None

    def take(self, batches: Batches, batch_index: int) -> Batch:
        """``batches[batch_index]``; then those after it are read, holes of the order passed over.

        An error of reading ahead is raised when its batch is asked for, and never for one that is not.
        """
        # Another order (a changed mixture): under the same index it may have other rows.
        if batches is not self._batches:
            self.forget()
            self._batches = batches
        waiting = self._waiting.pop(batch_index, None)
        if waiting is None:  # the first one, or the run is somewhere else now
            self.forget()
            batch = self._read(batches, batch_index)
        else:
            batch = waiting.result()
        self._read_ahead(batches, batch_index)
        return batch

    def _read(self, batches: Batches, batch_index: int) -> Batch:
        batch = batches[batch_index]
        return pinned(batch) if self._pin else batch

    def _read_ahead(self, batches: Batches, batch_index: int) -> None:
        for _ in range(self.ahead):
            batch_index = batches.order.next_batch(batch_index + 1)
            if batch_index >= len(batches):
                return
            if batch_index not in self._waiting:
                self._waiting[batch_index] = self._executor().submit(self._read, batches, batch_index)

    def _executor(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        return self._thread

    def forget(self) -> None:
        """Drop what was read ahead."""
        for waiting in self._waiting.values():
            # One that is being read cannot be called back; its result is simply dropped.
            waiting.cancel()
        self._waiting.clear()

    def close(self) -> None:
        """End the thread; reading goes on without one when more is asked for."""
        self.forget()
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None


def pinned(batch: Batch) -> Batch:
    """The batch with what goes to the GPU in pinned memory; needs a GPU."""

    def pin(values: Array) -> Array:
        # The array shares the pinned memory and keeps it alive.
        return torch.from_numpy(values).pin_memory().numpy()

    return replace(
        batch,
        tokens_BT=pin(batch.tokens_BT),
        labels_BT=pin(batch.labels_BT),
        positions_BT=pin(batch.positions_BT),
    )
