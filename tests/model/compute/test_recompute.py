"""Recomputing layers: the same numbers, random ones included, from fewer bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from deepen.errors import DeepenError
from deepen.model.compute.recompute import Recompute, add_recompute, decoder_layers
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import load_model

BATCH = (
    torch.arange(64).view(2, 32) * 7 % 61,
    torch.arange(64).view(2, 32) * 5 % 61,
    torch.cat([torch.arange(20), torch.arange(12)]).expand(2, -1),
)


def loss_model(how: Recompute, architecture: str = "llama", dtype: torch.dtype = torch.float64) -> LossModel:
    init = RandomInit.model_validate(
        {"init": "random", "architecture": architecture, "hidden_size": 32, "layers": 3, "heads": 2}
    )
    model = load_model(ResolvedBase("r", None, init, ""), vocabulary_size=61, seed=1).to(dtype)
    if architecture == "gpt2":
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
    add_recompute(model, how)
    return LossModel(model)


def loss_and_gradients(model: LossModel) -> dict[str, Tensor]:
    torch.manual_seed(3)
    total, nll_BT = model(*BATCH)
    total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"total": total.detach(), "nll": nll_BT, **gradients}


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("how", ["selective", "full"])
def test_losses_and_gradients_are_the_same_bits(how: Recompute, architecture: str) -> None:
    expected = loss_and_gradients(loss_model("none", architecture))
    found = loss_and_gradients(loss_model(how, architecture))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def kept_bytes(how: Recompute) -> int:
    """What a forward pass leaves allocated for the backward pass."""
    model = loss_model(how, dtype=torch.float32)
    model(*BATCH)[0].backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        total, _ = model(*BATCH)
    assert total.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


def test_each_way_keeps_less_than_the_one_before() -> None:
    everything, selective, full = (kept_bytes(how) for how in ("none", "selective", "full"))
    assert full < 0.5 * everything
    assert full < selective < 0.8 * everything


def test_nothing_is_recomputed_where_nothing_is_saved() -> None:
    model = loss_model("full")
    calls = []
    layer = decoder_layers(model.model)[0]
    layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    model.eval()
    model(*BATCH)[0].backward()
    model.train()
    model.token_nll(*BATCH)
    assert len(calls) == 2
    model(*BATCH)[0].backward()
    assert len(calls) == 4


def test_a_model_without_known_layers_is_refused() -> None:
    model: PreTrainedModel = loss_model("none").model
    model.config.num_hidden_layers = 7
    with pytest.raises(DeepenError, match="no list of decoder layers"):
        add_recompute(model, "full")
