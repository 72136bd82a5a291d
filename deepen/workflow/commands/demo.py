"""The built-in example: no downloads, real text, real numbers, a few minutes on two cores.

Its text is what Python has already put on the disk: package descriptions and the language reference as general
English, the standard library's source as the domain. A tiny base is pretrained from random weights on half of the
English, then continued on the code with replay; the other half of the English is only watched.
"""

from __future__ import annotations

import json
import re
import sysconfig
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from deepen.formats.files.atomic import write_bytes
from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact
from deepen.formats.training.said import said
from deepen.formats.training.scores import Score
from deepen.progress import say
from deepen.recipe.reading import load
from deepen.workflow.run import RunOptions, run_pipeline

_ENGLISH_BYTES = 1_200_000
_CODE_BYTES = 2_000_000
_MOST_OF_ONE_PACKAGE = 40_000

_BASE = """\
name: demo-base
base: {{init: random, architecture: llama, hidden_size: 128, layers: 4, heads: 4, kv_heads: 2, intermediate_size: 384,
       max_length: 256}}
ingest:
  sources:
    - {{name: english, role: domain, path: {data}/english_trained.jsonl, text: text, licence: various}}
curate: {{held_out: {{share: 5%, at_least: 30 documents, cap: 30k tokens}}}}
tokenize: {{vocabulary: {{train: 2048}}}}
mix: {{sequence_length: 256, max_epochs: 16}}
train:
  tokens: 1.6M tokens
  batch_tokens: 2048
  learning_rate: 3e-3
  schedule: {{use: wsd, warmup: 5%, decay: 20%}}
  save: {{milestones: null}}
evaluate: {{every: 50%, probes: [{{use: held_out, in_loop_tokens: 5000}}]}}
"""

_DOMAIN = """\
name: {name}
base: {{run: {runs}/demo-base}}
ingest:
  sources:
    - {{name: python, role: domain, path: {data}/python.jsonl, text: text, licence: PSF-2.0}}
    - {{name: english, role: replay, path: {data}/english_trained.jsonl, text: text, licence: various}}
    - {{name: unseen_english, role: watch, path: {data}/english_unseen.jsonl, text: text, licence: various}}
curate:   # English that the base never saw stays held out
  held_out: {{share: 5%, at_least: 30 documents, cap: 30k tokens, from: {runs}/demo-base}}
mix: {{sequence_length: 256, domain_share: {domain_share}, max_epochs: 8}}
train:
  tokens: 500k tokens
  batch_tokens: 2048
  learning_rate: 1e-3
  schedule: {{use: cosine, warmup: 2%, floor: 0.1x}}
  save: {{milestones: null}}
evaluate:
  every: 20%
  probes: [{{use: held_out, in_loop_tokens: 5000}}]
  forgetting: {{budget: 3%}}
"""


def run_demo(runs: Path, *, compare: bool) -> list[str]:
    """Run the example under ``runs`` and return a summary for people; ``compare`` adds a run without replay."""
    data = runs / "demo-data"
    write_corpus(data)
    _run(runs, "demo-base", _BASE.format(data=data))
    values: dict[str, Any] = {"data": data, "runs": runs}
    lines = _describe("demo", _run(runs, "demo", _DOMAIN.format(name="demo", domain_share=0.7, **values)))
    if compare:
        text = _DOMAIN.format(name="demo-no-replay", domain_share=1.0, **values)
        lines += _describe("demo-no-replay", _run(runs, "demo-no-replay", text))
    return lines


def _run(runs: Path, name: str, recipe_text: str) -> dict[str, Artifact]:
    say(f"--- {name} ---")
    recipe_path = runs / "demo-data" / f"{name}.yaml"
    write_bytes(recipe_path, recipe_text.encode())
    loaded = load(recipe_path)
    return run_pipeline(loaded.recipe, loaded.machine, runs / name, RunOptions(offline=True))


def _describe(name: str, artifacts: dict[str, Artifact]) -> list[str]:
    """What was gained and kept at the last checkpoint, and what was chosen, in two or three lines."""
    last = list(read_records(artifacts["evaluate"].path / "scores.jsonl"))[-1]
    lines = [f"{name}, after {last['step']} steps:"]
    for score in last["scores"]:
        if score["interval"]:
            change = f"{score['baseline']:.3f} -> {score['value']:.3f} {score['unit']}"
            interval = said(Score.model_validate(score, strict=False), digits=1)
            lines.append(f"  {score['ability']:<4} {score['probe']:<26} {change}  {interval}")
    export = artifacts["export"]
    lines.append(
        f"  exported to {export.path}; largest logit difference {export.counts['largest_logit_difference']:.2g}"
    )
    return lines


def write_corpus(folder: Path) -> None:
    """Write the example's corpus: two halves of the English and the code, capped and sorted, so that runs are alike."""
    english = list(_english())
    _write(folder / "english_trained.jsonl", english[0::2], _ENGLISH_BYTES // 2)
    _write(folder / "english_unseen.jsonl", english[1::2], _ENGLISH_BYTES // 2)
    _write(folder / "python.jsonl", _code(), _CODE_BYTES)


def _write(path: Path, documents: Any, most_bytes: int) -> None:
    lines, num_bytes = [], 0
    for name, text in documents:
        num_bytes += len(text.encode())
        if num_bytes > most_bytes:
            break
        lines.append(json.dumps({"name": name, "text": text}, ensure_ascii=False) + "\n")
    write_bytes(path, "".join(lines).encode())


def _english() -> Iterator[tuple[str, str]]:
    """Descriptions of installed packages, cut at headings, and the topics of the language reference."""
    pieces: dict[str, str] = {}
    for distribution in metadata.distributions():
        prose = clean_description(str(distribution.metadata.json.get("description", "")))[:_MOST_OF_ONE_PACKAGE]
        for index, piece in enumerate(_pieces(prose)):
            pieces[f"{distribution.metadata['Name']}:{index:03d}"] = piece
    for topic, text in _topics().items():
        for index, piece in enumerate(_pieces(text)):
            pieces[f"python topic {topic}:{index:03d}"] = piece
    yield from sorted(pieces.items(), key=lambda item: item[0].lower())


def _topics() -> dict[str, str]:
    """The language reference that `help()` prints, where this Python has it."""
    try:
        return dict(import_module("pydoc_data.topics").topics)
    except ImportError:
        return {}


def _pieces(text: str, length: int = 1_500) -> Iterator[str]:
    """Cut at blank lines into pieces of about ``length`` characters, so that there are enough documents to hold out."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > length:
            yield piece
            piece = ""
        piece += paragraph.strip("\n") + "\n\n"
    if len(piece) > 200:
        yield piece


_BADGE = re.compile(r"^\s*(\[?!\[|\.\. image::|\.\. \||:target:|:alt:|<img|<a |</a>|<p|</p>|\|).*$", re.MULTILINE)
_TAG = re.compile(r"<[^>\n]{1,300}>")


def clean_description(text: str) -> str:
    """Package description without badges, tags, link targets and what follows a licence heading."""
    text = re.split(r"^#*\s*(?:the mit )?licen[cs]e\b.*$", text, maxsplit=1, flags=re.MULTILINE | re.IGNORECASE)[0]
    text = _TAG.sub("", _BADGE.sub("", text))
    text = re.sub(r"\]\([^)\s]+\)", "]", text)
    return re.sub(r"\n{3,}", "\n\n", text)


def _code() -> Iterator[tuple[str, str]]:
    """Modules of the standard library without its tests, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings"} & set(inside.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if 500 < len(text) < 60_000:
            yield inside.as_posix(), text
