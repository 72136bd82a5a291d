"""Real files, many of them broken: each ends as documents or as a named reject, and the texts are the right ones."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from deepen.ingest.config import Extraction
from deepen.ingest.files import list_files
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Record
from deepen.ingest.read.table import READERS

pytestmark = pytest.mark.skipif("DEEPEN_TEST_DATA" not in os.environ, reason="needs real messy files")
MESSY = Path(os.environ.get("DEEPEN_TEST_DATA", "")) / "messy_inputs"


def manifest(key):
    """(path, extra) of all files whose entry has ``key``."""
    lines = (MESSY / "manifest.jsonl").read_text().splitlines() if MESSY.is_dir() else []
    entries = [json.loads(line) for line in lines]
    return [(entry["file"], entry["extra"]) for entry in entries if key in entry.get("extra", {})]


def read(path, file_format="auto", **how):
    (file,) = list_files(str(MESSY / path), file_format)
    return list(READERS[file.format](file, Reading(**how))) if file.format else None


def words(text):
    return re.findall(r"\w+", text.lower())


def overlap(text, expected):
    """F1 of word 4-grams."""
    grams = [Counter(zip(*[words(one)[shift:] for shift in range(4)], strict=False)) for one in (text, expected)]
    return 2 * (grams[0] & grams[1]).total() / max(1, grams[0].total() + grams[1].total())


@pytest.mark.parametrize("folder", ["csv", "docx", "html", "jsonl", "pdf", "text"])
def test_every_file_ends_as_documents_or_named_rejects(folder):
    limits, outcomes = Extraction(seconds=60, memory_MB=1000), Counter()
    for file in list_files(str(MESSY / folder)):
        found = read(f"{folder}/{file.location}", limits=limits) or []
        assert found or file.format in (None, "csv", "jsonl"), f"{file.location} vanished"
        outcomes.update("document" if isinstance(item, Record) else item.reason for item in found)
    print(f"\n{folder}: {dict(outcomes)}")
    assert outcomes["document"] > 0 and outcomes["extraction_failed"] + outcomes["extraction_crash"] == 0
    assert outcomes["extraction_timeout"] == 0, "60 CPU seconds are a hundred times what the slowest takes"


@pytest.mark.parametrize(("extractor", "lowest"), [("trafilatura", 0.85), ("resiliparse", 0.9)])
def test_html_extraction_against_the_expected_pages(extractor, lowest):
    from resiliparse.extract.html2text import extract_plain_text

    scores = []
    for path, extra in manifest("expected"):
        (record,) = read(path, extractor=extractor)
        expected = extract_plain_text((MESSY / "html" / extra["expected"]).read_text(), alt_texts=False)
        scores.append(overlap(record.values["text"], expected))
    print(f"\n{extractor}: F1 {sum(scores) / len(scores):.3f} over {len(scores)} pages, lowest {min(scores):.2f}")
    assert sum(scores) / len(scores) >= lowest


@pytest.mark.parametrize(("extractor", "kept", "left"), [("trafilatura", 0.95, 0.10), ("resiliparse", 0.95, 0.30)])
def test_html_extraction_keeps_and_leaves_what_it_should(extractor, kept, left):
    hits, misses = [], []
    for path, extra in manifest("with"):
        (record,) = read(path, extractor=extractor)
        text = " ".join(record.values["text"].split())
        hits += [" ".join(wanted.split()) in text for wanted in extra["with"]]
        misses += [" ".join(unwanted.split()) in text for unwanted in extra["without"]]
    print(f"\n{extractor}: keeps {sum(hits)}/{len(hits)}, leaves in {sum(misses)}/{len(misses)} that do not belong")
    assert sum(hits) >= kept * len(hits) and sum(misses) <= left * len(misses)


@pytest.mark.parametrize(("path", "extra"), manifest("password"), ids=[path for path, _ in manifest("password")])
def test_encrypted_pdfs_open_with_their_password_only(path, extra):
    if extra["password"].get("user") != "":  # an owner's password alone locks changes, not reading
        assert read(path, passwords=("wrong",))[0].reason == "encrypted"
    (found,) = read(path, passwords=("wrong", *extra["password"].values()))
    assert isinstance(found, Record) or found.reason == "no_text_layer"


def test_encodings_against_their_names():
    right = 0
    cases = manifest("encoding")
    for path, extra in cases:
        (found,) = read(path, "text")
        data, parts = (MESSY / path).read_bytes(), extra["encoding"].split("-")
        names = ["-".join(parts[:number]) for number in range(len(parts), 0, -1)]
        text = found.values["text"] if isinstance(found, Record) else None
        right += text is not None and any(text == _decoded(data, name) for name in names)
    print(f"\nencodings: {right} of {len(cases)} files read as their label says")
    assert right >= 0.95 * len(cases)


def _decoded(data, name):
    try:
        return data.decode(name).removeprefix("\ufeff")
    except (LookupError, UnicodeDecodeError):
        return None
