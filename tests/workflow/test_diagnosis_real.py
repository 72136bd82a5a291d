"""Diagnosis of really trained runs: nothing is found in a healthy one, and each that was spoilt has its own finding.

A pretrained tiny base learns novels; what it is to keep is text sampled from itself, so that any
rise of its loss is forgetting.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import zstandard

DATA = os.environ.get("DEEPEN_TEST_DATA", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA, reason="DEEPEN_TEST_DATA is not set")]

STEPS, BATCH_TOKENS, RATE = 240, 2048, 1e-3
HEALTHY: dict[str, Any] = {"share": 0.7, "rate": RATE}
SPOILT: dict[str, tuple[str, dict[str, Any]]] = {
    "no-replay-and-a-high-rate": ("catastrophic forgetting", {"share": 1.0, "rate": 3 * RATE}),
    "rate-1e-7": ("learning rate too low", {"rate": 1e-7}),
    "rate-100x": ("learning rate too high", {"rate": 100 * RATE}),
}


def own_text(documents: int) -> list[str]:
    """Stories sampled from the base as it is."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(DATA) / "model_tinystories_656k"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    begin = torch.full((documents, 1), int(model.config.bos_token_id))
    with torch.inference_mode():
        ids = model.generate(
            begin, attention_mask=torch.ones_like(begin), do_sample=True, top_k=0, max_new_tokens=200,
            pad_token_id=int(model.config.eos_token_id),
        )  # fmt: skip
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True) if len(text) > 100]


def pieces(corpus: str, most: int = 1_500, characters: int = 2_000) -> list[str]:
    """The documents of a corpus in pieces: long ones would leave none to hold out."""
    path = Path(DATA) / corpus / "corpus.jsonl.zst"
    with zstandard.open(path, "rb") as packed:
        texts = (json.loads(line)["text"] for line in io.TextIOWrapper(packed, encoding="utf-8"))
        cut = (text[at : at + characters] for text in texts for at in range(0, len(text), characters))
        return list(islice(cut, most))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a domain, and text of the base's own, half to replay and half to watch."""
    folder = tmp_path_factory.mktemp("diagnosed")
    texts = own_text(500)
    for name, part in {"replay": texts[::2], "watch": texts[1::2], "novels": pieces("english_novels")}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return folder


def deepen(root: Path, *arguments: str) -> Any:
    command = [sys.executable, "-m", "deepen.cli", *arguments, "--json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def findings(root: Path, name: str, settings: dict[str, Any]) -> list[dict[str, str]]:
    """Train and evaluate; what `deepen diagnose` then says."""
    share = settings["share"]
    sources = [
        {"name": "novels", "role": "domain", "path": "novels.jsonl"},
        {"name": "watch", "role": "watch", "path": "watch.jsonl"},
    ]
    if share < 1:
        sources.append({"name": "replay", "role": "replay", "path": "replay.jsonl"})
    recipe = {
        "name": name, "base": f"{DATA}/model_tinystories_656k",
        "ingest": {"sources": [source | {"licence": "tests only"} for source in sources]},
        "curate": {"steps": ["normalize"], "held_out": {"share": 0.05, "at_least": 60, "cap": 15_000}},
        "mix": {"sequence_length": 256, "domain_share": share, "max_epochs": 16},
        "train": {"tokens": STEPS * BATCH_TOKENS, "batch_tokens": BATCH_TOKENS,
                  "learning_rate": settings["rate"], "save": {"milestones": None}},
        "evaluate": {"every": "50%", "probes": [{"use": "held_out", "context": 256, "in_loop_tokens": 3_000}]},
    }  # fmt: skip
    (root / f"{name}.json").write_text(json.dumps(recipe))
    deepen(root, "run", f"{name}.json", "--runs", "runs", "--until", "evaluate", "--offline")
    found: list[dict[str, str]] = deepen(root, "diagnose", f"runs/{name}")["findings"]
    return found


def test_a_healthy_run_has_no_finding(root: Path) -> None:
    assert findings(root, "healthy", HEALTHY) == []


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_run_has_the_finding_of_its_fault(root: Path, name: str) -> None:
    expected, changes = SPOILT[name]
    found = findings(root, name, {**HEALTHY, **changes})
    assert expected in [finding["name"] for finding in found], found
