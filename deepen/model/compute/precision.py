"""In which precision a model computes, and in which its weights are kept.

``bf16``: fp32 weights are what the optimizer moves; forward and backward see copies in bfloat16, made once per step.
With autocast instead, embeddings and norms would put out fp32, so that all that is added up along the layers is twice
as large, and each weight is cast again in each micro-batch. ``pure_bf16`` keeps weights in bfloat16 as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def keep_in_bf16(model: PreTrainedModel) -> None:
    """Round the weights of ``model`` to bfloat16, in place; buffers, such as rotary frequencies, stay as they are."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            # The Parameter itself stays: tied weights remain one object.
            parameter.data = parameter.data.to(torch.bfloat16)


@contextmanager
def bf16_copies(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the modules of ``model`` compute with bfloat16 copies of their fp32 weights.

    Gradients flow through the copies to the weights and are added up there in fp32, over as many backward passes as
    are made inside. The output head keeps its weights: the loss rounds them itself and returns their gradient in fp32.
    ``model.parameters()`` must not be used inside.
    """
    head = model.get_output_embeddings()
    slots = [
        (module, name, parameter)
        for module in model.modules()
        if module is not head
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dtype == torch.float32
    ]
    # By id: a weight that stands in two places has one copy, where both gradients meet.
    copies: dict[int, Tensor] = {}
    try:
        for module, name, parameter in slots:
            if id(parameter) not in copies:
                # A cast that autograd records. It saves nothing, so every backward pass may go through it again,
                # and adds to the gradient of the fp32 weight.
                copies[id(parameter)] = parameter.to(torch.bfloat16)
            _put(module, name, copies[id(parameter)])
        yield
    finally:
        for module, name, parameter in slots:
            _put(module, name, parameter)


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    # Past the module's own setattr, which takes nothing but a Parameter here.
    module._parameters[name] = value  # type: ignore[assignment]


def allow_tf32(allowed: bool) -> None:
    """Let the GPU round the factors of fp32 products to TensorFloat-32 (10 bits of mantissa), or not.

    Nothing else has it: on a CPU this changes nothing.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
