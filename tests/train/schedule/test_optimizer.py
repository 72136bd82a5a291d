from __future__ import annotations

import pytest
import torch

from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.weights.load import load_model
from deepen.train.config import TrainConfig
from deepen.train.schedule import optimizer as optimizer_module
from deepen.train.schedule.optimizer import (
    StochasticAdamW,
    build_optimizer,
    clip_gradients,
    decay_groups,
    round_stochastically_,
)


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


def test_stochastic_rounding_keeps_the_mean_and_moves_to_a_neighbour() -> None:
    values = torch.tensor([1.001, -1.001, 3.14159, -2e-5, 1.0, 0.0])
    many = values.repeat(20_000, 1)
    rounded = round_stochastically_(many.clone(), torch.Generator().manual_seed(0))
    assert torch.equal(rounded, rounded.bfloat16().float()), "each is a number of bfloat16"
    step = values.abs() / 128
    assert ((rounded - values).abs() <= step).all()
    error = (rounded.double().mean(0) - values.double()).abs()
    assert (error <= 4 * step.double() / 20_000**0.5).all()
    assert rounded[:, 0].unique().numel() == 2 and rounded[:, 4].unique().numel() == 1


def moved(optimizer_class: type[torch.optim.AdamW], dtype: torch.dtype, steps: int = 200) -> torch.Tensor:
    """What a weight of 1 becomes under a constant gradient: each update is 1e-4, far below a step of bfloat16."""
    weight = torch.nn.Parameter(torch.ones(4096, dtype=dtype))
    optimizer = optimizer_class([weight], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(steps):
        weight.grad = torch.full_like(weight, 0.5)
        optimizer.step()
    return weight.detach().float()


def test_small_updates_are_lost_by_rounding_to_nearest_and_not_by_ours() -> None:
    exact = moved(torch.optim.AdamW, torch.float32).mean()
    assert exact == pytest.approx(0.98, abs=1e-4)
    assert (moved(torch.optim.AdamW, torch.bfloat16) == 1.0).all()
    assert moved(StochasticAdamW, torch.bfloat16).mean() == pytest.approx(float(exact), abs=5e-4)


def test_without_rounding_it_is_adamw() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(50, 3), [torch.randn(50, 3) for _ in range(5)]
    results = []
    for optimizer_class in (torch.optim.AdamW, StochasticAdamW):
        weight = torch.nn.Parameter(start.clone())
        optimizer = optimizer_class([weight], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        results.append(weight.detach())
    torch.testing.assert_close(*results)


def test_random_numbers_belong_to_step_and_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = moved(StochasticAdamW, torch.bfloat16, 3), moved(StochasticAdamW, torch.bfloat16, 3)
    assert torch.equal(first, second), "whatever else was drawn in between"
    monkeypatch.setattr(optimizer_module, "_NUMBERS_AT_ONCE", 100)
    assert (moved(StochasticAdamW, torch.bfloat16).mean() - 0.98).abs() < 1e-3, "cut into parts"
    assert first.unique().numel() > 1, "weights of one parameter are rounded differently"


def test_precision_decides_the_optimizer() -> None:
    layer = torch.nn.Linear(2, 2)
    for precision, expected in (
        ("fp32", torch.optim.AdamW),
        ("bf16", torch.optim.AdamW),
        ("pure_bf16", StochasticAdamW),
    ):
        config = TrainConfig.model_validate({"tokens": 10, "batch_tokens": 10, "precision": precision})
        assert type(build_optimizer(layer, config)) is expected
