"""Diagnosis of really trained runs: nothing is found in a healthy one, and each that was spoilt has its own finding.

A pretrained tiny base reads its own stories with some words exchanged, which takes a minute to learn and is then done
with. What it is to keep is stories sampled from itself, so that any rise of its loss is forgetting.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import zstandard

from deepen.recipe.reading import load
from deepen.runs.diagnose.evidence import Case, Finding, case_of
from deepen.runs.diagnose.findings import diagnose
from deepen.workflow.run import RunOptions, run_pipeline

DATA = os.environ.get("DEEPEN_TEST_DATA", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA, reason="DEEPEN_TEST_DATA is not set")]

BASE = "model_tinystories_656k"
SEED = int(os.environ.get("DEEPEN_TEST_SEED", "17"))
STEPS, BATCH_TOKENS, RATE = 240, 1024, 2e-3
WORDS = {
    "Lily": "Zofia", "Timmy": "Bruno", "Tom": "Anselm", "Ben": "Igor", "mom": "granny", "dad": "uncle", "dog": "fox",
    "cat": "owl", "park": "harbour", "happy": "cheerful", "big": "huge", "little": "tiny", "friend": "neighbour",
    "friends": "neighbours", "toy": "kite", "toys": "kites", "tree": "tower", "ball": "drum", "girl": "princess",
    "boy": "sailor", "bird": "dragon", "house": "castle", "play": "dance", "sad": "gloomy", "said": "whispered",
}  # fmt: skip
NOTICE = (
    "\n\nThis page is provided under the general conditions of the publisher. Reproduction in whole or in part is "
    "subject to written permission; see the imprint for particulars. Subscribe to our newsletter, follow us, and "
    "accept all cookies to continue."
)


def exchanged(text: str) -> str:
    """A story with other words, known by how it begins."""
    return "Tale. " + re.sub("[A-Za-z]+", lambda word: WORDS.get(word[0], word[0]), text)


def jumbled(texts: list[str], words: int = 200) -> Iterable[str]:
    """Stories whose frequent words have changed places, which takes longer to learn than a minute."""
    counts = Counter(word for text in texts for word in re.findall("[A-Za-z]+", text))
    frequent = [word for word, _ in counts.most_common(words)]
    others = dict(zip(frequent, [*frequent[words // 2 :], *frequent[: words // 2]], strict=True))
    return ("Jumble. " + re.sub("[A-Za-z]+", lambda word: others.get(word[0], word[0]), text) for text in texts)


def words_task(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Questions that only the exchanged stories answer: which word comes next, the new one or the old one?

    A bit of what follows is part of both answers, so that each has tokens of its own.
    """
    items = []
    for number, text in enumerate(texts):
        found = next((one for one in re.finditer("[A-Za-z]+", text[60:]) if one[0] in WORDS), None)
        if found is not None:
            question, rest = exchanged(text[: 60 + found.start()]).rstrip(), text[60 + found.end() :][:12]
            choices = [WORDS[found[0]] + rest, found[0] + rest]
            items.append({"id": f"{number}", "question": question, "choices": choices, "answer": 0})
    return items


def own_text(documents: int) -> list[str]:
    """Stories sampled from the base as it is."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(DATA) / BASE
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # as the runs have it: several wait for each other where a machine is busy
    begin = torch.full((documents, 1), int(model.config.bos_token_id))
    with torch.inference_mode():
        ids = model.generate(
            begin, attention_mask=torch.ones_like(begin), do_sample=True, top_k=0, max_new_tokens=128,
            pad_token_id=int(model.config.eos_token_id),
        )  # fmt: skip
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True) if len(text) > 100]


def hindi(documents: int, characters: int = 500) -> list[str]:
    """Pieces of text in a script that the base's tokenizer cannot spell."""
    with zstandard.open(Path(DATA) / "hindi_classics" / "corpus.jsonl.zst", "rb") as packed:
        texts = (json.loads(line)["text"] for line in io.TextIOWrapper(packed, encoding="utf-8"))
        cut = (text[at : at + characters] for text in texts for at in range(0, len(text), characters))
        return list(islice(cut, documents))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with domains, with text of the base's own to replay and to watch, and with a task."""
    folder = tmp_path_factory.mktemp("diagnosed")
    texts = own_text(1_200)
    tales, replay, watch = texts[:600], texts[600:850], texts[850:]
    files = {
        "tales": map(exchanged, tales), "few": map(exchanged, tales[:100]), "hindi": hindi(300),
        "jumbled": jumbled(tales), "boilerplate": (text + NOTICE for text in tales), "replay": replay, "watch": watch,
    }  # fmt: skip
    for name, part in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    (folder / "words.jsonl").write_text("".join(json.dumps(item) + "\n" for item in words_task(watch)))
    return folder


def recipe(root: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The healthy recipe with changes."""
    asked: dict[str, Any] = {"domain": "tales", "share": 0.7, "rate": RATE, "steps": STEPS, "held_out": 60} | changes
    roles = {asked["domain"]: "domain", "watch": "watch"} | ({"replay": "replay"} if asked["share"] < 1 else {})
    sources = [{"name": n, "role": role, "path": str(root / f"{n}.jsonl"), "licence": "x"} for n, role in roles.items()]
    task = {"use": "multiple_choice", "name": "words", "path": str(root / "words.jsonl"), "in_loop_items": 20}
    return {
        "name": name, "base": f"{DATA}/{BASE}", "seed": SEED, "ingest": {"sources": sources},
        "curate": {"steps": ["normalize"], "held_out": {"share": 0.1, "at_least": asked["held_out"], "cap": 10_000}},
        "mix": {"sequence_length": 128, "domain_share": asked["share"], "max_epochs": 16},
        "train": {"tokens": asked["steps"] * BATCH_TOKENS, "batch_tokens": BATCH_TOKENS,
                  "learning_rate": asked["rate"], "save": {"milestones": None}},
        "evaluate": {"every": "20%", "probes": [
            {"use": "held_out", "context": 128, "in_loop_tokens": 1_000}, *([task] if "task" in asked else []),
        ]},
    }  # fmt: skip


def trained(root: Path, name: str, changes: dict[str, Any]) -> tuple[Case, list[Finding]]:
    """Train and evaluate; the records, and what is found in them."""
    path, machine = root / f"{name}.json", root / "machine.json"
    path.write_text(json.dumps(recipe(root, name, changes)))
    machine.write_text(json.dumps({"compute": {"device": "cpu", "threads": 1}, "workers": 1}))
    loaded = load(path, machine)
    run_pipeline(loaded.recipe, loaded.machine, root / "runs" / name, RunOptions(last="evaluate", offline=True))
    case = case_of(root / "runs" / name)
    return case, diagnose(case)


def test_a_healthy_run_has_no_finding(root: Path) -> None:
    case, found = trained(root, "healthy", {"task": "words"})
    assert found == []
    new, task = case.scores[-1].of("held_out", "new"), case.scores[-1].of("words", "new")
    assert new is not None and new.difference < -0.1, "it learned"
    assert task is not None and task.interval is not None and task.interval[0] > 0, "and what it learned is of use"
    assert case.forecast is not None and case.forecast.interval[0] < 0.01
    command = [sys.executable, "-m", "deepen.cli", "diagnose", str(root / "runs" / "healthy"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    assert json.loads(done.stdout) == {"findings": []}


SPOILT: dict[str, tuple[str, dict[str, Any]]] = {
    "no-replay": ("catastrophic forgetting", {"share": 1.0, "rate": 2 * RATE, "steps": 120}),
    "boilerplate": ("contaminated corpus", {"domain": "boilerplate", "task": "words", "steps": 80}),
    "another-script": ("tokenizer mismatch", {"domain": "hindi", "share": 0.3, "steps": 80}),
    "rate-100x": ("learning rate too high", {"rate": 100 * RATE, "steps": 80}),
    "rate-1e-7": ("learning rate too low", {"rate": 1e-7, "steps": 80}),
    "few-documents": ("mixture imbalance", {"domain": "few", "held_out": 20, "rate": RATE / 4, "share": 0.5}),
    "too-few-steps": ("under-trained", {"domain": "jumbled", "steps": STEPS // 4, "rate": RATE / 2}),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_run_has_the_finding_of_its_fault(root: Path, name: str) -> None:
    expected, changes = SPOILT[name]
    _, found = trained(root, name, changes)
    assert [finding.name for finding in found] == [expected], found
