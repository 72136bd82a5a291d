"""``torch.compile`` of decoder layers, and a count of what was compiled.

One layer is compiled and serves for all that look alike. Only training runs compiled: evaluations have rows of every
length, and code is made for one shape at a time (shapes that are known make the fastest code). A smaller last
micro-batch is a second shape; more than that means that something varies which should not, and is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from deepen.model.compute.recompute import decoder_layers
from deepen.progress import say


def compile_layers(model: PreTrainedModel) -> None:
    """Let the decoder layers of ``model`` run compiled while training; after ``add_recompute``, whose work is compiled
    along with them."""
    for layer in decoder_layers(model):
        layer.forward = _compiled_in_training(layer, layer.forward)


def _compiled_in_training(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(forward, dynamic=False)

    @wraps(forward)
    def run(*inputs: Any, **named: Any) -> Any:
        chosen = compiled if layer.training and torch.is_grad_enabled() else forward
        return chosen(*inputs, **named)

    return run


class Compilations:
    """How many graphs were compiled since one last asked; says so when that does not end."""

    warm_up: ClassVar[int] = 2
    """Questions after which nothing new should be compiled: a step each, and all kinds of micro-batch in each."""

    def __init__(self) -> None:
        self._before = _num_graphs()
        self._questions = 0

    def take(self) -> int:
        """Graphs compiled since the last call."""
        now = _num_graphs()
        new, self._before = now - self._before, now
        self._questions += 1
        if new and self._questions > self.warm_up:
            say(f"train: {new} graphs were compiled again in step {self._questions} of this start: some shape varies")
        return new


def _num_graphs() -> int:
    """Graphs that this process has compiled so far, whatever they were for."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
