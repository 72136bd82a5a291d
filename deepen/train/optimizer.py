"""AdamW with weight decay where it belongs: on matrices, not on embeddings, norms and biases.

Which is which is decided by the module that owns a parameter, not by parts of its name; a head tied to the embedding is
the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import AdamW

from deepen.parallel.gradients import mesh_of
from deepen.train.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig, multiples: Mapping[int, float] | None = None) -> AdamW:
    """AdamW over all trainable parameters, those with weight decay first; the learning rate is set at each step.

    ``multiples`` gives some parameters, by their ``id``, a multiple of that rate; the others have 1.
    """
    decayed, plain = decay_groups(model)
    groups = []
    for parameters, weight_decay in ((decayed, config.weight_decay), (plain, 0.0)):
        alike: dict[tuple[float, object], list[nn.Parameter]] = {}
        for parameter in parameters:
            multiple = (multiples or {}).get(id(parameter), 1.0)
            alike.setdefault((multiple, mesh_of(parameter)), []).append(parameter)
        for (multiple, _), members in alike.items():
            groups.append({"params": members, "weight_decay": weight_decay, "rate_multiple": multiple})
    return AdamW(groups, lr=0.0, betas=config.betas, eps=config.epsilon, fused=True)


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters with and without weight decay, in the model's order, each exactly once.

    Without: embedding tables (token and position), and everything with one dimension (norms, biases).
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim >= 2 and id(parameter) not in tables]
    chosen = {id(parameter) for parameter in decayed}
    return decayed, [parameter for parameter in trainable if id(parameter) not in chosen]


def set_learning_rate(optimizer: AdamW, learning_rate: float) -> None:
    """Use ``learning_rate``, times each group's own multiple, from the next update on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_multiple", 1.0)


@torch.no_grad()
def clip_gradients(optimizer: AdamW, largest_norm: float) -> float:
    """Scale gradients down to ``largest_norm`` if they are longer; returns the norm before, which may not be finite."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    value = float(norm)
    if value > largest_norm:
        torch._foreach_mul_(gradients, largest_norm / (value + 1e-6))
    return value
