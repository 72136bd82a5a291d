"""The whole way with a vocabulary that grows: Hindi on a really pretrained English base, then once more on top."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
import zstandard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

DATA = os.environ.get("DEEPEN_TEST_DATA")
pytestmark = [pytest.mark.skipif(not DATA, reason="DEEPEN_TEST_DATA is not set"), pytest.mark.slow]

RECIPE = """\
name: {name}
base: {base}
ingest:
  sources:
    - {{name: new, role: domain, path: {new}, licence: CC0-1.0}}
    - {{name: old, role: replay, path: old.jsonl, licence: CC0-1.0}}
curate: {{steps: [normalize], held_out: {{share: 5%, at_least: 4 documents, cap: 4k tokens}}}}
tokenize: {{vocabulary: {{extend: {extend}}}}}
mix: {{sequence_length: 128, domain_share: 0.7}}
train:
  tokens: 16384
  batch_tokens: 2048
  learning_rate: 2e-3
  new_rows_first: 25%
  save: {{milestones: 25%}}
evaluate:
  every: 50%
  forgetting: {{budget: 80%}}
  probes: [{{use: held_out, context: 256, in_loop_tokens: 500}}]
"""


def write_corpus(path: Path, name: str, count: int) -> None:
    """Short pieces of the first documents of a corpus."""
    with zstandard.open(f"{DATA}/{name}/corpus.jsonl.zst", "rb") as raw:
        texts = [json.loads(line)["text"] for line in islice(io.TextIOWrapper(raw, encoding="utf-8"), 12)]
    pieces = [text[at : at + 1500] for text in texts for at in range(0, 12_000, 1500) if len(text) >= at + 1500]
    path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces[:count]))


def deepen(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "deepen.cli", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_recipe(root: Path, name: str, base: str, new: str, extend: int) -> Path:
    (root / f"{name}.yaml").write_text(RECIPE.format(name=name, base=base, new=new, extend=extend))
    return root / json.loads(deepen(root, "run", f"{name}.yaml", "--offline", "--json"))["run"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grown")
    write_corpus(folder / "hindi.jsonl", "hindi_classics", 60)
    write_corpus(folder / "medical.jsonl", "medical_trials_fulltext", 60)
    write_corpus(folder / "old.jsonl", "gutenberg_and_speeches", 60)
    return folder


@pytest.fixture(scope="module")
def hindi(root: Path) -> Path:
    """The finished run on Hindi."""
    return run_recipe(root, "hindi", f"{DATA}/model_tinystories_656k", "hindi.jsonl", 120)


@pytest.fixture(scope="module")
def medical(root: Path, hindi: Path) -> Path:
    """A second run, on top of the first one's export, that grows the vocabulary once more."""
    return run_recipe(root, "medical", f"{{run: {hindi}}}", "medical.jsonl", 100)


def counts(run: Path, stage: str) -> dict:
    return json.loads((run / stage / "manifest.json").read_text())["counts"]


def test_the_account_balances_and_the_files_are_whole(root: Path, hindi: Path, medical: Path) -> None:
    for run in (hindi, medical):
        for command in ("account", "verify", "status"):
            deepen(root, command, str(run))
        assert "document" in deepen(root, "show", str(run / "mix"), "--step", "2")


def test_the_new_language_is_learned(hindi: Path) -> None:
    scores = [json.loads(line) for line in (hindi / "evaluate" / "scores.jsonl").read_text().splitlines()][-1]["scores"]
    new = next(score for score in scores if score["ability"] == "new" and ":" not in score["probe"])
    assert new["interval"][1] < -0.3
    assert counts(hindi, "train")["new_rows_steps"] == 2


def test_the_export_is_the_trained_model_with_the_grown_tokenizer(hindi: Path) -> None:
    choice = json.loads((hindi / "select" / "choice.json").read_text())
    assert choice["step"] is not None, choice["reason"]
    assert counts(hindi, "export")["largest_logit_difference"] == 0
    model, tokenizer = (kind.from_pretrained(hindi / "export") for kind in (AutoModelForCausalLM, AutoTokenizer))
    same = AutoTokenizer.from_pretrained(hindi / "tokenize" / "tokenizer")
    text = "यह एक कहानी है. Once upon a time there was a little girl."
    assert tokenizer(text).input_ids == same(text).input_ids and tokenizer.get_vocab() == same.get_vocab()
    assert max(tokenizer(text).input_ids) >= 2048 and len(tokenizer) == 2168
    assert model.config.vocab_size == 2176 and model.generation_config.suppress_tokens == list(range(2168, 2176))
    said = model.generate(tokenizer("यह एक", return_tensors="pt").input_ids, max_new_tokens=8, do_sample=False)
    assert int(said.max()) < 2168


def test_a_second_growth_keeps_every_old_row_at_first(hindi: Path, medical: Path) -> None:
    before = load_file(hindi / "export" / "model.safetensors")["model.embed_tokens.weight"]
    after = load_file(medical / "train" / "checkpoints" / "step-000002" / "model.safetensors")[
        "model.embed_tokens.weight"
    ]
    assert (len(before), len(after)) == (2176, 2304)
    assert torch.equal(after[:2168], before[:2168]) and not torch.equal(after[2168:2176], before[2168:2176])
    assert counts(medical, "tokenize")["base_vocabulary_size"] == 2168
