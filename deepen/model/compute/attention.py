"""Document isolation: several documents share a row, and none sees another.

transformers builds the block mask from ``position_ids`` that restart at each document, provided that no attention mask
is passed and no cache is used. An architecture that ignores them would silently mix documents, so a run checks its
model on a tiny row before it trains. Kernels that take document boundaries instead of a mask are in ``boundaries.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepen.errors import DeepenError
from deepen.model.loss.model import LossModel, evaluating

_LARGEST_LEAK = {torch.bfloat16: 0.2, torch.float16: 0.1}
"""Rounding alone: matrix products of another length may be added up in another order."""


@torch.no_grad()
def leak(loss_model: LossModel) -> float:
    """How much a document's hidden states depend on its neighbour in the row: 0 isolated, 1 as if they were one text.

    The largest change by packing two documents into a row, relative to the change by joining them into one document.
    """
    embeddings = loss_model.model.get_input_embeddings().weight
    # Steps of a prime spread over the vocabulary: any tokens will do that differ.
    tokens_1T = (torch.arange(24, device=embeddings.device) * 104_729 % len(embeddings)).unsqueeze(0)
    positions_T = torch.arange(24, device=embeddings.device)
    restarting_T = torch.cat([positions_T[:11], positions_T[:13]])
    with evaluating(loss_model.model):
        alone = loss_model.hidden(tokens_1T[:, 11:], positions_T[None, :13])
        packed = loss_model.hidden(tokens_1T, restarting_T[None])[:, 11:]
        joined = loss_model.hidden(tokens_1T, positions_T[None])[:, 11:]
    # Relative to what joining does: how large hidden states are depends on the model.
    return float(_distance(packed, alone) / _distance(joined, alone).clamp(min=1e-12))


def _distance(left: Tensor, right: Tensor) -> Tensor:
    return (left.double() - right.double()).abs().max()


def check_isolation(loss_model: LossModel) -> None:
    """Raise ``DeepenError`` when the architecture lets documents of one row see each other."""
    found = leak(loss_model)
    dtype = loss_model.model.get_input_embeddings().weight.dtype
    # Written so that NaN fails.
    if not found <= _LARGEST_LEAK.get(dtype, 0.01):
        raise DeepenError(
            f"`{loss_model.model.config.model_type}` mixes the documents of a row (leak {found:.2f}, isolated is 0)",
            hint="use an architecture whose attention follows position_ids: llama, mistral, qwen2, qwen3, gemma, gpt2"
            + (", or `compute.attention: sdpa`" if loss_model.takes_boundaries else ""),
        )
