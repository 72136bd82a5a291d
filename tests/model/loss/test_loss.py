from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import AutoConfig, AutoModelForCausalLM

from deepen.errors import DeepenError
from deepen.model.loss import kernels as loss_kernels
from deepen.model.loss.chunked import IGNORED, LinearCrossEntropy, LogitRules, LossSettings
from deepen.model.loss.model import LossModel, check_loss

RULES = [
    LogitRules(),
    LogitRules(scale=0.3),
    LogitRules(soft_cap=2.0),
    LogitRules(2.0, 3.0, 1e-2),
    LogitRules(z_loss=0.1),
]


def oracle(hidden: Any, weight: Any, bias: Any, labels: Any, rules: LogitRules) -> Any:
    logits = F.linear(hidden, weight, bias) * rules.scale
    if rules.soft_cap:
        logits = rules.soft_cap * torch.tanh(logits / rules.soft_cap)
    z = torch.logsumexp(logits, 1)[labels != IGNORED]
    return F.cross_entropy(logits, labels, reduction="sum") + rules.z_loss * z.square().sum()


def example(num_tokens: int, with_bias: bool) -> tuple[list[torch.Tensor | None], torch.Tensor]:
    torch.manual_seed(0)
    values = [torch.randn(num_tokens, 8), torch.randn(31, 8), torch.randn(31) if with_bias else None]
    labels = torch.randint(0, 31, (num_tokens,))
    labels[1::3] = IGNORED
    return [None if value is None else value.double().requires_grad_() for value in values], labels


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize(("num_tokens", "with_bias"), [(1, False), (50, True), (1100, False)])
def test_value_and_gradients_are_those_of_the_plain_loss(rules: LogitRules, num_tokens: int, with_bias: bool) -> None:
    inputs, labels = example(num_tokens, with_bias)
    given = [value for value in inputs if value is not None]
    expected = oracle(*inputs, labels, rules)
    expected_gradients = torch.autograd.grad(expected * 0.25, given)
    total, _ = LinearCrossEntropy.apply(*inputs, labels, LossSettings(rules))
    gradients = torch.autograd.grad(total * 0.25, given)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_likelihoods_per_token_leave_out_z_loss_and_ignored_labels() -> None:
    inputs, labels = example(40, False)
    _, nll = LinearCrossEntropy.apply(*inputs, labels, LossSettings(LogitRules(z_loss=0.5)))
    logits = F.linear(inputs[0], inputs[1])  # type: ignore[arg-type]
    torch.testing.assert_close(nll, F.cross_entropy(logits, labels, reduction="none"), rtol=1e-12, atol=1e-12)
    assert not nll.requires_grad
    assert (nll[labels == IGNORED] == 0).all()


def test_nothing_but_ignored_labels_gives_zero_gradients() -> None:
    inputs, labels = example(7, True)
    total, _ = LinearCrossEntropy.apply(*inputs, torch.full_like(labels, IGNORED), LossSettings(LogitRules(z_loss=1.0)))
    gradients = torch.autograd.grad(total, [value for value in inputs if value is not None])
    assert total == 0 and all((gradient == 0).all() for gradient in gradients)


def test_chunk_size_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = example(100, False)
    whole, _ = LinearCrossEntropy.apply(*inputs, labels, LossSettings(LogitRules()))
    monkeypatch.setitem(loss_kernels._CHUNK_TOKENS, "cpu", 7)
    chunked, _ = LinearCrossEntropy.apply(*inputs, labels, LossSettings(LogitRules()))
    torch.testing.assert_close(chunked, whole, rtol=1e-13, atol=0)


def test_a_frozen_head_gets_no_gradient() -> None:
    inputs, labels = example(10, False)
    hidden, weight = inputs[0], inputs[1].detach()  # type: ignore[union-attr]
    total, _ = LinearCrossEntropy.apply(hidden, weight, None, labels, LossSettings(LogitRules()))
    total.backward()
    assert hidden is not None and hidden.grad is not None


def small(family: str, **settings: Any) -> LossModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = AutoConfig.for_model(
        family, vocab_size=61, bos_token_id=None, eos_token_id=None, pad_token_id=0, **sizes, **settings
    )
    torch.manual_seed(0)
    return LossModel(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("gpt2", {}),
        ("gemma2", {"num_key_value_heads": 1, "final_logit_softcapping": 0.05, "head_dim": 16}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 8.0}),
        ("phi", {}),  # its head has a bias
    ],
)
def test_loss_is_the_familys_own(family: str, settings: dict[str, Any]) -> None:
    check_loss(small(family, **settings))


def test_a_head_we_do_not_know_is_refused() -> None:
    model = small("granite", logits_scaling=8.0)
    model.loss = LossSettings(LogitRules())
    with pytest.raises(DeepenError, match="granite"):
        check_loss(model)


def test_token_nll_is_forwards_and_needs_no_gradient() -> None:
    model = small("llama").eval()
    tokens = torch.arange(24).view(2, 12) % 61
    labels, positions = tokens.roll(-1, 1), torch.arange(12).repeat(2, 1)
    total, nll = model(tokens, labels, positions)
    scored = model.token_nll(tokens, labels, positions)
    torch.testing.assert_close(scored, nll)
    torch.testing.assert_close(total, nll.sum())
    assert not scored.requires_grad


def test_a_tied_head_gets_the_gradients_of_both_its_uses() -> None:
    model = small("llama", tie_word_embeddings=True).double()
    tokens = torch.arange(1, 12)[None]
    labels, positions = tokens.roll(-1, 1), torch.arange(11)[None]
    total, _ = model(tokens, labels, positions)
    total.backward()
    ours = model.model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    logits = model.model(input_ids=tokens, position_ids=positions, use_cache=False).logits
    F.cross_entropy(logits[0], labels[0], reduction="sum").backward()
    torch.testing.assert_close(ours, model.model.get_input_embeddings().weight.grad, rtol=1e-9, atol=1e-12)


def test_autocast_computes_the_product_in_bf16_and_the_loss_in_fp32() -> None:
    model = small("llama")
    tokens, positions = torch.arange(1, 12)[None], torch.arange(11)[None]
    exact, _ = model(tokens, tokens, positions)
    with torch.autocast("cpu", torch.bfloat16):
        rough, nll = model(tokens, tokens, positions)
    rough.backward()
    assert nll.dtype == torch.float32
    assert 0 < abs(rough - exact).item() < 0.02 * exact.item()
    assert all(parameter.grad is not None for parameter in model.parameters())
