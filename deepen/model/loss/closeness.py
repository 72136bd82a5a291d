"""How far predictions are from the base's, without holding the logits of a batch: both heads, chunk by chunk.

As the loss does it (``loss.py``), the gradient is computed along with the value, so that backward only scales it. Costs
the base's forward pass and a second product with each head, for the tokens that are compared and no others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deepen.model.loss.kernels import (
    LogitRules,
    accumulation_dtype,
    add_product_,
    apply_rules,
    chunks,
    compute_dtype,
    hand_over,
    head_product,
)


@dataclass(frozen=True)
class BaseOutput:
    """What the base makes of the tokens that are compared."""

    hidden_KD: Tensor
    """Its last hidden states."""
    head: Any
    """Its head: a linear layer."""
    rules: LogitRules


class LinearDivergence(torch.autograd.Function):
    """Sum of KL(p_base || p) over tokens, p being ``softmax(hidden @ weight.T + bias)``; in nats.

    Returns the sum, which is differentiable, and the divergence of each token, which is not. The gradient by p's logits
    is ``p - p_base``.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_KD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, rules: LogitRules, base: BaseOutput
    ) -> tuple[Tensor, Tensor]:
        """Compute the divergence and, at once, the gradients of ``hidden_KD``, ``weight_VD`` and ``bias_V``."""
        dtype = compute_dtype(hidden_KD)
        weight, base_weight = weight_VD.to(dtype), base.head.weight.to(dtype)
        accumulator = accumulation_dtype(dtype)
        grad_hidden_KD = torch.empty_like(hidden_KD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=accumulator) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.zeros_like(bias_V) if bias_V is not None and ctx.needs_input_grad[2] else None
        nats_K = hidden_KD.new_empty(len(hidden_KD), dtype=accumulator)
        for rows in chunks(len(hidden_KD), weight):
            chunk = hidden_KD[rows].to(dtype)
            base_raw = head_product(base.hidden_KD[rows].to(dtype), base_weight)
            base_logits, _ = apply_rules(base_raw, base.head.bias, base.rules)
            raw = head_product(chunk, weight)
            logits, slope = apply_rules(raw, bias_V, rules)
            gradient, nats_K[rows] = _divergence(base_logits, logits)
            gradient = (gradient if slope is None else gradient.mul_(slope)).to(raw.dtype)
            grad_hidden_KD[rows] = gradient @ weight
            if grad_weight_VD is not None:
                add_product_(grad_weight_VD, gradient.T, chunk)
            if grad_bias_V is not None:
                grad_bias_V += gradient.sum(0)
        ctx.gradients = (grad_hidden_KD, grad_weight_VD, grad_bias_V)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(nats_K)
        ctx.set_materialize_grads(False)
        return nats_K.sum(), nats_K

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, _grad_nats: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the gradients that forward computed; they are handed over, so this works once."""
        return hand_over(ctx, grad_total)


def _divergence(base_logits_CV: Tensor, logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """``p - p_base`` and nats per token, from the logits of both; exact zeros where they are equal."""
    base_log_CV = torch.log_softmax(base_logits_CV, 1)
    log_CV = torch.log_softmax(logits_CV, 1)
    # Before the next line, which overwrites the logarithms.
    base_CV = base_log_CV.exp()
    nats_C = (base_CV * base_log_CV.sub_(log_CV)).sum(1)
    return log_CV.exp_().sub_(base_CV), nats_C


@dataclass
class Closeness:
    """What holds one micro-batch near the base; given to ``LossModel.forward``."""

    strength: float
    base: BaseOutput
    at_K: Tensor
    """Which tokens are compared, by their place in the flattened micro-batch."""
    nats_K: Tensor | None = field(default=None)
    """Divergence of each of them, known once the model has run."""

    def penalty(self, hidden_ND: Tensor, head: nn.Module, rules: LogitRules) -> Tensor:
        """``strength`` times the sum of divergences, differentiable."""
        total: Tensor
        total, self.nats_K = LinearDivergence.apply(  # type: ignore[no-untyped-call]
            hidden_ND[self.at_K], head.weight, head.bias, rules, self.base
        )
        return self.strength * total


def nats_of_rows(closeness: Closeness | None, labels_BT: Tensor) -> Tensor:
    """Divergence of each row of a micro-batch that the model has run on: float64[B]."""
    num_rows, length = labels_BT.shape
    nats_B = torch.zeros(num_rows, dtype=torch.float64, device=labels_BT.device)
    if closeness is not None:
        assert closeness.nats_K is not None, "the model has run by now"
        nats_B.index_add_(0, closeness.at_K // length, closeness.nats_K.double())
    return nats_B
