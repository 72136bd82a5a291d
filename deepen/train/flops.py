"""How much of the machine a step uses: model FLOPs over the peak of the device (MFU; PaLM, arXiv 2204.02311, B).

FLOPs per token are 6 N + 12 L d T (forward and backward, N without the input embedding, attention over the whole row);
only real tokens count, neither padding nor work that is done twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from deepen.formats.architecture import Architecture, architecture_from_config
from deepen.parallel.peaks import peak_bf16


@dataclass(frozen=True)
class Flops:
    """The arithmetic of one model on one device."""

    architecture: Architecture | None
    """None for a family whose shape we cannot read; no FLOPs are given then."""
    peak: float | None
    """Dense bf16 FLOP/s of the device by its data sheet; None on a CPU and on GPUs we do not know."""

    def of(self, num_tokens: int, sequence_length: int, seconds: float) -> float | None:
        """FLOP/s of a step that trained so many tokens in rows of ``sequence_length``."""
        if self.architecture is None:
            return None
        return num_tokens * self.architecture.training_flops_per_token(sequence_length) / seconds


def flops_of(config: PretrainedConfig, device: torch.device) -> Flops:
    """The arithmetic of a model with this configuration on ``device``."""
    try:
        architecture = architecture_from_config(config.to_dict())
    except (KeyError, TypeError):
        architecture = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Flops(architecture, peak_bf16(name))
