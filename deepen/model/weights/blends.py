"""Models between models: weighted sums of weights, such as averages of checkpoints or a checkpoint mixed with a base.

Theta = sum of w_i theta_i with weights that add up to 1 (WiSE-FT, Wortsman et al., arXiv 2109.01903, for two of them).
A sum with a single part is that part, bit for bit. Two models are in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from deepen.errors import DeepenError
from deepen.model.weights.load import unique_weights

Part = tuple[Callable[[], PreTrainedModel], float]
"""How a model is loaded, and its weight."""


@torch.no_grad()
def blend(parts: Sequence[Part]) -> PreTrainedModel:
    """The weighted sum of models of one shape, computed in float32; parts of weight 0 are not loaded.

    Buffers that are no numbers to average (counters, masks) are those of the first part. Raises ``DeepenError`` when
    shapes differ, ``ValueError`` when weights do not add up to 1.
    """
    if not math.isclose(sum(weight for _, weight in parts), 1.0, abs_tol=1e-9):
        raise ValueError(f"weights add up to {sum(weight for _, weight in parts)}, not to 1")
    used = [(load, weight) for load, weight in parts if weight != 0]
    total = used[0][0]()
    if len(used) == 1:
        return total
    sums = {name: tensor for name, tensor in unique_weights(total).items() if tensor.is_floating_point()}
    for tensor in sums.values():
        # Into the first model's own memory, so that there is never a third one.
        tensor.mul_(used[0][1])
    for load, weight in used[1:]:
        other = unique_weights(load())
        if sums.keys() - other.keys() or any(other[name].shape != tensor.shape for name, tensor in sums.items()):
            raise DeepenError(
                "the models to be averaged have weights of different names or shapes",
                hint="average checkpoints of one run; a base with another vocabulary has other rows",
            )
        for name, tensor in sums.items():
            tensor.add_(other[name].to(tensor.device, tensor.dtype), alpha=weight)
    return total
