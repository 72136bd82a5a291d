"""The export of a grown vocabulary: it loads, equals the trained model and never says a row without a token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen.export.chat import Sampling, continue_tokens, open_speaker
from deepen.model.config import ResolvedBase
from deepen.model.new_rows import write_new_rows
from deepen.model.weights.load import load_run_model
from tests.export.conftest import VOCABULARY_SIZE, Run, write_checkpoint
from tests.grown_vocabulary import grow_tokenizer

WORDS = ["fever", " temperature"]


@pytest.fixture
def grown(make_run: Callable[..., Run], tokenizer_folder: Path, tmp_path: Path) -> Run:
    """A pretrained base with generation settings, its vocabulary grown by two words, a checkpoint of step 10."""
    run = make_run()
    folder = tmp_path / "base"
    run.network.save_pretrained(folder)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "suppress_tokens": [5, 301]}))
    tokenize = run.lineage["tokenize"]
    extension = grow_tokenizer(folder, tmp_path / "tokenize", WORDS)
    write_new_rows(folder, tmp_path / "tokenize", extension)
    counts = tokenize.counts | {"vocabulary_size": extension.vocabulary_size}
    manifest = tokenize.manifest.model_copy(update={"counts": counts})
    run.lineage["tokenize"] = replace(tokenize, path=tmp_path / "tokenize", manifest=manifest)
    run.base = ResolvedBase("here", folder, None, "base")
    run.network = load_run_model(run.base, run.lineage["tokenize"], seed=1)
    with torch.no_grad():
        run.network.get_input_embeddings().weight.mul_(1.5)
    shutil.rmtree(run.lineage["train"].path)
    write_checkpoint(run.lineage["train"].path, run.network, 10)
    return run


def test_the_export_is_the_trained_model_with_the_grown_tokenizer(grown: Run) -> None:
    manifest = grown.export()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(grown.out), AutoTokenizer.from_pretrained(grown.out)
    assert len(tokenizer) > VOCABULARY_SIZE and model.config.vocab_size % 128 == 0
    tokens = tokenizer("fever", return_tensors="pt").input_ids
    assert int(tokens.max()) >= VOCABULARY_SIZE
    assert torch.equal(model(tokens).logits, grown.network.eval()(tokens).logits)
    assert manifest.counts["largest_logit_difference"] == 0
    assert "added in this run" in (grown.out / "README.md").read_text()


def test_rows_without_a_token_are_never_generated(grown: Run) -> None:
    grown.export()
    model, size = AutoModelForCausalLM.from_pretrained(grown.out), len(AutoTokenizer.from_pretrained(grown.out))
    assert model.generation_config.suppress_tokens == [5, *range(size, model.config.vocab_size)]
    with torch.no_grad():
        model.get_input_embeddings().weight[size:] = 0.0
        model.get_input_embeddings().weight[:size] = -model.get_input_embeddings().weight[:size].abs()
    said = model.generate(torch.tensor([[3, 4]]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert int(said.max()) < size


def test_chat_says_no_row_without_a_token(grown: Run) -> None:
    grown.export()
    speaker = open_speaker(grown.out)
    weight = speaker.model.get_input_embeddings().weight
    with torch.no_grad():
        weight[speaker.vocabulary_size :] = 40 * weight[7]
    pieces = list(continue_tokens(speaker, [7, 7], Sampling(max_new_tokens=5)))
    assert pieces, "something was said, in tokens that decode"


def test_a_kept_base_is_handed_on_as_it_was(grown: Run) -> None:
    grown.choose(None)
    grown.export()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(grown.out), AutoTokenizer.from_pretrained(grown.out)
    assert (len(tokenizer), model.config.vocab_size) == (VOCABULARY_SIZE, VOCABULARY_SIZE)
    assert grown.base.path is not None
    assert (grown.out / "tokenizer.json").read_bytes() == (grown.base.path / "tokenizer.json").read_bytes()
