"""How much of the machine a step uses: model FLOPs over the peak of the device (MFU; PaLM, arXiv 2204.02311, B).

FLOPs per token are 6 N + 12 L d T (forward and backward, N without the input embedding, attention over the whole row);
only real tokens count, neither padding nor work that is done twice. A frozen weight needs no gradient of its own and
counts 4 instead of 6, adapters beside it 6 for each of their few; a base under adapters so takes 4 N and a little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from deepen.formats.architecture import Architecture, architecture_from_config
from deepen.model.weights.load import is_adapter
from deepen.parallel.peaks import peak_bf16


@dataclass(frozen=True)
class Flops:
    """The arithmetic of one model on one device."""

    architecture: Architecture | None
    """None for a family whose shape we cannot read; no FLOPs are given then."""
    peak: float | None
    """Dense bf16 FLOP/s of the device by its data sheet; None on a CPU and on GPUs we do not know."""
    frozen: int = 0
    """Weights of matrix products that are not trained."""
    added: int = 0
    """Weights of adapters."""

    def of(self, num_tokens: int, sequence_length: int, seconds: float) -> float | None:
        """FLOP/s of a step that trained so many tokens in rows of ``sequence_length``."""
        if self.architecture is None:
            return None
        per_token = self.architecture.training_flops_per_token(sequence_length, frozen=self.frozen, added=self.added)
        return num_tokens * per_token / seconds


def flops_of(model: PreTrainedModel, device: torch.device, num_devices: int = 1) -> Flops:
    """The arithmetic of ``model``, frozen as it now is, on ``num_devices`` like ``device``."""
    try:
        architecture = architecture_from_config(model.config.to_dict())
    except (KeyError, TypeError):
        architecture = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    added = sum(parameter.numel() for name, parameter in model.named_parameters() if is_adapter(name))
    peak = peak_bf16(name)
    return Flops(architecture, peak and num_devices * peak, _frozen(model), added)


def _frozen(model: PreTrainedModel) -> int:
    """How many weights of matrix products are frozen; tables that are only looked up take part in none."""
    head = id(model.get_output_embeddings().weight)
    # A tied table is the head as well, and as such takes part in the product for the logits.
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} - {head}
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and id(parameter) not in looked_up and not is_adapter(name)
    )
