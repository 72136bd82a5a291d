"""Measuring a sharded model with the weights that it keeps, not with the bfloat16 copies that bf16 training gathers.

FSDP decides once in which precision it gathers, and has no public way to change that. Its own first step is therefore
made again here with another policy, and the buffers of the old precision are dropped; a test compares likelihoods, and
the training afterwards, with those of one process. While measuring, a gathered layer takes twice the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy


@contextmanager
def in_full_precision(model: nn.Module) -> Iterator[None]:
    """Inside, what FSDP shards of ``model`` is gathered as it is kept. All processes enter and leave together, between
    steps, when there are no gradients."""
    states = [module._get_fsdp_state() for module in model.modules() if isinstance(module, FSDPModule)]
    policies: list[MixedPrecisionPolicy] = [state._mp_policy for state in states]
    if all(policy.param_dtype is None for policy in policies):
        yield
        return
    _gather_as(states, [replace(policy, param_dtype=None) for policy in policies])
    try:
        yield
    finally:
        _gather_as(states, policies)


def _gather_as(states: list[Any], policies: list[MixedPrecisionPolicy]) -> None:
    for state, policy in zip(states, policies, strict=True):
        state._mp_policy = policy
        for group in state._fsdp_param_groups:
            # First of all: what is gathered now has the old precision.
            group.reshard()
            group.mp_policy = policy
            group._init_mp_dtypes()
            for parameter in group.fsdp_params:
                parameter.all_gather_outputs = []
                if hasattr(parameter, "_unsharded_param"):
                    del parameter._unsharded_param
