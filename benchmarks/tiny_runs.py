"""What benchmarks of whole runs share: a really trained tiny base, text of its own distribution, a domain, real runs.

The kept text is sampled from the base itself, so that it is exactly what the base can do: any rise of its loss is
forgetting, and none of it is text that the base never knew. Needs DEEPEN_TEST_DATA.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import zstandard
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen.formats.files.atomic import write_bytes

BASE = "model_tinystories_656k"
DOMAIN = "medical_qa_nih"
_AT_ONCE = 128


@dataclass(frozen=True)
class Texts:
    """Files that the recipes name."""

    base: Path
    domain: Path
    replay: Path
    watch: Path


def data_folder() -> Path:
    """The test data."""
    return Path(os.environ["DEEPEN_TEST_DATA"])


def own_text(base: Path, documents: int, *, seed: int, most_tokens: int = 220) -> list[str]:
    """Documents sampled from a model as it is (temperature 1, nothing cut off), each from an empty context."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    found: list[str] = []
    while len(found) < documents:
        begin = torch.full((_AT_ONCE, 1), int(model.config.bos_token_id))
        with torch.inference_mode():
            ids = model.generate(
                begin, attention_mask=torch.ones_like(begin), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=most_tokens, pad_token_id=int(model.config.eos_token_id),
            )  # fmt: skip
        found += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True) if len(text) > 100]
    return found[:documents]


def corpus_texts(folder: Path, documents: int, most_characters: int = 3_000) -> list[str]:
    """The beginnings of the first documents of a corpus of the test data, without repeated ones."""
    found: dict[str, None] = {}
    with zstandard.open(next(folder.glob("corpus.jsonl.zst")), "rb") as packed:
        for line in io.TextIOWrapper(packed, encoding="utf-8"):
            text = json.loads(line)["text"][:most_characters]
            if len(text) > 200:
                found[text] = None
            if len(found) == documents:
                break
    return list(found)


def write_texts(folder: Path, *, documents: int, seed: int) -> Texts:
    """A domain far from stories, and stories of the base's own for replay and for watching; made once."""
    base = data_folder() / BASE
    texts = Texts(base, folder / "domain.jsonl", folder / "replay.jsonl", folder / "watch.jsonl")
    if not texts.watch.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        own = own_text(base, documents + documents // 2, seed=seed)
        _write(texts.domain, corpus_texts(data_folder() / DOMAIN, documents))
        _write(texts.replay, own[:documents])
        _write(texts.watch, own[documents:])
    return texts


def _write(path: Path, texts: Sequence[str]) -> None:
    write_bytes(path, "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())


def recipe(texts: Texts, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe for one run; ``changes`` replaces whole keys by dotted path."""
    sources = [
        {"name": role, "role": role, "path": str(getattr(texts, role)), "licence": "tests only"}
        for role in ("domain", "replay", "watch")
    ]
    made: dict[str, Any] = {
        "name": name, "base": str(texts.base), "ingest": {"sources": sources},
        "curate": {"steps": ["normalize"], "held_out": {"share": 0.1, "at_least": 100}},
        "mix": {"sequence_length": 256, "max_epochs": 16},
        "train": {
            "tokens": 819200, "batch_tokens": 4096, "learning_rate": 1e-3, "save": {"milestones": None},
            "schedule": {"use": "cosine", "warmup": "2%"},
        },
        "evaluate": {"every": "50%", "probes": [{"use": "held_out", "context": 256, "in_loop_tokens": 20000}]},
    }  # fmt: skip
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = made
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return made


def run(made: dict[str, Any], runs: Path, *arguments: str, threads: int = 2) -> Path:
    """`deepen run` in a process of its own; returns the run's directory."""
    path = runs / f"{made['name']}.yaml"
    write_bytes(path, json.dumps(made, indent=2).encode())
    machine = runs / "machine.yaml"
    write_bytes(machine, json.dumps({"compute": {"device": "cpu", "threads": threads}, "workers": 1}).encode())
    command = [sys.executable, "-m", "deepen.cli", "run", str(path), "--runs", str(runs), "--machine", str(machine)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return runs / str(made["name"])
