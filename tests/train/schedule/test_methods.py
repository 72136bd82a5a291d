"""Adapters in training: what moves, what is stored, and that a kill changes nothing; on a folder as a base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepen.errors import DamageError, DeepenError, TrainingError
from deepen.evaluate.models.subject import open_run_model, put_weights
from deepen.formats.manifest import Artifact, StageJob
from deepen.formats.training.adapters import Adapters, read_adapters
from deepen.formats.training.checkpoints import list_checkpoints
from deepen.model.adapters import add_adapters, merge_adapters
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.weights.load import load_model
from deepen.parallel.config import Compute
from deepen.train.beside.interrupt import StopRequest
from deepen.train.loop import training_steps
from deepen.train.run import Run
from deepen.train.schedule.methods import Full, Lora, Plans, Start
from deepen.train.starting.build import prepare_run
from deepen.train.starting.model import check_objective
from deepen.train.step import train_step
from tests.train.checkpoints.test_resume import EVERY_TWO, same_result
from tests.train.conftest import VOCABULARY, artifact

Configure = Callable[..., Any]
LORA = {"use": "lora", "rank": 4}
CPU = Compute(device="cpu", threads=1)


def make_base(folder: Path, architecture: str = "llama", *, tied: bool = True) -> ResolvedBase:
    init = RandomInit(
        init="random", architecture=architecture, hidden_size=16, layers=2, heads=2, max_length=32, tied=tied
    )
    load_model(ResolvedBase("r", None, init, ""), vocabulary_size=VOCABULARY, seed=0).save_pretrained(folder)
    return ResolvedBase("base", folder, None, "base")


@pytest.fixture
def folder(tmp_path: Path) -> ResolvedBase:
    """A Llama of two layers as a folder, embedding and head apart."""
    return make_base(tmp_path / "base", tied=False)


def after(config: Any, job: StageJob, base: ResolvedBase, steps: int = 2) -> tuple[Run, dict[str, torch.Tensor]]:
    """A run after some steps, and how far each of its parameters moved."""
    run: Run = prepare_run(config, job, base, CPU)
    model = run.trainee.model.model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    loop = training_steps(run, StopRequest())
    for _ in range(steps):
        next(loop)
    return run, {name: value.detach() - before[name] for name, value in model.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"rank_stabilized": True}, {"dora": True}, {"dropout": 0.1}])
def test_only_adapters_move_and_they_learn(
    job: Callable[..., StageJob], folder: ResolvedBase, settings: Configure, options: dict[str, Any]
) -> None:
    run, steps = after(settings(method=LORA | options), job(), folder)
    moved = {name for name, step in steps.items() if step.any()}
    assert moved == {name for name in steps if ".lora_" in name}
    assert len([name for name in moved if "lora_B" in name]) == 14
    assert any("magnitude" in name for name in moved) == bool(options.get("dora"))
    losses = [train_step(run.trainee, run.batches[0], 1e-2).loss for _ in range(30)]
    assert losses[-1] < losses[0] - 0.05


def test_the_first_loss_is_the_bases(run: Any, folder: ResolvedBase, settings: Configure) -> None:
    first = {}
    for name, method in (("full", "full"), ("lora", LORA)):
        manifest = run(settings(method=method), name, base=folder)
        assert manifest.counts["method"] == name
        first[name] = manifest
    records = {name: read_losses(folder.path.parent / name) for name in first}
    assert records["lora"][0] == records["full"][0]
    assert all(lora != full for lora, full in zip(records["lora"][1:], records["full"][1:], strict=True))


def read_losses(directory: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("tied", "options", "tables"),
    [
        (False, {"train_embeddings": True}, {"model.embed_tokens.weight"}),
        (False, {"train_head": True}, {"lm_head.weight"}),
        (True, {"train_head": True}, {"model.embed_tokens.weight"}),
        (True, {}, set()),
    ],
)
def test_tables_are_trained_and_stored_whole_when_asked(
    run: Any, settings: Configure, tmp_path: Path, tied: bool, options: dict[str, Any], tables: set[str]
) -> None:
    base = make_base(tmp_path / "base", tied=tied)
    manifest = run(settings(method=LORA | options), base=base)
    stored = load_file(tmp_path / "train/checkpoints/step-000008/model.safetensors")
    assert {name for name in stored if ".lora_" not in name} == tables
    before = load_file(tmp_path / "base/model.safetensors")
    assert all(not torch.equal(stored[name], before[name]) for name in tables)
    trained = sum(tensor.numel() for tensor in stored.values())
    assert manifest.counts["trained_parameters"] == trained < manifest.counts["parameters"]


def test_a_checkpoint_holds_what_is_trained_and_says_what_it_is(
    run: Any, folder: ResolvedBase, settings: Configure, tmp_path: Path
) -> None:
    run(settings(method=LORA | {"targets": ["q_proj", "model.layers.1.mlp.*"]}), base=folder)
    info = list_checkpoints(tmp_path / "train/checkpoints")[-1]
    names = {name.partition(".lora_")[0] for name in load_file(info.weights)}
    last = [f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")]
    assert names == {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", *last}
    adapters = read_adapters(info)
    assert adapters is not None
    assert (adapters.rank, adapters.alpha, adapters.base, adapters.factor) == (4, 8.0, "base", 2.0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "changes",
    [
        {"method": LORA},
        {"method": LORA | {"dora": True, "dropout": 0.1, "train_embeddings": True}, "neftune_alpha": 5},
        {"method": LORA | {"train_embeddings": True}, "rate_multiples": {"embeddings": 0.5}, "precision": "bf16"},
        {"method": LORA | {"dora": True}, "precision": "pure_bf16"},
    ],
)
def test_a_killed_run_goes_on_bit_by_bit(
    run: Any, settings: Configure, tmp_path: Path, architecture: str, changes: dict[str, Any]
) -> None:
    base, config = make_base(tmp_path / "base", architecture), settings(**EVERY_TWO, **changes)
    whole = run(config, "whole", base=base)
    run(config, "broken", crash_at=5, base=base)
    assert run(config, "broken", base=base).counts == whole.counts
    same_result(tmp_path / "whole", tmp_path / "broken")


def test_evaluation_opens_adapters_and_refuses_those_of_another_base(
    job: Callable[..., StageJob], run: Any, folder: ResolvedBase, settings: Configure, inputs: dict[str, Artifact]
) -> None:
    config = settings(method=LORA | {"train_head": True})
    run(config, base=folder)
    trained = prepare_run(config, job(), folder, CPU).trainee.model.eval()  # resumed at its end
    info = list_checkpoints(job().out / "checkpoints")[-1]
    opened = open_run_model(folder, inputs["tokenize"], seed=17, compute=CPU)
    rows = torch.arange(12)[None]
    before = opened.token_nll(rows, rows.roll(-1, 1), rows)
    put_weights(opened, info, folder)
    found = opened.token_nll(rows, rows.roll(-1, 1), rows)
    assert torch.equal(found, trained.token_nll(rows, rows.roll(-1, 1), rows)) and not torch.equal(found, before)
    assert torch.equal(merged_nll(opened, rows), merged_nll(opened, rows))
    assert (merged_nll(opened, rows) - found).abs().max() < 1e-5
    with pytest.raises(DamageError, match="another base"):
        put_weights(open_run_model(folder, inputs["tokenize"], seed=17, compute=CPU), info, replaced(folder))


def merged_nll(model: Any, rows: torch.Tensor) -> Any:
    merge_adapters(model.model)
    assert not any(".lora_" in name for name, _ in model.named_parameters())
    return model.token_nll(rows, rows.roll(-1, 1), rows)


def replaced(base: ResolvedBase) -> ResolvedBase:
    return ResolvedBase(base.name, base.path, None, "other contents")


def test_flops_and_counts_are_those_of_what_is_trained(
    job: Callable[..., StageJob], folder: ResolvedBase, settings: Configure
) -> None:
    full = prepare_run(settings(), job("full"), folder, CPU).flops
    lora = prepare_run(settings(method=LORA), job("lora"), folder, CPU).flops
    shape = lora.architecture
    assert shape is not None and full.frozen == full.added == 0
    assert lora.frozen == shape.matrix_parameters and lora.added == shape.adapter_parameters(4)
    attention = 12 * 2 * 16 * 16
    assert full.of(1, 16, 1.0) == 6 * shape.matrix_parameters + attention
    assert lora.of(1, 16, 1.0) == 4 * shape.matrix_parameters + 6 * lora.added + attention


def test_adapters_count_as_peft_has_them() -> None:
    for architecture, dora in (("llama", False), ("qwen2", True), ("gpt2", True)):
        init = RandomInit(init="random", architecture=architecture, hidden_size=16, layers=2, heads=4, max_length=32)
        model = load_model(ResolvedBase("r", None, init, ""), vocabulary_size=VOCABULARY, seed=0)
        from deepen.formats.architecture import architecture_from_config

        shape = architecture_from_config(model.config.to_dict())
        add_adapters(model, Adapters(rank=3, alpha=6, dora=dora, base=""), seed=1)
        found = sum(value.numel() for name, value in model.named_parameters() if ".lora_" in name)
        assert found == shape.adapter_parameters(3, row_lengths=dora)


def test_defaults_and_automatic_tables() -> None:
    start = Start(("input", "output"), False, "b")
    plain = Lora().adapters(start)
    assert (plain.rank, plain.alpha, plain.tables, plain.factor) == (64, 128.0, (), 2.0)
    assert Lora(rank_stabilized=True).adapters(start).factor == 2.0
    grown = Start(("input", "output"), True, "b")
    assert Lora().adapters(grown).tables == ("input", "output")
    assert Lora(train_head=False).adapters(Start(("input",), False, "b")).tables == ()
    assert Full().adapters(grown) is None
    assert "embedding and head trained whole" in Lora().adapters(grown).title


def test_what_cannot_work_is_told_before(settings: Configure) -> None:
    plans = Plans(random_base=True, grows=True, freezes=True)
    found = {key: message for key, message, _ in Lora(train_embeddings=False).problems(plans)}
    assert set(found) == {"method", "freeze", "method.train_embeddings"}
    assert not list(Lora().problems(Plans(grows=True))) and not list(Full().problems(plans))


def test_a_target_that_matches_nothing_is_refused(
    job: Callable[..., StageJob], folder: ResolvedBase, settings: Configure
) -> None:
    with pytest.raises(DeepenError, match="no linear layer of the model matches `query`"):
        prepare_run(settings(method=LORA | {"targets": ["query"]}), job(), folder, CPU)


def test_sft_refuses_domain_documents_without_answers(
    settings: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stages(conversations: int, role: str = "domain") -> tuple[Artifact, Artifact]:
        sources = {
            "talks": {"role": "domain", "documents": 5, "conversations": 5},
            "plain": {"role": role, "documents": 7, "conversations": conversations},
        }
        return artifact(tmp_path / "tokenize", {"sources": sources}), artifact(tmp_path / "mix", {"sources": sources})

    sft = settings(objective="sft")
    with pytest.raises(TrainingError, match="4 of 7 documents of `plain` have no answers"):
        check_objective(sft, *stages(3))
    check_objective(sft, *stages(7))
    check_objective(sft, *stages(0, "replay"))
    check_objective(settings(), *stages(0))
    tokenize, mix = stages(7)
    mix.counts["fixed_rows"] = {"rows": {"role": "domain", "documents": 9, "tokens": 50, "targets": 50}}
    with pytest.raises(TrainingError, match="9 of 9 documents of `rows`"):
        check_objective(sft, tokenize, mix)
    mix.counts["fixed_rows"]["rows"]["targets"] = 20
    check_objective(sft, tokenize, mix)
    assert "are longer than a row" not in capsys.readouterr().err
    mix.counts["sources"]["talks"]["cuts"] = 3
    check_objective(sft, tokenize, mix)
    assert "conversations of `talks` are longer than a row and cut in 3 places" in capsys.readouterr().err


@pytest.mark.parametrize(("rate", "is_low"), [(2e-5, True), (2e-4, False)])
def test_a_rate_that_is_low_for_adapters_is_said(
    job: Callable[..., StageJob],
    folder: ResolvedBase,
    settings: Configure,
    capsys: pytest.CaptureFixture[str],
    rate: float,
    is_low: bool,
) -> None:
    prepare_run(settings(method=LORA, learning_rate=rate), job("lora"), folder, CPU)
    assert ("is low for adapters" in capsys.readouterr().err) == is_low
    prepare_run(settings(learning_rate=rate), job("full"), folder, CPU)
    assert "adapters" not in capsys.readouterr().err
