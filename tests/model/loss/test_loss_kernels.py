"""Every way from logits to gradient obeys all rules: against autograd in fp64."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from deepen.errors import DeepenError
from deepen.model.loss import kernels as loss_kernels
from deepen.model.loss.chunked import LinearCrossEntropy, LossSettings
from deepen.model.loss.kernels import (
    IGNORED,
    ChunkGradient,
    LogitRules,
    chunk_gradient,
    chunked_gradient,
    chunks,
    fused_gradient,
    liger_gradient,
)
from tests.model.loss.test_loss import RULES, example, oracle


def liger_stand_in(
    _input: Tensor, target: Tensor, weight: None, ignore_index: int, lse_square_scale: float, label_smoothing: float,
    reduction: str, softcap: float | None, return_z_loss: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """What Liger's kernel gives by its documentation and source, computed by autograd."""
    assert weight is None and label_smoothing == 0.0 and reduction == "none" and return_z_loss
    leaf = _input.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = leaf if softcap is None else softcap * torch.tanh(leaf / softcap)
        valid = target != ignore_index
        z = lse_square_scale * torch.logsumexp(logits, 1).square() * valid
        loss = F.cross_entropy(logits, target, reduction="none", ignore_index=ignore_index) + z
        loss.sum().backward()
    if _input.requires_grad:
        _input.data.copy_(leaf.grad)  # type: ignore[arg-type]
    return loss.detach(), z.detach(), None, None, _input


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("liger_kernel.ops.cross_entropy")
    module.cross_entropy_forward = liger_stand_in  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    loss_kernels._liger.cache_clear()


def losses(gradient: ChunkGradient, rules: LogitRules, *, with_bias: bool) -> tuple[list[Tensor], list[Tensor]]:
    inputs, labels = example(1100, with_bias)
    given = [value for value in inputs if value is not None]
    expected = oracle(*inputs, labels, rules)
    wanted = [expected.detach(), *torch.autograd.grad(expected * 0.25, given)]
    total, _ = LinearCrossEntropy.apply(*inputs, labels, LossSettings(rules, gradient))
    return [total.detach(), *torch.autograd.grad(total * 0.25, given)], wanted


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("gradient", [chunked_gradient, fused_gradient])
def test_all_rules_in_double_precision(gradient: ChunkGradient, with_bias: bool, rules: LogitRules) -> None:
    for found, wanted in zip(*losses(gradient, rules, with_bias=with_bias), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.usefixtures("liger")
def test_liger_is_called_so_that_all_rules_hold(rules: LogitRules) -> None:
    for found, wanted in zip(*losses(chunk_gradient("liger", compiles=False), rules, with_bias=True), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)  # it computes in fp32


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("gradient", [chunked_gradient, fused_gradient, liger_gradient])
def test_likelihoods_leave_out_z_loss_and_ignored_labels(gradient: ChunkGradient) -> None:
    logits = torch.randn(9, 31, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9)
    labels[::2] = IGNORED
    _, nll, penalty = gradient(logits.clone(), None, labels, LogitRules(z_loss=0.1))
    torch.testing.assert_close(nll, F.cross_entropy(logits, labels, reduction="none"))
    torch.testing.assert_close(penalty, 0.1 * torch.logsumexp(logits, 1)[1::2].square().sum())


@pytest.mark.parametrize("gradient", [chunked_gradient, fused_gradient])
def test_bfloat16_logits_are_summed_in_fp32(gradient: ChunkGradient) -> None:
    raw = (3 * torch.randn(8, 20_000, generator=torch.Generator().manual_seed(0))).bfloat16()
    labels = torch.arange(8)
    found, nll, _ = gradient(raw.clone(), None, labels, LogitRules())
    assert found.dtype == torch.bfloat16 and nll.dtype == torch.float32
    exact = F.cross_entropy(raw.double(), labels, reduction="none")
    torch.testing.assert_close(nll.double(), exact, rtol=1e-6, atol=1e-6)


def test_liger_without_its_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    loss_kernels._liger.cache_clear()
    monkeypatch.setitem(sys.modules, "liger_kernel.ops.cross_entropy", None)
    with pytest.raises(DeepenError, match="liger-kernel and Triton") as caught:
        chunk_gradient("liger", compiles=False)
    assert "deepen[gpu]" in str(caught.value.hint)


@pytest.mark.parametrize(("rows", "most"), [(97, 512), (32_768, 512), (150_016, 111), (10_000_000, 64)])
def test_a_chunk_of_logits_does_not_grow_with_the_vocabulary(rows: int, most: int) -> None:
    found = chunks(5_000, torch.empty(rows, 0))
    assert max(part.stop - part.start for part in found) <= most
    assert [number for part in found for number in range(part.start, part.stop)] == list(range(5_000))
