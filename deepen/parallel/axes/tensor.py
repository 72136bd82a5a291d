"""Tensor parallelism: processes share matrices, by the plan that transformers has for the architecture.

Queries, keys, values and the first feed-forward matrices are cut by their outputs (heads), the matrices after them by
their inputs, so that each block needs two sums (Megatron-LM, arXiv 1909.08053). Embedding, head and norms stay whole on
every process of a tensor group; FSDP cuts them over the other dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from deepen.errors import DeepenError
from deepen.parallel.axes.families import TENSOR

_PARTIAL = "replicated_with_grad_allreduce"
"""A norm of single heads: each process sees its own heads only, so gradients are parts of a sum."""
_STYLES: dict[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    # What lies between (norms over all heads, fused projections) needs whole outputs: only the product is shared.
    "colwise_gather_output": partial(ColwiseParallel, output_layouts=Replicate()),
    "rowwise_split_input": partial(RowwiseParallel, input_layouts=Replicate()),
}


def share_matrices(model: PreTrainedModel, devices: DeviceMesh) -> list[nn.Module]:
    """Cut the matrices of ``model`` over a one-dimensional mesh, in place.

    Returns the modules whose gradients are to be added up over the tensor group, because each process computes a part
    of them. Raises ``DeepenError`` for a family without a plan, or with one that we do not know.
    """
    body = model.base_model
    plan = dict(getattr(body.config, "base_model_tp_plan", None) or {})
    styles = {name: _style_of(name, plan) for name, _ in body.named_modules()}
    unknown = sorted({style for style in styles.values() if style is not None} - {*_STYLES, _PARTIAL})
    if unknown or not any(style in _STYLES for style in styles.values()):
        what = f"has a plan with {', '.join(unknown)}" if unknown else "has no plan for it"
        raise DeepenError(
            f"`mesh.tensor`: `{model.config.model_type}` {what} in transformers",
            hint=f"use `mesh.shard` instead; these can be shared: {', '.join(sorted(TENSOR))}",
        )
    parts = []
    for name, module in list(body.named_modules()):
        style = styles[name]
        if style == _PARTIAL:
            parts.append(module)
        elif style is not None:
            # No source rank: all have the same weights already (or none yet), and each cuts its own.
            parallelize_module(module, devices, _STYLES[style](), src_data_rank=None)
    return parts


def _style_of(name: str, plan: dict[str, str]) -> str | None:
    return next((style for pattern, style in plan.items() if fnmatchcase(name, pattern)), None)
