"""Packed with isolation equals separate documents: the same logits, in every family and attention path on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from deepen.model.compute.attention import check_isolation
from deepen.model.loss.model import LossModel

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 64, "vocab_size": 101, "max_position_embeddings": 64,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "mistral": {"sliding_window": 5}, "gemma": {},
    "gemma2": {"sliding_window": 5}, "gemma3_text": {"sliding_window": 5},
}  # fmt: skip
"""Windows shorter than the documents, where a family has them."""
LENGTHS = [9, 1, 14]
NO_SDPA = "gemma2"


def model_of(family: str, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SHAPE | FAMILIES[family]))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    assert model.config._attn_implementation == attention
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh network hardly looks at its context
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    return model


def tokens_of(length: int) -> Tensor:
    return torch.randint(0, 101, (1, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: PreTrainedModel, tokens_1T: Tensor, positions_T: Tensor) -> Tensor:
    """As ``LossModel`` calls a model: positions, no attention mask, no cache."""
    return model(input_ids=tokens_1T, position_ids=positions_T[None], use_cache=False).logits


def alone(model: PreTrainedModel, documents: list[Tensor]) -> list[Tensor]:
    return [logits(model, document, torch.arange(document.shape[1])) for document in documents]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


PATHS = [(family, path) for path in ("sdpa", "eager") for family in FAMILIES if (family, path) != (NO_SDPA, "sdpa")]


@pytest.mark.parametrize(("family", "path"), PATHS)
def test_a_packed_document_has_the_logits_that_it_has_alone(family: str, path: str) -> None:
    model, tokens = model_of(family, path), tokens_of(sum(LENGTHS))
    packed = logits(model, tokens, torch.cat([torch.arange(length) for length in LENGTHS])).split(LENGTHS, 1)
    for found, expected in zip(packed, alone(model, list(tokens.split(LENGTHS, 1))), strict=True):
        assert_close(found, expected)
    together = logits(model, tokens, torch.arange(sum(LENGTHS)))
    assert (together[:, 10:] - packed[2]).abs().max() > 1e-2, "as one text they would have seen each other"


@pytest.mark.parametrize(("family", "path"), PATHS)
def test_padding_at_the_end_of_a_row_changes_nothing(family: str, path: str) -> None:
    model, tokens = model_of(family, path), tokens_of(14)
    row = torch.cat([tokens, torch.zeros(1, 6, dtype=torch.int64)], 1)
    padded = logits(model, row, torch.cat([torch.arange(14), torch.arange(6)]))
    assert_close(padded[:, :14], alone(model, [tokens])[0])


@pytest.mark.parametrize(("family", "path"), PATHS)
def test_a_document_cut_over_rows_is_two_texts(family: str, path: str) -> None:
    """Its second piece begins at position 0, whatever stands before it in the row."""
    model, tokens = model_of(family, path), tokens_of(20)
    first, second, other = tokens[:, :12], tokens[:, 12:], tokens_of(7)
    row = torch.cat([other, second], 1)
    packed = logits(model, row, torch.cat([torch.arange(7), torch.arange(8)]))
    assert_close(packed[:, 7:], alone(model, [second])[0])
    assert_close(logits(model, first, torch.arange(12)), logits(model, tokens, torch.arange(20))[:, :12])


@pytest.mark.parametrize(("family", "path"), PATHS)
def test_gradients_of_a_packed_row_are_those_of_its_documents(family: str, path: str) -> None:
    tokens, labels = tokens_of(23), tokens_of(24)[:, 1:].clone()
    labels[0, 8] = labels[0, 22] = -100
    loss_model = LossModel(model_of(family, path))
    total, _ = loss_model(tokens, labels, torch.cat([torch.arange(9), torch.arange(14)])[None])
    total.backward()
    packed = {name: parameter.grad.clone() for name, parameter in loss_model.named_parameters()}
    loss_model.zero_grad()
    for part in (slice(0, 9), slice(9, 23)):
        piece = tokens[:, part]
        total, _ = loss_model(piece, labels[:, part], torch.arange(piece.shape[1])[None])
        total.backward()
    for name, parameter in loss_model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in transformers and in the compiler of torch
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma"])
def test_flex_attention_isolates_documents_too(family: str) -> None:
    """Compiled for the CPU here, so it needs a C++ compiler and takes its time."""
    torch._dynamo.reset()
    model, tokens = model_of(family, "flex_attention"), tokens_of(sum(LENGTHS))
    packed = logits(model, tokens, torch.cat([torch.arange(length) for length in LENGTHS])).split(LENGTHS, 1)
    for found, expected in zip(packed, alone(model, list(tokens.split(LENGTHS, 1))), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_before_training_passes_each_family(family: str) -> None:
    check_isolation(LossModel(model_of(family, "eager" if family == NO_SDPA else "sdpa")))
