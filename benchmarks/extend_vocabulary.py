"""What more tokens save on text that was not learned from, for real tokenizers and five kinds of text.

Run with DEEPEN_TEST_DATA set. Each corpus is split by document (every tenth is held out); tokens are learned from the
rest. English must stay as it is: a document may change only where a new token stands in it, which is proven for each.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import io
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import zstandard

from deepen.tokenize.vocabulary.base_model import BaseModel
from deepen.tokenize.vocabulary.extend import changes, extended, prove_grown
from deepen.tokenize.vocabulary.growth import grow
from deepen.tokenize.vocabulary.tokenizer import keep_tokenizer

TOKENIZERS = ("qwen2", "llama2")
CORPORA = {
    "medical": "medical_trials_fulltext",
    "legal": "legal_scotus_opinions",
    "Hindi": "hindi_classics",
    "Chinese": "chinese_db_docs",
    "SMILES": "",
}
SIZES = (500, 1_000, 2_000)
NUM_BYTES = 8_000_000
ENGLISH_BYTES = 1_000_000
BAR = 0.25
BARRED = (("qwen2", "Hindi"), ("llama2", "Hindi"), ("llama2", "Chinese"))
QUOTED = (0.10, 0.20)
"""What is often said of a domain's own tokens."""


def main() -> None:
    """Print the table, then PASS or FAIL per bar; exit 1 if one fails."""
    data = Path(os.environ["DEEPEN_TEST_DATA"])
    english = texts_of(data / "gov_web_prose", ENGLISH_BYTES)
    saved: dict[tuple[str, str], dict[int, float]] = {}
    lines: list[tuple[bool, str]] = []
    print("tokenizer  text     tokens before  fertility  " + "  ".join(f"+{size:,}" for size in SIZES) + "  CPU s")
    for tokenizer in TOKENIZERS:
        base = base_of(data / f"tokenizer_{tokenizer}")
        for name, folder in CORPORA.items():
            texts = texts_of(data / folder, NUM_BYTES) if folder else smiles(NUM_BYTES // 4)
            key = (tokenizer, name)
            saved[key], line = measured(base, texts, english, key)
            lines.append(line)
    for tokenizer, name in BARRED:
        share = saved[tokenizer, name][2_000]
        lines.append((share >= BAR, f"{tokenizer} {name}: +2,000 tokens save {share:.1%} held out (bar {BAR:.0%})"))
    for passed, text in lines:
        print(f"{'PASS' if passed else 'FAIL'}: {text}")
    for (tokenizer, name), shares in saved.items():
        share = shares[2_000]
        low, high = QUOTED
        verdict = "less than" if share < low else "more than" if share > high else "within"
        print(f"{tokenizer} {name}: {share:.1%} is {verdict} the often quoted {low:.0%} to {high:.0%}")
    sys.exit(0 if all(passed for passed, _ in lines) else 1)


def measured(
    base: BaseModel, texts: list[str], english: list[str], key: tuple[str, str]
) -> tuple[dict[int, float], tuple[bool, str]]:
    """Share of held-out tokens saved by size; and whether English is as it was."""
    held_out, rest = texts[::10], [text for at, text in enumerate(texts) if at % 10]
    words = sum(len(text.split()) for text in held_out)
    shares: dict[int, float] = {}
    before, started = 0, time.process_time()
    counts = base.count_words(rest)
    for size in SIZES:
        growth = grow(base, counts, size)
        grown = extended(base, growth)
        prove_grown(base, grown, growth.tokens)
        found = changes(base, grown, held_out)
        shares[size], before = 1 - found.tokens_after / found.tokens_before, found.tokens_before
    seconds = time.process_time() - started
    cells = "  ".join(f"{shares[size]:5.1%}" for size in SIZES)
    print(f"{key[0]:<9}  {key[1]:<8} {before:>12,}  {before / words:9.2f}  {cells}  {seconds:5.1f}", flush=True)
    general = changes(base, grown, english)  # raises where a document without a new token changes
    difference = general.tokens_after - general.tokens_before
    text = f"{key[0]} {key[1]}: {general.changed} of {general.documents} English documents hold a new token, "
    return shares, (difference <= 0, text + f"{difference:+,} of {general.tokens_before:,} tokens, no other changes")


def base_of(folder: Path) -> BaseModel:
    """The BPE of a tokenizer folder, as a run keeps it."""
    with tempfile.TemporaryDirectory() as out:
        keep_tokenizer(folder, Path(out), [])
        return BaseModel.read(Path(out) / "tokenizer" / "tokenizer.json")


def texts_of(folder: Path, most_bytes: int) -> list[str]:
    """The first documents of a corpus."""
    texts: list[str] = []
    total = 0
    for line in lines_of(folder):
        texts.append(json.loads(line)["text"])
        total += len(texts[-1].encode())
        if total >= most_bytes:
            break
    return texts


def lines_of(folder: Path) -> Iterator[str]:
    """The lines of a packed corpus."""
    with (
        (folder / "corpus.jsonl.zst").open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as stream,
    ):
        yield from io.TextIOWrapper(stream, encoding="utf-8", newline="\n")


def smiles(num_bytes: int) -> list[str]:
    """Documents of fifty lines of random strings that look like SMILES: chains, branches, rings, charges."""
    source = random.Random(17)
    documents: list[str] = []
    total = 0
    while total < num_bytes:
        documents.append("\n".join(molecule(source) for _ in range(50)) + "\n")
        total += len(documents[-1])
    return documents


def molecule(source: random.Random) -> str:
    """A chain of groups, some of them with a branch."""
    groups = (
        "C", "C", "C", "CC", "O", "N", "C(=O)O", "C(=O)N", "C(C)", "c1ccccc1", "c1ccc(Cl)cc1", "C1CCCCC1", "C1CCNCC1",
        "S(=O)(=O)", "N(C)C", "OC", "C#N", "[N+](=O)[O-]", "c1ccncc1", "C=C", "[C@@H](N)", "[C@H](O)", "F", "Br",
    )  # fmt: skip
    parts = source.choices(groups, k=source.randint(4, 12))
    return "".join(f"({part})" if source.random() < 0.15 and at else part for at, part in enumerate(parts))


if __name__ == "__main__":
    main()
