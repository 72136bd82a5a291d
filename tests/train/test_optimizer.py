from __future__ import annotations

import pytest
import torch

from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.load import load_model
from deepen.train.config import TrainConfig
from deepen.train.optimizer import build_optimizer, clip_gradients, decay_groups


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_outside_embeddings_decay(architecture: str, tied: bool) -> None:
    init = RandomInit(init="random", architecture=architecture, hidden_size=16, layers=1, heads=2, tied=tied)
    model = load_model(ResolvedBase("r", None, init, ""), vocabulary_size=20, seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ({names[id(parameter)] for parameter in group} for group in decay_groups(model))
    assert decayed | plain == set(names.values()) and not decayed & plain
    assert all("norm" in n or "ln_" in n or "bias" in n or "embed" in n or ".wte" in n or ".wpe" in n for n in plain)
    assert not any("norm" in n or "bias" in n or "embed" in n or "wte" in n or "wpe" in n for n in decayed)
    assert ("lm_head.weight" in decayed) is not tied


def test_settings_reach_the_optimizer() -> None:
    config = TrainConfig(tokens=10, batch_tokens=10, weight_decay=0.3, betas=(0.8, 0.9), epsilon=1e-6)
    optimizer = build_optimizer(torch.nn.Sequential(torch.nn.Embedding(3, 4), torch.nn.Linear(4, 2)), config)
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.3, 1), (0.0, 2)]
    assert optimizer.defaults["betas"] == (0.8, 0.9) and optimizer.defaults["eps"] == 1e-6


@pytest.mark.parametrize(("scale", "expected"), [(0.1, 0.5), (10.0, 1.0)])
def test_long_gradients_are_scaled_down_and_short_ones_left(scale: float, expected: float) -> None:
    layer = torch.nn.Linear(4, 4, bias=False)
    layer.weight.grad = torch.full((4, 4), scale * 1.25)
    optimizer = torch.optim.AdamW(layer.parameters())
    assert clip_gradients(optimizer, 1.0) == pytest.approx(scale * 5)
    assert float(layer.weight.grad.norm()) == pytest.approx(expected, rel=1e-5)
