"""From the head's output to loss and gradient, for a few tokens at a time: three ways to the same numbers.

``chunked_gradient`` works in place with few passes over the logits; ``fused_gradient`` is written without in-place
steps, for ``torch.compile`` to make one kernel of; ``liger_gradient`` uses the Triton kernel of Liger (arXiv
2410.10989). All three follow ``LogitRules`` and return likelihoods per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from deepen.errors import DeepenError

IGNORED = -100
"""Label of a position that carries no loss."""
_CHUNK_TOKENS = {"cpu": 512, "cuda": 2048}
"""Tokens whose logits exist at a time. Measured on a CPU: fewer are slower, more gain under 5 %."""

_FULL_CHUNK_ROWS = 32_768
"""Vocabularies beyond this take fewer tokens at a time, so that the memory of a chunk does not grow with them."""


@dataclass(frozen=True)
class LogitRules:
    """What happens between the head and the loss."""

    scale: float = 1.0
    """Some families multiply logits by a constant (Cohere, Granite)."""
    soft_cap: float | None = None
    """Some squash them into +-``soft_cap`` with a hyperbolic tangent (Gemma 2)."""
    z_loss: float = 0.0
    """Adds ``z_loss * log(Z)^2`` per token, which keeps logits from drifting (PaLM, arXiv 2204.02311, section 5)."""


ChunkGradient = Callable[[Tensor, Tensor | None, Tensor, LogitRules], tuple[Tensor, Tensor, Tensor]]
"""(head's output without bias [C, V], bias [V], labels [C], rules) to: the gradient of the summed loss by that output,
in its dtype; negative log-likelihoods [C] in nats, 0 where ignored; the sum of the z penalties. May overwrite its first
argument."""


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the head's matrix product: autocast's where that is on, else the hidden state's."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def chunks(num_tokens: int, head_VD: Tensor) -> list[slice]:
    """Nearly equal chunks of at most ``_CHUNK_TOKENS``; of fewer tokens (64 at least) for a head of very many rows."""
    most = _CHUNK_TOKENS.get(head_VD.device.type, 2048)
    most = max(64, most * _FULL_CHUNK_ROWS // max(_FULL_CHUNK_ROWS, len(head_VD)))
    num_chunks = max(1, math.ceil(num_tokens / most))
    size = max(1, math.ceil(num_tokens / num_chunks))
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def head_product(chunk_CD: Tensor, weight_VD: Tensor) -> Tensor:
    """The head's output without its bias, in the dtype that was chosen."""
    with torch.autocast(chunk_CD.device.type, enabled=False):
        return torch.nn.functional.linear(chunk_CD, weight_VD)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which precision sums are made: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def chunked_gradient(
    raw_CV: Tensor, bias_V: Tensor | None, labels_C: Tensor, rules: LogitRules
) -> tuple[Tensor, Tensor, Tensor]:
    """``ChunkGradient`` with plain PyTorch operations in place."""
    logits, slope = apply_rules(raw_CV, bias_V, rules)
    nll_C, penalty = _softmax_gradient_(logits, labels_C, rules.z_loss)
    return (logits if slope is None else logits.mul_(slope)).to(raw_CV.dtype), nll_C, penalty


def apply_rules(raw_CV: Tensor, bias_V: Tensor | None, rules: LogitRules) -> tuple[Tensor, Tensor | float | None]:
    """Logits of a chunk in the accumulation dtype, and their derivative by the head's raw output (None: 1)."""
    logits = raw_CV.to(accumulation_dtype(raw_CV.dtype))
    if bias_V is not None:
        logits += bias_V
    slope: Tensor | float | None = None
    if rules.scale != 1.0:
        slope = rules.scale
        logits *= slope
    if rules.soft_cap is not None:
        # The slope of cap * tanh(x / cap) is 1 - tanh^2: from here on the gradient needs no logits from before.
        squashed = torch.tanh_(logits.div_(rules.soft_cap))
        slope = (1 - squashed * squashed).mul_(1.0 if slope is None else slope)
        logits = squashed * rules.soft_cap
    return logits, slope


def _softmax_gradient_(logits_CV: Tensor, labels_C: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """Turn logits in place into the gradient of the loss by them; returns likelihoods and the sum of z penalties."""
    valid_C = labels_C != IGNORED
    # IGNORED is no index; what stands at 0 in its place is masked below.
    targets_C1 = labels_C.clamp(min=0).unsqueeze(1)
    log_z_C = torch.logsumexp(logits_CV, 1)
    nll_C = (log_z_C - logits_CV.gather(1, targets_C1).squeeze(1)).masked_fill_(~valid_C, 0.0)
    penalty = z_loss * log_z_C.square().masked_fill_(~valid_C, 0.0).sum()
    # softmax * (1 + 2 z log Z), or 0 for ignored rows, as one exponential: each pass over the logits costs.
    shift_C = log_z_C - torch.log1p(2 * z_loss * log_z_C) if z_loss else log_z_C
    logits_CV.sub_(shift_C.masked_fill(~valid_C, math.inf).unsqueeze(1)).exp_()
    logits_CV.scatter_add_(1, targets_C1, -valid_C.to(logits_CV.dtype).unsqueeze(1))
    return nll_C, penalty


def fused_gradient(
    raw_CV: Tensor, bias_V: Tensor | None, labels_C: Tensor, rules: LogitRules
) -> tuple[Tensor, Tensor, Tensor]:
    """``ChunkGradient`` as a pure function; by itself it is slow, compiled it reads the logits twice."""
    logits = raw_CV.to(accumulation_dtype(raw_CV.dtype))
    if bias_V is not None:
        logits = logits + bias_V
    logits = logits * rules.scale
    slope: Tensor | float = rules.scale
    if rules.soft_cap is not None:
        squashed = torch.tanh(logits / rules.soft_cap)
        logits, slope = squashed * rules.soft_cap, rules.scale * (1 - squashed * squashed)
    valid_C = labels_C != IGNORED
    targets_C1 = labels_C.clamp(min=0).unsqueeze(1)
    log_z_C = torch.logsumexp(logits, 1)
    nll_C = torch.where(valid_C, log_z_C - logits.gather(1, targets_C1).squeeze(1), 0.0)
    penalty = rules.z_loss * torch.where(valid_C, log_z_C.square(), 0.0).sum()
    weight_C1 = torch.where(valid_C, 1 + 2 * rules.z_loss * log_z_C, 0.0).unsqueeze(1)
    ids_V = torch.arange(raw_CV.shape[1], device=raw_CV.device)
    is_target_CV = (ids_V == targets_C1) & valid_C.unsqueeze(1)  # not a scatter, which would be a pass of its own
    gradient = torch.exp(logits - log_z_C.unsqueeze(1)) * weight_C1 - is_target_CV.to(logits.dtype)
    return (gradient * slope).to(raw_CV.dtype), nll_C, penalty


def liger_gradient(
    raw_CV: Tensor, bias_V: Tensor | None, labels_C: Tensor, rules: LogitRules
) -> tuple[Tensor, Tensor, Tensor]:
    """``ChunkGradient`` with Liger's kernel, which needs Triton and a GPU."""
    logits = raw_CV.float()  # the kernel keeps likelihoods in the dtype of the logits
    if bias_V is not None:
        logits = logits + bias_V
    if rules.scale != 1.0:
        logits = logits * rules.scale
    logits = logits.detach().requires_grad_()  # it writes the gradient over logits that want one
    loss_C, z_C, *_, gradient = _liger()(
        logits, labels_C, None, IGNORED, rules.z_loss, 0.0, "none", rules.soft_cap, True
    )
    return (gradient.detach() * rules.scale).to(raw_CV.dtype), loss_C.detach() - z_C, z_C.sum()


@cache
def _liger() -> Any:
    """Liger's cross-entropy; raises ``DeepenError`` where it cannot be used."""
    try:
        from liger_kernel.ops.cross_entropy import cross_entropy_forward
    except ImportError as error:
        raise DeepenError(
            f"`compute.loss_kernel: liger` needs the package liger-kernel and Triton ({error})",
            hint="`pip install 'deepen[gpu]'` on a machine with a GPU, or leave the key at auto",
        ) from error
    return cross_entropy_forward


@cache
def _compiled() -> ChunkGradient:
    return torch.compile(fused_gradient, dynamic=False)


def chunk_gradient(kernel: Literal["auto", "chunked", "liger"], *, compiles: bool) -> ChunkGradient:
    """The way that the machine file asks for; ``auto`` and ``chunked`` are one kernel where the run ``compiles``."""
    if kernel == "liger":
        _liger()
        return liger_gradient
    return _compiled() if compiles else chunked_gradient


def add_product_(out_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """``out += left @ right``, accumulated in ``out``'s precision."""
    if out_VD.dtype == left_VC.dtype:
        out_VD.addmm_(left_VC, right_CD)
    elif _sums_in_fp32(left_VC.device, left_VC.dtype):
        # Reads low precision and adds in fp32 in one kernel: the product never exists beside the sums.
        torch.ops.aten.addmm.dtype_out(out_VD, left_VC, right_CD, out_VD.dtype, out=out_VD)
    else:
        # Here the product of a chunk is rounded, once; the sum over chunks is not.
        out_VD.add_(left_VC @ right_CD)


@cache
def _sums_in_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build adds a low-precision product to fp32 sums in one kernel, in place: tried on a small one."""
    if device.type != "cuda":
        return False
    left, right = torch.full((32, 16), 0.5, dtype=dtype, device=device), torch.eye(16, dtype=dtype, device=device)
    out = torch.ones(32, 16, device=device)
    try:
        torch.ops.aten.addmm.dtype_out(out, left, right, out.dtype, out=out)
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return bool((out == 1.5).all())


def hand_over(ctx: Any, grad_total: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients that a forward pass left in ``ctx.gradients`` (hidden, weight, bias), scaled; this works once.

    To be returned by ``backward`` of a function with two further inputs that have none.
    """
    if grad_total is None:
        return (None,) * 5
    hidden, weight, bias = ctx.gradients
    # They are scaled in place, so a second backward would scale them twice: it is to fail instead.
    del ctx.gradients
    scaled = [None if gradient is None else gradient.mul_(grad_total) for gradient in (hidden, weight, bias)]
    if scaled[1] is not None:
        scaled[1] = scaled[1].to(ctx.weight_dtype)
    return (*scaled, None, None)
