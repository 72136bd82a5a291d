from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deepen.errors import DeepenError
from deepen.model.weights.blends import blend
from deepen.model.weights.load import unique_weights


def model(seed: int, rows: int = 20, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def never() -> Any:
    raise AssertionError("a part of weight 0 was loaded")


def test_the_ends_are_the_models_themselves() -> None:
    for seed, parts in ((1, [(lambda: model(1), 1.0), (never, 0.0)]), (2, [(never, 0.0), (lambda: model(2), 1.0)])):
        for name, tensor in unique_weights(blend(parts)).items():
            assert torch.equal(tensor, unique_weights(model(seed))[name])


def test_between_them_every_weight_is_the_weighted_sum() -> None:
    found = unique_weights(blend([(lambda: model(1), 0.25), (lambda: model(2), 0.5), (lambda: model(3), 0.25)]))
    for name, tensor in found.items():
        one, two, three = (unique_weights(model(seed))[name] for seed in (1, 2, 3))
        assert torch.allclose(tensor, 0.25 * one + 0.5 * two + 0.25 * three, atol=1e-7)
    assert "lm_head.weight" not in found, "a tied head is the embedding, once"


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(DeepenError, match="different names or shapes"):
        blend([(lambda: model(1), 0.5), (lambda: model(2, rows=24), 0.5)])
    with pytest.raises(ValueError, match="add up to"):
        blend([(lambda: model(1), 0.5), (lambda: model(2), 0.4)])
