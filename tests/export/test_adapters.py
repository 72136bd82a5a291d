"""Adapters are handed over merged, and as peft's own folder when that is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from deepen.errors import DeepenError
from deepen.export.config import ExportConfig
from deepen.export.merging import merge
from deepen.formats.training.adapters import Adapters
from deepen.model.adapters import adapters_record, add_adapters
from deepen.model.config import ResolvedBase
from deepen.model.new_rows import write_new_rows
from deepen.model.weights.load import load_run_model, stored_weights
from tests.export.conftest import TEXTS, Run, init, write_checkpoint
from tests.grown_vocabulary import grow_tokenizer

Make = Callable[..., Run]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # peft asks for it
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings:UserWarning"),  # GPT-2: two equal copies
]


def with_adapters(run: Run, folder: Path, tables: tuple[str, ...] = (), **options: Any) -> Run:
    """The run with its random network as the base in ``folder``, and a checkpoint of adapters far from zero."""
    if not folder.exists():
        run.network.save_pretrained(folder)
    run.base = ResolvedBase("here", folder, None, "base")
    run.network = load_run_model(run.base, run.lineage["tokenize"], seed=1)
    add_adapters(run.network, Adapters(rank=4, alpha=8, base="base", tables=tables, **options), seed=5)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in stored_weights(run.network).values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    shutil.rmtree(run.lineage["train"].path)
    write_checkpoint(run.lineage["train"].path, run.network, 10)
    return run


def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=tokens).logits
    return found


@pytest.mark.parametrize(
    ("architecture", "tied", "options"),
    [
        ("llama", True, {"tables": ("input",)}),
        ("llama", False, {"tables": ("input", "output"), "rank_stabilized": True}),
        ("qwen2", True, {"dora": True}),
        ("gpt2", True, {"dora": True, "tables": ("input",)}),
        ("mistral", False, {"tables": ("output",), "targets": ("q_proj", "down_proj")}),
    ],
)
def test_the_merged_export_and_pefts_folder_are_the_adapter_model(
    make_run: Make, tmp_path: Path, architecture: str, tied: bool, options: dict[str, Any]
) -> None:
    run = with_adapters(make_run(init(architecture=architecture, tied=tied)), tmp_path / "base", **options)
    manifest = run.export(ExportConfig(adapter=True))
    tokens = AutoTokenizer.from_pretrained(run.out)(TEXTS[0], return_tensors="pt").input_ids
    expected = logits(run.network, tokens)
    plain = AutoModelForCausalLM.from_pretrained(run.out)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert (logits(base, tokens) - expected).abs().max() > 0.1
    assert (logits(plain, tokens) - expected).abs().max() <= 1e-5
    assert not any("lora" in name for name in load_file(run.out / "model.safetensors"))
    assert manifest.counts["largest_logit_difference"] == 0
    assert 0 <= manifest.counts["largest_merge_difference"] <= 1e-5
    adapted = PeftModel.from_pretrained(base, run.out / "adapter")
    assert (logits(adapted, tokens) - expected).abs().max() <= 1e-6
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/README.md"} <= {
        entry.path for entry in manifest.files
    }


def test_the_card_says_what_was_trained(make_run: Make, tmp_path: Path) -> None:
    run = with_adapters(make_run(), tmp_path / "base", tables=("input",))
    manifest = run.export()
    card = (run.out / "README.md").read_text()
    assert "LoRA of rank 4, alpha 8, embedding trained whole" in card and "merged" in card
    assert manifest.counts["method"] in card
    assert not (run.out / "adapter").exists(), "only when asked for"


def test_bfloat16_is_rounded_after_merging(make_run: Make, tmp_path: Path) -> None:
    run = with_adapters(make_run(), tmp_path / "base")
    manifest = run.export(ExportConfig(dtype="bfloat16"))
    weights = load_file(run.out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert manifest.counts["largest_merge_difference"] <= 1e-5 < manifest.counts["largest_logit_difference"]


def test_a_kept_base_has_nothing_merged(make_run: Make, tmp_path: Path) -> None:
    run = with_adapters(make_run(), tmp_path / "base")
    run.choose(None)
    manifest = run.export(ExportConfig(adapter=True))
    assert "method" not in manifest.counts and not (run.out / "adapter").exists()


def test_a_grown_vocabulary_needs_rows_first(make_run: Make, tokenizer_folder: Path, tmp_path: Path) -> None:
    run, folder = make_run(), tmp_path / "base"
    run.network.save_pretrained(folder)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    tokenize = run.lineage["tokenize"]
    extension = grow_tokenizer(folder, tmp_path / "tokenize", ["fever"])
    write_new_rows(folder, tmp_path / "tokenize", extension)
    counts = tokenize.counts | {"vocabulary_size": extension.vocabulary_size}
    run.lineage["tokenize"] = replace(
        tokenize, path=tmp_path / "tokenize", manifest=tokenize.manifest.model_copy(update={"counts": counts})
    )
    run = with_adapters(run, folder, tables=("input",))
    run.export(ExportConfig(adapter=True))
    tokens = AutoTokenizer.from_pretrained(run.out)("fever", return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(folder)
    rows = run.network.get_input_embeddings().weight.shape[0]
    assert f"resize_token_embeddings({rows})" in (run.out / "adapter/README.md").read_text()
    base.resize_token_embeddings(rows, mean_resizing=False)
    adapted = PeftModel.from_pretrained(base, run.out / "adapter")
    assert (logits(adapted, tokens) - logits(run.network, tokens)).abs().max() <= 1e-6
    merged = AutoModelForCausalLM.from_pretrained(run.out)
    assert (logits(merged, tokens) - logits(run.network, tokens)).abs().max() <= 1e-5


def test_adapters_that_are_not_finite_are_not_merged(make_run: Make, tmp_path: Path) -> None:
    run = with_adapters(make_run(), tmp_path / "base")
    with torch.no_grad():
        next(iter(stored_weights(run.network).values())).fill_(float("nan"))
    with pytest.raises(DeepenError, match="cannot be merged"):
        merge(run.network, [torch.tensor([[1, 2]])], None, base_name="here")
    assert json.dumps(adapters_record(run.network))
