"""Computing on bfloat16 copies: fp32 weights get fp32 gradients, and the modules are as before afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deepen.model.compute.precision import allow_tf32, bf16_copies, keep_in_bf16
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import load_model

BATCH = (torch.arange(48).view(2, 24) * 7 % 61, torch.arange(48).view(2, 24) * 5 % 61, torch.arange(24).expand(2, -1))


def small(tied: bool = True, architecture: str = "qwen3") -> LossModel:
    values: dict[str, Any] = {"init": "random", "architecture": architecture, "hidden_size": 32, "layers": 2}
    init = RandomInit.model_validate(values | {"heads": 2, "tied": tied})
    return LossModel(load_model(ResolvedBase("r", None, init, ""), vocabulary_size=61, seed=1))


def gradients(model: LossModel) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_reach_every_weight_in_fp32(tied: bool, architecture: str) -> None:
    exact, model = small(tied, architecture), small(tied, architecture)
    exact(*BATCH)[0].backward()
    with bf16_copies(model.model):
        model(*BATCH)[0].backward()
    expected, found = gradients(exact), gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.05 * expected[name].norm(), name
        assert not torch.equal(gradient, expected[name]), name


def test_hidden_states_are_bfloat16_inside_and_fp32_outside() -> None:
    model = small()
    with bf16_copies(model.model):
        assert model.hidden(BATCH[0], BATCH[2]).dtype == torch.bfloat16
        assert model(*BATCH)[0].dtype == torch.float32
    assert model.hidden(BATCH[0], BATCH[2]).dtype == torch.float32


def test_the_same_weights_are_there_afterwards_even_after_an_error() -> None:
    model = small()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match="stop"), bf16_copies(model.model):
        raise ValueError("stop")
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_micro_batches_are_added_up_in_fp32() -> None:
    """Two micro-batches of one row give the sum of both, to the last bit of fp32 and not of bfloat16."""
    parts = []
    for row in range(2):
        model = small()
        with bf16_copies(model.model):
            model(*(values[row : row + 1] for values in BATCH))[0].backward()
        parts.append([parameter.grad for parameter in model.parameters()])
    both = small()
    with bf16_copies(both.model):
        for row in range(2):
            both(*(values[row : row + 1] for values in BATCH))[0].backward()
    for parameter, first, second in zip(both.parameters(), *parts, strict=True):
        assert parameter.grad is not None and first is not None and second is not None
        assert torch.equal(parameter.grad, first + second)
        assert not torch.equal(parameter.grad, parameter.grad.bfloat16().float())


def test_frozen_weights_and_hooks_on_gradients_work() -> None:
    model = small()
    table = model.model.get_input_embeddings().weight
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is table)
    table.register_hook(lambda gradient: gradient * 0)
    with bf16_copies(model.model):
        model(*BATCH)[0].backward()
    assert table.grad is not None and not table.grad.any()
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not table)


def test_kept_in_bf16_are_weights_and_not_frequencies() -> None:
    model = small().model
    keep_in_bf16(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {torch.float32}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_tf32_is_a_switch() -> None:
    try:
        allow_tf32(True)
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    finally:
        allow_tf32(False)
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
