"""NEFTune: noise on the embeddings while training (Jain et al. 2023, arXiv 2310.05914).

Each embedded row of L positions and width d gets uniform noise of at most alpha / sqrt(L d). It is for instruction
data: answers become longer and more natural, nothing is learned from it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def noise_bound(alpha: float, length: int, width: int) -> float:
    """Largest absolute noise for rows of ``length`` positions and ``width`` numbers each."""
    return alpha / math.sqrt(length * width)


def add_noise(embedding: nn.Module, alpha: float) -> RemovableHandle:
    """Let ``embedding`` add noise whenever it is in training mode; numbers come from the global generator, whose state
    a checkpoint keeps."""

    def noisy(module: nn.Module, _inputs: tuple[Tensor, ...], embedded_BTD: Tensor) -> Tensor:
        if not module.training:
            return embedded_BTD
        bound = noise_bound(alpha, *embedded_BTD.shape[-2:])
        return embedded_BTD + torch.empty_like(embedded_BTD).uniform_(-bound, bound)

    return embedding.register_forward_hook(noisy)
