"""Next-token loss without logits: the head and the cross-entropy are computed chunk by chunk.

Logits of a batch (tokens x vocabulary) are the largest tensor of training, and needed for nothing but the loss.
``LinearCrossEntropy`` therefore makes them for a few tokens at a time and, while it has them, also computes the
gradients of the hidden states and of the head; backward only scales what is already there. It costs no extra matrix
product. Sums, exponentials and logarithms are in fp32 (fp64 for fp64 models).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from deepen.model.loss.kernels import (
    IGNORED,
    ChunkGradient,
    LogitRules,
    accumulation_dtype,
    add_product_,
    chunked_gradient,
    chunks,
    compute_dtype,
    hand_over,
    head_product,
)

__all__ = ["IGNORED", "LinearCrossEntropy", "LogitRules", "LossSettings", "logit_rules"]


@dataclass(frozen=True)
class LossSettings:
    """What the loss is, and how it is computed."""

    rules: LogitRules
    gradient: ChunkGradient = chunked_gradient


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of the negative log-likelihoods of labels under ``softmax(hidden @ weight.T + bias)``, chunk by chunk.

    Returns the sum (with the z-loss of ``rules``), which is differentiable, and the likelihoods per token without
    z-loss, which are not.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, settings: LossSettings
    ) -> tuple[Tensor, Tensor]:
        """Compute loss and, at once, the gradients of ``hidden_ND``, ``weight_VD`` and ``bias_V``."""
        dtype = compute_dtype(hidden_ND)
        # Rounded once for all chunks.
        weight = weight_VD.to(dtype)
        accumulator = accumulation_dtype(dtype)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        # Sums over all tokens of a micro-batch: in bfloat16 they would lose what is below 1/256 of them.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=accumulator) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.zeros_like(bias_V) if bias_V is not None and ctx.needs_input_grad[2] else None
        total = hidden_ND.new_zeros((), dtype=accumulator)
        nll_N = hidden_ND.new_empty(len(labels_N), dtype=accumulator)
        for rows in chunks(len(labels_N), weight):
            chunk = hidden_ND[rows].to(dtype)
            raw = head_product(chunk, weight)
            grad_logits, nll_N[rows], penalty = settings.gradient(raw, bias_V, labels_N[rows], settings.rules)
            total += nll_N[rows].sum() + penalty
            # Here and not in backward, which would have to make the logits a second time.
            grad_hidden_ND[rows] = grad_logits @ weight
            if grad_weight_VD is not None:
                add_product_(grad_weight_VD, grad_logits.T, chunk)
            if grad_bias_V is not None:
                grad_bias_V += grad_logits.sum(0)
        # Not `save_for_backward`: these are results, which backward overwrites and hands over.
        ctx.gradients = (grad_hidden_ND, grad_weight_VD, grad_bias_V)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(nll_N)
        # Else autograd would make zeros for the gradient of `nll_N`, which nobody reads.
        ctx.set_materialize_grads(False)
        return total, nll_N

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, _grad_nll: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the gradients that forward computed; they are handed over, so this works once."""
        return hand_over(ctx, grad_total)


def logit_rules(model: PreTrainedModel, z_loss: float) -> LogitRules:
    """What a family does to its logits, read from its configuration, and the z-loss of the run."""
    config = model.config
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    divisor = float(getattr(config, "logits_scaling", None) or 1.0)
    return LogitRules(scale / divisor, getattr(config, "final_logit_softcapping", None), z_loss)
