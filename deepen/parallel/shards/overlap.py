"""Gradients of whole copies are added up bucket by bucket while the backward pass still runs.

What DistributedDataParallel does (arXiv 2006.15704), without its wrapper: parameters may be frozen and released between
steps, and one that has no gradient on some process (an expert without a token) is still added up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepen.parallel.shards.gradients import buckets, local

_MOST_IN_FLIGHT = 4
"""Buckets under way at a time: more would only take memory, since the network does one after the other."""


@dataclass(frozen=True)
class _Flight:
    """A bucket under way."""

    parameters: list[nn.Parameter]
    flat: Tensor
    """All gradients, and for each a 1 if this process has it."""
    work: dist.Work | None


class Overlap:
    """Adds up the gradients of ``parameters`` over ``group``; one per model."""

    def __init__(self, parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
        self._parameters, self._group = list(parameters), group
        self._buckets: list[list[nn.Parameter]] = []
        self._bucket_of: dict[nn.Parameter, int] = {}
        self._missing: list[int] = []
        self._next = 0
        self._flights: deque[_Flight] = deque()
        self._absent: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self._hooked: set[nn.Parameter] = set()

    def begin(self) -> None:
        """Before the last backward pass of a step: from now on what is ready is added up."""
        # From the end: backward comes to the last layers first, and the first bucket is to be full first.
        self._buckets = list(buckets([p for p in reversed(self._parameters) if p.requires_grad]))
        self._bucket_of = {p: number for number, bucket in enumerate(self._buckets) for p in bucket}
        self._missing = [len(bucket) for bucket in self._buckets]
        for parameter in self._bucket_of.keys() - self._hooked:  # those that were frozen until now, too
            parameter.register_post_accumulate_grad_hook(self._is_ready)  # type: ignore[no-untyped-call]
            self._hooked.add(parameter)
        self._next = 0

    def finish(self) -> None:
        """After it: all gradients are sums over the group."""
        while self._next < len(self._buckets):
            self._send()
        while self._flights:
            self._land()
        # Here and not in `_land`, because reading a count waits for the GPU.
        for parameter, gradient, count in self._absent:
            if float(count) > 0:
                parameter.grad = torch.zeros_like(parameter)
                local(parameter.grad).copy_(gradient)
        self._absent, self._buckets, self._bucket_of = [], [], {}

    def _is_ready(self, parameter: Tensor) -> None:
        number = self._bucket_of.get(parameter)  # type: ignore[call-overload]
        # A backward pass before the last one: until then gradients only add up here.
        if number is None:
            return
        self._missing[number] -= 1
        # In one order on all processes, whatever the order in which theirs become ready.
        while self._next < len(self._buckets) and self._missing[self._next] == 0:
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        parameters = self._buckets[self._next]
        self._next += 1
        gradients = [_local_gradient(parameter) for parameter in parameters]
        present = gradients[0].new_tensor([parameter.grad is not None for parameter in parameters])
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), present])
        self._flights.append(_Flight(parameters, flat, dist.all_reduce(flat, group=self._group, async_op=True)))
        if len(self._flights) > _MOST_IN_FLIGHT:
            self._land()

    @torch.no_grad()
    def _land(self) -> None:
        flight = self._flights.popleft()
        if flight.work is not None:
            flight.work.wait()
        sizes = [local(parameter).numel() for parameter in flight.parameters]
        *sums, counts = torch.split(flight.flat, [*sizes, len(sizes)])
        for parameter, total, count in zip(flight.parameters, sums, counts, strict=True):
            gradient = total.view(local(parameter).shape)
            if parameter.grad is None:
                # A clone, or these few numbers would keep the whole bucket in memory.
                self._absent.append((parameter, gradient.clone(), count))
            else:
                local(parameter.grad).copy_(gradient)


def _local_gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(local(parameter)) if parameter.grad is None else local(parameter.grad)
