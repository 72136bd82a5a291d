"""Penalties on leaving the base: their formulas, what a run does with them, and that resuming changes no bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepen.errors import DamageError, TrainingError
from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact, StageJob
from deepen.model.loss.base_comparison import compare_with
from deepen.model.loss.model import LossModel
from deepen.parallel.config import Compute
from deepen.parallel.process import set_up
from deepen.train.retention.importance import clip_, fisher_diagonal, one_row
from deepen.train.retention.penalties import Penalties, anchors_of
from deepen.train.starting.build import prepare_run
from deepen.train.step import gradients, train_step
from tests.parallel.networks import batch_of, network, trainee_of
from tests.train.conftest import ROWS, CrashError, read_metrics, read_tensors
from tests.train.faults.test_actions import EVERY_TWO, at_step, same, score, stop_at, watch

Run = Callable[..., Any]
Configure = Callable[..., Any]
ALONE = Compute(device="cpu", threads=1)
ALL = {"l2_sp": {"strength": 0.5}, "ewc": {"strength": 3.0, "sequences": 6}, "kl": {"strength": 0.7}}


@pytest.fixture
def inputs(inputs: dict[str, Artifact]) -> dict[str, Artifact]:
    """The same stages, with `web` as replay."""
    mix = inputs["mix"]
    counts = json.loads(json.dumps(mix.manifest.counts))
    counts["sources"]["web"]["role"] = "replay"
    return {**inputs, "mix": Artifact(mix.path, mix.manifest.model_copy(update={"counts": counts}))}


def trainee_with(strengths: dict[str, float], seed: int = 1) -> Any:
    """A tiny fp64 model with made-up importance, moved from its beginning by random amounts unless ``seed`` is 0."""
    trainee = trainee_of(network("llama"), set_up(ALONE, None))
    model = trainee.model.model
    torch.manual_seed(3)
    values = {name: torch.rand(weight.shape) for name, weight in model.named_parameters()}
    penalties = Penalties(strengths, anchors_of(model, values, None))
    if seed:
        torch.manual_seed(seed)
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    return replace(trainee, penalties=penalties), values


def test_pulls_are_the_gradients_of_their_formulas() -> None:
    trainee, values = trainee_with({"l2_sp": 0.3, "ewc": 2.0})
    origins = [anchor.origin for anchor in trainee.penalties.anchors]
    model = trainee.model.model
    gradients(trainee, batch_of(0), 100)
    plain = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    found = trainee.penalties.pull(trainee.process)
    terms = {"l2_sp": torch.zeros((), dtype=torch.float64), "ewc": torch.zeros((), dtype=torch.float64)}
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}
    for (name, leaf), origin in zip(leaves.items(), origins, strict=True):
        terms["l2_sp"] = terms["l2_sp"] + 0.15 * (leaf - origin).square().sum()
        terms["ewc"] = terms["ewc"] + (values[name] * (leaf - origin).square()).sum()
    sum(terms.values()).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad - plain[name], leaves[name].grad, rtol=1e-9, atol=1e-12)
    assert found == pytest.approx({name: float(term.detach()) for name, term in terms.items()}, rel=1e-12)


def test_at_the_beginning_penalty_and_gradient_are_zero() -> None:
    trainee, _ = trainee_with({"l2_sp": 1e6, "ewc": 1e6}, seed=0)
    gradients(trainee, batch_of(0), 100)
    plain = [weight.grad.clone() for weight in trainee.model.parameters()]
    assert trainee.penalties.pull(trainee.process) == {"l2_sp": 0.0, "ewc": 0.0}
    assert all(torch.equal(a, b.grad) for a, b in zip(plain, trainee.model.parameters(), strict=True))


def test_nothing_pulls_at_rows_of_new_tokens() -> None:
    trainee, _ = trainee_with({"l2_sp": 1.0}, seed=0)
    table = trainee.model.model.get_input_embeddings().weight
    trainee = replace(
        trainee, penalties=Penalties({"l2_sp": 1.0}, anchors_of(trainee.model.model, None, torch.tensor([5, 7])))
    )
    table.grad = torch.zeros_like(table)
    table.data += 1.0
    value = trainee.penalties.pull(trainee.process)["l2_sp"]
    assert (table.grad[[5, 7]] == 0).all() and (table.grad[6] == 1).all()
    assert value == pytest.approx(0.5 * (table.shape[0] - 2) * table.shape[1])


def test_importance_is_the_mean_of_squares_of_each_rows_own_gradient() -> None:
    trainee = trainee_of(network("llama"), set_up(ALONE, None))
    batch = batch_of(0, 3)
    rows = [one_row(batch, at) for at in range(3)]
    values, num_rows, num_tokens = fisher_diagonal(trainee, iter(rows))
    weight = trainee.model.model.model.layers[0].mlp.up_proj.weight
    found = values["model.layers.0.mlp.up_proj.weight"]
    tensors = [[torch.from_numpy(a) for a in (r.tokens_BT, r.labels_BT, r.positions_BT)] for r in rows]
    each = []
    plain = LossModel(trainee.model.model)
    for inputs in tensors:
        (gradient,) = torch.autograd.grad(plain(*inputs)[0], weight)
        each.append(gradient)
    expected = sum(gradient.square() for gradient in each) / num_tokens
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-9)
    of_batch = sum(each).square() / num_tokens
    assert not torch.allclose(found.double(), of_batch, rtol=0.3)
    assert num_rows == 3 and trainee.model.training and trainee.model.loss.rules.z_loss == 1e-4


def test_the_largest_values_are_lowered_to_the_percentile() -> None:
    torch.manual_seed(0)
    values = {"a": torch.rand(40_000).pow(4), "b": torch.zeros(10_000)}
    exact = float(torch.quantile(values["a"], 0.99))
    limit = clip_(values, 99.0, set_up(ALONE, None))
    assert exact <= limit <= 1.01 * exact
    assert float(values["a"].max()) == limit
    untouched = {"a": torch.rand(100)}
    before = untouched["a"].clone()
    clip_(untouched, 100.0, set_up(ALONE, None))
    assert torch.equal(untouched["a"], before)


def test_divergence_is_that_of_whole_logits_and_leaves_the_loss_alone() -> None:
    base, model = LossModel(network("qwen2")).eval(), LossModel(network("qwen2"))
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    batch = batch_of(1, 4)
    tokens, labels, positions = (torch.from_numpy(a) for a in (batch.tokens_BT, batch.labels_BT, batch.positions_BT))
    compared = torch.tensor([True, False, True, False])
    near = compare_with(base, (tokens, labels, positions), compared, 0.4)
    assert near is not None
    total, nll_BT = model(tokens, labels, positions, near)
    plain, same_nll = model(tokens, labels, positions)
    assert torch.equal(nll_BT, same_nll)
    found = torch.autograd.grad(total - plain, list(model.parameters()))

    def log_probabilities(one: LossModel) -> torch.Tensor:
        head = one.model.get_output_embeddings()
        return torch.log_softmax(one.hidden(tokens, positions) @ head.weight.T, -1)

    with torch.no_grad():
        base_log = log_probabilities(base)
    nats_BT = (base_log.exp() * (base_log - log_probabilities(model))).sum(-1)
    counted = (labels != -100) & compared[:, None]
    expected = 0.4 * nats_BT[counted].sum()
    assert float((total - plain).detach()) == pytest.approx(float(expected.detach()), rel=1e-7)
    for a, b in zip(found, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5  # norms of Llama compute in fp32


def test_divergence_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepen.model.loss import kernels as loss_kernels

    base, model = LossModel(network("llama")).eval(), LossModel(network("llama"))
    model.model.get_output_embeddings().weight.data *= 1.1
    batch = batch_of(1, 4)
    inputs = tuple(torch.from_numpy(a) for a in (batch.tokens_BT, batch.labels_BT, batch.positions_BT))

    def result() -> list[torch.Tensor]:
        total, _ = model(*inputs, compare_with(base, inputs, torch.ones(4, dtype=torch.bool), 1.0))  # type: ignore[arg-type]
        return [total.detach(), *torch.autograd.grad(total, list(model.parameters()))]

    whole = result()
    monkeypatch.setitem(loss_kernels._CHUNK_TOKENS, "cpu", 7)
    for a, b in zip(whole, result(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_no_row_to_compare_is_no_comparison() -> None:
    batch = batch_of(1, 2)
    inputs = tuple(torch.from_numpy(a) for a in (batch.tokens_BT, batch.labels_BT, batch.positions_BT))
    base = LossModel(network("llama"))
    assert compare_with(base, inputs, torch.zeros(2, dtype=torch.bool), 1.0) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(ALL))
def test_micro_batches_change_nothing(settings: Configure, job: Callable[..., StageJob], base: Any, name: str) -> None:
    found = []
    for rows in (1, 3, ROWS):
        compute = Compute(device="cpu", threads=1, micro_batch_rows=rows)
        run = prepare_run(settings(retention={name: ALL[name]}), job(f"{name}{rows}"), base, compute)
        results = [train_step(run.trainee, run.batches[index], 1e-2) for index in range(4)]
        found.append([r.penalties[name] for r in results] + [r.gradient_norm for r in results])
        assert found[-1][0] == pytest.approx(0.0, abs=1e-12)
        assert min(found[-1][1:4]) > 0
    for other in found[1:]:  # AdamW makes much of rounding in fp32
        assert other == pytest.approx(found[0], rel=1e-2)


def test_a_run_with_all_penalties_resumes_bit_for_bit(run: Run, settings: Configure, tmp_path: Path) -> None:
    config = settings(retention=ALL, **EVERY_TWO)
    manifest = run(config, "whole")
    records = read_metrics(tmp_path / "whole")
    assert set(records[0]["penalties"]) == set(ALL) and all(v == 0 for v in records[0]["penalties"].values())
    assert all(value > 0 for value in records[-1]["penalties"].values())
    assert {"importance.safetensors", "importance.json"} <= {entry.path for entry in manifest.files}
    watched = {"hooks": watch(None)}
    run(config, "again", **watched)
    run(config, "stopped", crash_at=5)
    measured = (tmp_path / "stopped/importance.safetensors").stat().st_mtime_ns
    run(config, "stopped", **watched)
    assert (tmp_path / "stopped/importance.safetensors").stat().st_mtime_ns == measured
    assert read_tensors(tmp_path / "again", 8) == read_tensors(tmp_path / "stopped", 8)
    assert read_metrics(tmp_path / "again") == read_metrics(tmp_path / "stopped")


@pytest.mark.parametrize("name", list(ALL))
def test_penalties_change_the_run_and_the_first_loss_stays(
    run: Run, settings: Configure, tmp_path: Path, name: str
) -> None:
    run(settings(), "plain")
    run(settings(retention={name: {**ALL[name], "strength": 5.0}}), "held")
    plain, held = read_metrics(tmp_path / "plain"), read_metrics(tmp_path / "held")
    assert plain[0]["loss"] == held[0]["loss"] and "penalties" not in plain[0]
    assert plain[-1]["loss"] != held[-1]["loss"]


def test_a_large_strength_holds_the_weights(run: Run, settings: Configure, tmp_path: Path) -> None:
    found = {}
    for strength in (1e-6, 1e2, 1e4):
        config = settings(retention={"l2_sp": {"strength": strength}}, weight_decay=0.0, learning_rate=1e-3)
        name = f"{strength:g}"
        run(config, name)
        found[strength] = read_metrics(tmp_path / name)[-1]["penalties"]["l2_sp"] * 2 / strength  # squared distance
    assert found[1e2] < 0.5 * found[1e-6] and found[1e4] < 0.5 * found[1e-6]


def test_importance_is_not_taken_from_a_damaged_file(run: Run, settings: Configure, tmp_path: Path) -> None:
    config = settings(retention={"ewc": {"strength": 1.0, "sequences": 3}}, **EVERY_TWO)
    run(config, crash_at=3)
    path = tmp_path / "train/importance.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError, match=r"importance\.safetensors"):
        run(config)


def test_without_replay_there_is_nothing_to_measure_on(
    settings: Configure, job: Callable[..., StageJob], base: Any, inputs: dict[str, Artifact]
) -> None:
    mix = inputs["mix"]
    counts = json.loads(json.dumps(mix.manifest.counts))
    counts["sources"]["web"]["role"] = "domain"
    changed = {**inputs, "mix": Artifact(mix.path, mix.manifest.model_copy(update={"counts": counts}))}
    config = settings(retention={"ewc": {"strength": 1.0}})
    with pytest.raises(TrainingError, match="no row of replay"):
        prepare_run(config, replace(job(), inputs=changed), base, ALONE)


def test_strengthen_lasts_and_resumes(
    run: Run, settings: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(retention={"l2_sp": {"strength": 0.5}, "kl": {"strength": 0.5}}, **EVERY_TWO)
    run(config, "plain", hooks=watch(None))
    decide = at_step(3, "strengthen", penalty="kl", by=4.0)
    run(config, "whole", hooks=watch(decide))
    plain, whole = read_metrics(tmp_path / "plain"), read_metrics(tmp_path / "whole")
    assert plain[:3] == whole[:3]
    assert whole[3]["penalties"]["kl"] == pytest.approx(4 * plain[3]["penalties"]["kl"], rel=1e-9)
    assert whole[3]["penalties"]["l2_sp"] == plain[3]["penalties"]["l2_sp"]
    state = json.loads((tmp_path / "whole/checkpoints/step-000008/state.json").read_text())
    assert state["penalty_factors"] == {"kl": 4.0}
    with monkeypatch.context() as broken:
        stop_at(broken, "decided")
        run(config, "stopped", hooks=watch(decide))
    run(config, "stopped", hooks=watch(decide))
    same(tmp_path / "whole", tmp_path / "stopped")

    def dies(model: Any, step: int, tokens: int) -> Any:
        if step == 6:
            raise CrashError
        return score(model, step, tokens)

    run(config, "late", hooks=replace(watch(decide), evaluate=dies))
    run(config, "late", hooks=watch(decide))
    same(tmp_path / "whole", tmp_path / "late")


def test_what_is_not_there_cannot_be_strengthened(run: Run, settings: Configure, tmp_path: Path) -> None:
    run(settings(**EVERY_TWO), hooks=watch(at_step(3, "strengthen", penalty="kl", by=2.0)))
    (decision,) = read_records(tmp_path / "train/decisions.jsonl")
    assert decision["cannot"] == "training has no penalty `kl`"


def test_strength_outlasts_the_way_back(run: Run, settings: Configure, tmp_path: Path) -> None:
    def decide(scores: Any, decisions: Any) -> Any:
        strengthens = at_step(3, "strengthen", penalty="l2_sp", by=2.0)(scores, decisions)
        return strengthens or at_step(6, "rewind", before=3)(scores, decisions)

    run(settings(retention={"l2_sp": {"strength": 0.5}}, **EVERY_TWO), hooks=watch(decide))
    state = json.loads((tmp_path / "train/checkpoints/step-000008/state.json").read_text())
    assert state["penalty_factors"] == {"l2_sp": 2.0}
    assert np.isfinite(state["last_loss"])


def test_predictions_of_adapters_are_held_as_well(run: Run, settings: Configure, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = {"method": {"use": "lora", "rank": 4}, "learning_rate": 3e-2}
    for strength in (1e-6, 20.0):
        run(settings(retention={"kl": {"strength": strength}}, **lora), f"{strength:g}")
    loose, held = (read_metrics(tmp_path / name)[-1]["penalties"]["kl"] for name in ("1e-06", "20"))
    assert 0 < held / 20.0 < loose / 1e-6
