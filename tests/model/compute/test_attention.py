from __future__ import annotations

from typing import get_args

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from deepen.errors import DeepenError
from deepen.model.compute.attention import check_isolation, leak
from deepen.model.config import Architecture, RandomInit, ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import load_model


def random_model(architecture: str) -> LossModel:
    init = RandomInit(init="random", architecture=architecture, hidden_size=32, layers=2, heads=2, max_length=64)
    return LossModel(load_model(ResolvedBase("r", None, init, ""), vocabulary_size=101, seed=1))


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_packed_document_has_the_loss_it_has_alone(architecture: str) -> None:
    model = random_model(architecture).eval()
    lengths = [9, 1, 14]
    tokens = torch.randint(0, 101, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    labels = tokens.roll(-1, 1)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model.token_nll(tokens, labels, positions).split(lengths, 1)
    for begin, length, found in zip([0, 9, 10], lengths, packed, strict=True):
        part = slice(begin, begin + length)
        alone = model.token_nll(tokens[:, part], labels[:, part], torch.arange(length)[None])
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
    assert leak(model) < 1e-4


def test_an_architecture_that_ignores_positions_is_refused() -> None:
    config = AutoConfig.for_model("bloom", vocab_size=61, hidden_size=32, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = LossModel(AutoModelForCausalLM.from_config(config))
    with pytest.raises(DeepenError, match=r"bloom.*mixes the documents"):
        check_isolation(model)


def test_the_check_leaves_the_model_in_train_mode() -> None:
    model = random_model("llama")
    check_isolation(model)
    assert model.model.training
