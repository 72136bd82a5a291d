"""What the benchmarks of curation share: the test corpora, and the list of claims that failed."""

from __future__ import annotations

import io
import json
import os
from itertools import islice
from pathlib import Path

import zstandard

from deepen.formats.documents.documents import Document, content_hash, document_id

DATA = Path(os.environ.get("DEEPEN_TEST_DATA", "."))
PROSE = ("gov_web_prose", "web_mix_small", "medical_trials_fulltext", "medical_qa_nih", "english_novels")
PROBES = ("boolq", "hellaswag", "pubmedqa", "mmlu_redux", "openbookqa", "gsm8k", "triviaqa_small", "arc_challenge")

failures: list[str] = []


def verdict(what: str, holds: bool) -> None:
    """Print whether a claim holds, and remember it if not."""
    print(f"{'PASS' if holds else 'FAIL'}  {what}", flush=True)
    if not holds:
        failures.append(what)


def texts_of(name: str, most: int | None = None) -> list[str]:
    """Texts of one of the test corpora."""
    path = DATA / name / "corpus.jsonl"
    packed = path.with_suffix(".jsonl.zst")
    with (path if path.exists() else packed).open("rb") as file:
        stream = file if path.exists() else zstandard.ZstdDecompressor().stream_reader(file)
        lines = io.TextIOWrapper(stream, encoding="utf-8", newline="\n")
        return [json.loads(line)["text"] for line in islice(lines, most)]


def document(text: str, number: int = 0) -> Document:
    """A text as a document."""
    return Document(document_id("s", str(number)), text, "s", content_hash=content_hash(text))
