"""Attention by document boundaries: the lists, the function that transformers calls, and packed equal to separate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from deepen.errors import DeepenError
from deepen.model.compute import boundaries as module
from deepen.model.compute.attention import check_isolation, leak
from deepen.model.compute.boundaries import (
    VARLEN,
    boundaries,
    masked_varlen_attention,
    room_for,
    use_attention,
    varlen_attention,
)
from deepen.model.compute.precision import bf16_copies
from deepen.model.loss.model import LossModel
from tests.model.compute.test_packed import FAMILIES, model_of

CPU = torch.device("cpu")
KNOWN = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text"]


def positions(*rows: list[int]) -> Tensor:
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])


def test_boundaries_are_each_beginning_and_then_the_end() -> None:
    found = boundaries(positions([3, 1, 4], [8], [2, 6]), 8)
    assert found.cu_seq_lens.tolist() == [0, 3, 4, 8, 16, 18, 24, 24, 24]
    assert found.cu_seq_lens.dtype == torch.int32 and found.longest == 8


def test_a_row_begins_a_document_even_in_its_middle() -> None:
    later = positions([3, 5], [8])
    later[1] += 100
    assert boundaries(later, 4).cu_seq_lens.tolist() == [0, 3, 8, 16, 16]


def test_lists_have_few_lengths() -> None:
    assert [room_for(positions([1] * n)) for n in (1, 63, 64, 127, 128)] == [64, 64, 128, 128, 256]
    model = LossModel(model_of("llama", "sdpa"))
    model.takes_boundaries = use_attention(model.model, "varlen", CPU, half=False)
    lengths = []
    model.model.base_model.register_forward_pre_hook(
        lambda _m, _a, named: lengths.append(len(named["cu_seq_lens_q"])), with_kwargs=True
    )
    for row in ([8], [1] * 70, [8]):
        model.hidden(torch.ones(1, sum(row), dtype=torch.int64), positions(row))
    assert lengths == [65, 129, 129]


def oracle(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], window: int | None) -> Tensor:
    """Each document by itself, in plain arithmetic; [N, H, D]."""
    out = []
    parts = zip(*(states.split(lengths) for states in (query, key, value)), strict=True)
    for q, k, v in parts:
        k, v = (states.repeat_interleave(q.shape[1] // states.shape[1], 1) for states in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * 0.3
        place = torch.arange(len(q))
        hidden = place[:, None] < place
        if window is not None:
            hidden |= place[:, None] - place >= window
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(out)


@pytest.mark.parametrize("window", [None, 3])
def test_the_function_equals_documents_one_by_one(window: int | None) -> None:
    lengths = [5, 1, 6, 12]
    torch.manual_seed(0)
    query, key, value = (torch.randn(24, heads, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    documents = boundaries(positions(lengths[:3], lengths[3:]), 16)
    found, _ = varlen_attention(
        torch.nn.Module(), *(states.transpose(0, 1)[None] for states in (query, key, value)), None, scaling=0.3,
        sliding_window=window, **documents.keywords(),
    )  # fmt: skip
    expected = oracle(query, key, value, lengths, window)
    torch.testing.assert_close(found[0], expected)
    weights = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad((found[0] * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_the_stand_in_has_the_names_of_the_real_kernel() -> None:
    """So that what is called on a GPU takes what it is given here."""
    import inspect

    real, ours = (inspect.signature(function).parameters for function in (varlen_attn, masked_varlen_attention))
    assert list(ours)[:7] == [name + "_NHD" * (name in ("query", "key", "value")) for name in list(real)[:7]]
    assert {"scale", "window_size", "enable_gqa"} <= real.keys() & ours.keys()


@pytest.mark.parametrize("family", KNOWN)
def test_packed_documents_equal_separate_ones(family: str) -> None:
    reference, model = (LossModel(model_of(family, "sdpa")) for _ in range(2))
    model.takes_boundaries = use_attention(model.model, "varlen", CPU, half=False)
    assert model.takes_boundaries and model.model.config._attn_implementation == VARLEN
    tokens = torch.randint(0, 101, (2, 24), generator=torch.Generator().manual_seed(1))
    labels, places = tokens.roll(-1, 1), positions([9, 1, 14], [20, 4])
    for (name, found), (_, expected) in zip(
        outcome(model, tokens, labels, places).items(),
        outcome(reference, tokens, labels, places).items(),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5, msg=name)
    assert leak(model) < 1e-4
    check_isolation(model)


def outcome(model: LossModel, *batch: Tensor) -> dict[str, Tensor]:
    total, nll = model(*batch)
    total.backward()
    return {"nll": nll} | {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_without_boundaries_it_is_sdpa_with_its_masks(family: str) -> None:
    """What others call on the same model: generation with its cache, rows with padding, packed rows."""
    reference, model = model_of(family, "sdpa"), model_of(family, "sdpa")
    use_attention(model, "varlen", CPU, half=False)
    tokens, places = torch.arange(1, 13)[None], positions([5, 7])
    with torch.no_grad():
        for named in ({}, {"position_ids": places}, {"attention_mask": (torch.arange(12) > 3)[None].long()}):
            torch.testing.assert_close(model(tokens, **named).logits, reference(tokens, **named).logits)
    said = [each.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=0) for each in (model, reference)]
    assert torch.equal(*said)


def test_no_mask_of_tokens_by_tokens_is_handed_to_the_layers() -> None:
    model = LossModel(model_of("qwen3", "sdpa"))
    model.takes_boundaries = use_attention(model.model, "varlen", CPU, half=False)
    masks: list[Any] = []
    model.model.base_model.layers[0].register_forward_pre_hook(
        lambda _m, _a, named: masks.append(named["attention_mask"]), with_kwargs=True
    )
    model.hidden(torch.ones(2, 8, dtype=torch.int64), positions([3, 5], [8]))
    assert masks == [None]


def test_an_attention_that_mixes_documents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixes(*inputs: Any, **named: Any) -> Tensor:
        cu = torch.tensor([0, len(inputs[0])], dtype=torch.int32)
        return masked_varlen_attention(*inputs[:3], cu, cu, *inputs[5:], **named)

    model = LossModel(model_of("llama", "sdpa"))
    model.takes_boundaries = use_attention(model.model, "varlen", CPU, half=False)
    monkeypatch.setattr(module, "masked_varlen_attention", mixes)
    with pytest.raises(DeepenError, match="mixes the documents") as caught:
        check_isolation(model)
    assert "compute.attention: sdpa" in str(caught.value.hint)


@pytest.mark.parametrize("family", KNOWN)
def test_in_bfloat16_isolated_and_mixed_are_still_told_apart(family: str) -> None:
    model = LossModel(model_of(family, "sdpa"))
    model.takes_boundaries = use_attention(model.model, "varlen", CPU, half=True)
    with bf16_copies(model.model):
        assert leak(model) < 0.1
        check_isolation(model)
        assert leak_without_boundaries(model) > 0.5


def leak_without_boundaries(model: LossModel) -> float:
    """The leak of a kernel that takes a row for one document."""
    attend = module.masked_varlen_attention

    def mixes(*inputs: Any, **named: Any) -> Tensor:
        cu = torch.tensor([0, len(inputs[0])], dtype=torch.int32)
        return attend(*inputs[:3], cu, cu, *inputs[5:], **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "masked_varlen_attention", mixes)
        return leak(model)


@pytest.mark.parametrize(("family", "wanted"), [("gpt2", "varlen"), ("gemma2", "varlen")])
def test_what_cannot_use_boundaries_is_refused(family: str, wanted: Any) -> None:
    if family == "gpt2":
        from deepen.model.config import RandomInit, ResolvedBase
        from deepen.model.weights.load import load_model

        init = RandomInit(init="random", architecture="gpt2", hidden_size=16, layers=1, heads=2)
        model = LossModel(load_model(ResolvedBase("r", None, init, ""), vocabulary_size=61, seed=1))
        model.model.config.attn_pdrop = 0.1
        for layer in model.model.base_model.h:
            layer.attn.attn_dropout.p = 0.1
    else:
        model = LossModel(model_of(family, "eager"))
    model.takes_boundaries = use_attention(model.model, wanted, CPU, half=False)
    with pytest.raises(DeepenError, match=r"document boundaries") as caught:
        model.hidden(torch.ones(1, 8, dtype=torch.int64), positions([3, 5]))
    assert "compute.attention: sdpa" in str(caught.value.hint)


def test_flash_needs_its_package_and_bfloat16() -> None:
    with pytest.raises(DeepenError, match="bfloat16"):
        use_attention(model_of("llama", "sdpa"), "flash", CPU, half=False)
    with pytest.raises(DeepenError, match="compute.attention: flash"):
        use_attention(model_of("llama", "sdpa"), "flash", CPU, half=True)


def test_auto_is_what_was_loaded_on_a_cpu_and_varlen_on_a_gpu() -> None:
    model = model_of("llama", "sdpa")
    assert not use_attention(model, "auto", CPU, half=True)
    assert model.config._attn_implementation == "sdpa"
    cuda = torch.device("cuda")  # only its name is looked at
    assert not use_attention(model, "auto", cuda, half=False)
    assert use_attention(model, "auto", cuda, half=True)
    assert not use_attention(model_of("gemma2", "eager"), "auto", cuda, half=True)


assert set(KNOWN) <= set(FAMILIES) and set(KNOWN) == module._KNOWN
