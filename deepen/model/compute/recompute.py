"""Less memory for activations: decoder layers compute part of their forward pass again during the backward pass.

``full`` keeps only the input of each layer (Chen et al., arXiv 1604.06174; about a third more work). ``selective``
keeps the results of matrix products and attention, which are what is slow, and computes norms and activations again
(Korthikanti et al., arXiv 2205.05198, section 5, in spirit). Numbers do not change; random states are kept for dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from deepen.errors import DeepenError

Recompute = Literal["none", "selective", "full"]

_KEPT = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu", "torch_attn::_varlen_attn",
)  # fmt: skip
"""Operations whose results ``selective`` keeps: matrix products and attention kernels."""


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks of a decoder, in order; raises ``DeepenError`` when the model has no list of that many modules."""
    text_config = model.base_model.config.get_text_config(decoder=True)
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == text_config.num_hidden_layers:
            return list(module)
    raise DeepenError(
        f"`{model.config.model_type}` has no list of decoder layers that we know",
        hint="set `compute.recompute: none` and `compute.compile: false` in the machine file",
    )


def add_recompute(model: PreTrainedModel, how: Recompute) -> None:
    """Let the decoder layers of ``model`` recompute while training; once per model, before they are compiled."""
    if how == "none":
        return
    for layer in decoder_layers(model):
        layer.forward = _recomputed(layer, layer.forward, how)


def _recomputed(layer: nn.Module, forward: Callable[..., Any], how: Recompute) -> Callable[..., Any]:
    """``forward`` with recomputation, inside the layer's call: what hooks of the layer do is not done twice."""
    # The other kind takes no keyword arguments, and needs an input that has a gradient.
    settings: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _kept_operations())

    @wraps(forward)
    def run(*inputs: Any, **named: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return forward(*inputs, **named)
        return checkpoint(forward, *inputs, **settings, **named)

    return run


def _kept_operations() -> list[Any]:
    """The operations of ``_KEPT`` that this build of PyTorch has, in all their overloads."""
    found = []
    for name in _KEPT:
        space, operation = name.split("::")
        packet = getattr(getattr(torch.ops, space), operation, None)
        if packet is not None:
            found += [getattr(packet, overload) for overload in packet.overloads() if "out" not in overload]
    return found
