"""AdamW with weight decay where it belongs: on matrices, not on embeddings, norms and biases.

Which is which is decided by the module that owns a parameter, not by parts of its name; a head tied to the embedding is
the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from deepen.model.weights.pieces import local_part
from deepen.parallel.shards.gradients import mesh_of
from deepen.train.config import TrainConfig

_NUMBERS_AT_ONCE = 1 << 26
"""Of a parameter, while it is moved in fp32: so much memory is needed besides."""


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
            # By mesh, too: kernels over many tensors take none of different meshes in one call.
            alike.setdefault((multiple, mesh_of(parameter)), []).append(parameter)
        for (multiple, _), members in alike.items():
            groups.append({"params": members, "weight_decay": weight_decay, "rate_multiple": multiple})
    if config.precision == "pure_bf16":
        return StochasticAdamW(groups, lr=0.0, betas=config.betas, eps=config.epsilon)
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
    # Only where needed: a factor of 1 would read and write every gradient. (NaN is not larger; that step is skipped.)
    if value > largest_norm:
        torch._foreach_mul_(gradients, largest_norm / (value + 1e-6))
    return value


class StochasticAdamW(AdamW):
    """AdamW for bfloat16 weights and moments: computes in fp32 and rounds weights up or down at random, without bias.

    Rounding to the nearest loses every update below 1/256 of a weight, which most updates of a late run are. The random
    numbers are a function of step and parameter: a resumed run and every copy of a parameter draw the same.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move all parameters that have gradients."""
        del closure
        everything = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        # The place among all parameters, not among those that move now: who is frozen shifts nobody's random numbers.
        moved = [(*one, index) for index, one in enumerate(everything) if one[0].grad is not None]
        states = [self._state_of(parameter) for parameter, _, _ in moved]
        for state in states:
            state["step"] += 1
        steps = torch.stack([state["step"] for state in states]).tolist() if states else []  # waits for a GPU once
        for (parameter, group, index), state, step in zip(moved, states, steps, strict=True):
            # A factor above any number of parameters, so that no seed comes twice.
            random = torch.Generator(parameter.device).manual_seed(int(step) * 1_000_003 + index)
            _move(parameter, state, group, int(step), random)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state


def _move(
    parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any], step: int, random: torch.Generator
) -> None:
    """One update of one parameter, of the part that this process holds, some of its numbers at a time."""
    assert parameter.grad is not None, "only parameters with gradients move"
    tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
    # A gradient may lie in memory in another order than its weight, and flat views must line up.
    flat = [local_part(tensor).view(-1) for tensor in (tensors[0], tensors[1].contiguous(), *tensors[2:])]
    for begin in range(0, len(flat[0]), _NUMBERS_AT_ONCE):
        part = slice(begin, begin + _NUMBERS_AT_ONCE)
        _adamw_(flat[0][part], flat[1][part], (flat[2][part], flat[3][part]), group, step, random)


def _adamw_(
    weights: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    group: dict[str, Any],
    step: int,
    random: torch.Generator,
) -> None:
    """One update (Loshchilov & Hutter, arXiv 1711.05101) in fp32, written back in the tensors' own precision."""
    mean, square = moments
    beta1, beta2 = group["betas"]
    gradient = gradient.float()
    new_mean = mean.float().lerp_(gradient, 1 - beta1)
    new_square = square.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    # To the nearest: at beta2 = 0.95 a square falls by up to 5 % in a step, and half of bfloat16's last place is 0.2 to
    # 0.4 %. (At a beta2 above 0.998 it could fall no more.)
    mean.copy_(new_mean)
    square.copy_(new_square)
    spread = new_square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    moved = weights.float().mul_(1 - group["lr"] * group["weight_decay"])
    moved.addcdiv_(new_mean, spread, value=-group["lr"] / (1 - beta1**step))
    weights.copy_(round_stochastically_(moved, random) if weights.dtype == torch.bfloat16 else moved)


def round_stochastically_(values: Tensor, random: torch.Generator) -> Tensor:
    """Round fp32 ``values`` in place to numbers of bfloat16, up or down with the chances that keep the mean.

    bfloat16 is the upper half of fp32's bits: a random number is added to the lower half, which is then cut off.
    """
    bits = values.view(torch.int32)
    # Up in size by chance, then cut down: the sign is a bit of its own, so this holds for negative numbers, too.
    bits += torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=random)
    bits &= -(1 << 16)
    return values
