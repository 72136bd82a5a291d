"""The whole way on real text with a really pretrained base, on a small budget."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DATA = os.environ.get("DEEPEN_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="DEEPEN_TEST_DATA is not set")

RECIPE = """\
name: medical
base: {data}/model_tinystories_656k
ingest:
  sources:
    - {{name: medical, role: domain, path: {data}/medical_qa_nih/corpus.jsonl.zst, licence: CC-BY-4.0, limit: 1500}}
    - {{name: web, role: replay, path: {data}/gov_web_prose/corpus.jsonl.zst, licence: CC0-1.0, limit: 300}}
curate: {{held_out: {{share: 2%, at_least: 25 documents, cap: 20k tokens}}}}
mix: {{sequence_length: 256, domain_share: 0.7}}
train:
  tokens: 393216
  batch_tokens: 8192
  learning_rate: 1e-3
evaluate:
  every: 50%
  probes: [{{use: held_out, in_loop_tokens: 5000}}]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    (root / "recipe.yaml").write_text(RECIPE.format(data=DATA))
    command = [sys.executable, "-m", "deepen.cli", "run", "recipe.yaml", "--offline", "--json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return root / json.loads(done.stdout)["run"]


def test_the_domain_improves_surely(run):
    scores = [json.loads(line) for line in (run / "evaluate" / "scores.jsonl").read_text().splitlines()][-1]["scores"]
    new = next(score for score in scores if score["probe"] == "held_out" and score["ability"] == "new")
    assert new["interval"][1] < -0.05


def test_the_account_balances_and_the_files_are_whole(run):
    for command in ("account", "verify"):
        done = subprocess.run([sys.executable, "-m", "deepen.cli", command, str(run)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_export_is_the_trained_model_and_loads_anywhere(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    choice = json.loads((run / "select" / "choice.json").read_text())
    assert choice["step"] is not None, choice["reason"]
    model = AutoModelForCausalLM.from_pretrained(run / "export")
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    assert model.num_parameters() == 656_000
    tokens = tokenizer("Diabetes is a disease", return_tensors="pt").input_ids
    assert model(tokens).logits.isfinite().all()
    counts = json.loads((run / "export" / "manifest.json").read_text())["counts"]
    assert counts["largest_logit_difference"] == 0
    assert (Path(run) / "report.html").stat().st_size > 1_000_000
