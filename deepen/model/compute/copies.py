"""Whole copies of a model on several devices, which share the batches of a measurement.

Each batch is computed by one copy, as one model alone would compute it, so that the results have the same bits however
many copies there are. One thread drives each copy: nothing is sent between processes, and Python itself is shared, so
that copies of small models wait for each other and those of large ones hardly do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from deepen.model.loss.model import LossModel

T = TypeVar("T")
R = TypeVar("R")


def make_copies(model: LossModel, num_models: int) -> None:
    """Let ``model`` share its work with copies, ``num_models`` counting itself; of each GPU in turn, else of the CPU.

    Copies that it had are dropped first: they may hold other weights.
    """
    # First of all, or copying the model would copy them.
    model.copies = ()
    first = next(model.parameters()).device
    num_devices = torch.cuda.device_count() if first.type == "cuda" else 1
    here = first.index or 0
    places = [(here + number) % num_devices for number in range(1, num_models)]
    model.copies = tuple(_copy(model, torch.device("cuda", at) if first.type == "cuda" else first) for at in places)


def _copy(model: LossModel, device: torch.device) -> LossModel:
    """The same model on ``device``; weights go there directly, and are nowhere twice."""
    # deepcopy takes from its memo what it finds there by id. Tied weights are one object and stay one.
    moved: dict[int, object] = {}
    for parameter in model.parameters():
        value = parameter.detach().to(device, copy=True)
        moved[id(parameter)] = nn.Parameter(value, requires_grad=False)
    moved |= {id(buffer): buffer.to(device, copy=True) for buffer in model.buffers()}
    return copy.deepcopy(model, moved)


def shared_out(model: LossModel, work: Callable[[LossModel, T], R], tasks: Sequence[T]) -> Iterator[R]:
    """What ``work`` makes of each task, in their order, on ``model`` and its copies side by side.

    The first task that fails ends it; those that were begun are finished before the error is raised.
    """
    if not model.copies or len(tasks) < 2:
        for task in tasks:
            yield work(model, task)
        return
    free: SimpleQueue[LossModel] = SimpleQueue()
    for member in (model, *model.copies):
        free.put(member)

    def on_a_free_one(task: T) -> R:
        member = free.get()
        device = next(member.parameters()).device
        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                return work(member, task)
        finally:
            free.put(member)

    # Of a new thread, the number of threads of its matrix products is another one, and with it the bits of sums.
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1 + len(model.copies), "copy", lambda: torch.set_num_threads(num_threads))
    try:
        for future in [pool.submit(on_a_free_one, task) for task in tasks]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
