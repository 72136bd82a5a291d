"""``torch.compile`` of decoder layers, and a count of what was compiled.

One layer is compiled and serves for all that look alike. Only training runs compiled: evaluations have rows of every
length, and code is made for one shape at a time (shapes that are known make the fastest code). A smaller last
micro-batch is a second shape; more than that means that something varies which should not, and is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from deepen.model.recompute import decoder_layers


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


def num_compiled() -> int:
    """Graphs that this process has compiled so far, whatever they were for."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
