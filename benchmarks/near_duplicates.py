"""Near-duplicates: recall and precision on planted pairs of real text, CPU time against datasketch and Daft, memory.

Needs DEEPEN_TEST_DATA and, for the comparison, `pip install datasketch daft`. Truth is computed here in plain Python
(sets of word tuples), independently of the code under test: recall over planted pairs whose true similarity is at least
0.8 (found: one of the two is dropped), precision over all drops (the named document truly reaches 0.8). Times are CPU
seconds of one process on one core, medians over rounds in which all systems take turns; from texts in memory to drops.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

ENGLISH = (
    "english_novels", "gutenberg_and_speeches", "gov_web_prose", "web_mix_small", "wikitext2_eval",
    "medical_trials_fulltext", "medical_qa_nih", "legal_scotus_opinions",
)  # fmt: skip
OTHERS = {"chinese": ("chinese_db_docs", "chinese_classical"), "hindi": ("hindi_classics", "hindi_modern_small")}
EVERY_WORD = re.compile(r"[^\W_]+")
EVERY_CHARACTER = re.compile(r"[⺀-⻿㐀-䶿一-鿿豈-﫿𠀀-𿿿]|[A-Za-z0-9]+")
BETWEEN_HINDI = re.compile(r"[\s!-/:-@\[-`{-~।॥‘’“”–—…॰]+")
LEAST_RECALL, LEAST_RECALL_LOW, LEAST_PRECISION, LEAST_SPEED_UP, MOST_GROWTH = 0.975, 0.93, 0.99, 10.0, 1.5

Result = dict[str, Any]


def words_of(text: str, language: str) -> list[str]:
    """The words of a text as a reader would tell them, without regard to case and punctuation."""
    if language == "hindi":
        return [word for word in BETWEEN_HINDI.split(text.lower()) if word]
    return (EVERY_CHARACTER if language == "chinese" else EVERY_WORD).findall(text.lower())


def true_similarity(first: str, second: str, language: str) -> float:
    """Jaccard similarity of the two sets of 5-word tuples."""
    one, other = (_shingles(words_of(text, language)) for text in (first, second))
    return len(one & other) / len(one | other)


def _shingles(words: list[str]) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(5)), strict=False)) or {tuple(words)}


def read_corpus(name: str) -> Iterator[str]:
    """Texts of one corpus of the test data."""
    folder = Path(os.environ["DEEPEN_TEST_DATA"]) / name
    path = next(path for path in (folder / "corpus.jsonl", folder / "corpus.jsonl.zst") if path.is_file())
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    for line in data.split(b"\n"):
        if line:
            yield json.loads(line)["text"]


def pieces(language: str, generator: random.Random) -> Iterator[str]:
    """Real documents cut into stretches of 120 to 800 words (Chinese: 200 to 1,200 characters)."""
    for name in ENGLISH if language == "english" else OTHERS[language]:
        for text in read_corpus(name):
            parts = list(text) if language == "chinese" else text.split()
            start = 0
            while start < len(parts):
                size = generator.randint(200, 1200) if language == "chinese" else generator.randint(120, 800)
                yield ("" if language == "chinese" else " ").join(parts[start : start + size])
                start += size


def edited(text: str, num_edits: int, language: str, generator: random.Random) -> str:
    """The text with words (in Chinese characters) substituted, deleted and inserted."""
    parts = list(text) if language == "chinese" else text.split()
    for _ in range(num_edits):
        place, new = generator.randrange(len(parts)), parts[generator.randrange(len(parts))]
        kind = generator.random()
        parts[place : place + (kind < 0.6)] = [new] if kind < 0.4 or kind >= 0.6 else []
    return ("" if language == "chinese" else " ").join(parts)


def copy_of(text: str, wanted: float, language: str, generator: random.Random) -> tuple[str, float] | None:
    """An edited copy whose true similarity is within 0.015 of what is wanted (and in [0.8, 1)), if one is found."""
    num_edits = len(words_of(text, language)) * (1 - wanted) / (5 * (1 + wanted))
    for _ in range(5):
        copy = edited(text, max(1, round(num_edits)), language, generator)
        similarity = true_similarity(text, copy, language)
        if abs(similarity - wanted) <= 0.015 and 0.8 <= similarity < 1:
            return copy, similarity
        num_edits *= (1 - wanted) / max(0.005, 1 - similarity)
    return None


def plant(path: Path, language: str, num_pairs: int) -> list[tuple[int, int, float]]:
    """Write the corpus with planted copies to ``path``; returns (row, row, true similarity) of the pairs."""
    generator = random.Random(17)
    texts = [text for text in pieces(language, generator) if len(words_of(text, language)) >= 60]
    planted: list[tuple[str, int, float]] = []
    for original in generator.sample(range(len(texts)), len(texts)):
        wanted = generator.uniform(0.8, 1.0)
        while (found := copy_of(texts[original], wanted, language, generator)) is None:
            wanted = generator.uniform(0.8, 1.0)
        planted.append((found[0], original, found[1]))
        if len(planted) == num_pairs:
            break
    num_originals = len(texts)
    rows = list(range(num_originals + len(planted)))
    generator.shuffle(rows)  # rows[i]: where text i goes
    shuffled = [""] * len(rows)
    for number, text in enumerate([*texts, *(copy for copy, _, _ in planted)]):
        shuffled[rows[number]] = text
    path.write_text(json.dumps(shuffled))
    return [(rows[original], rows[num_originals + n], value) for n, (_, original, value) in enumerate(planted)]


def deepen_drops(texts: Sequence[str], folder: Path) -> list[tuple[int, int]]:
    """Ours: signatures to disk, pairs by bands, exact verification, clusters, the best kept. Hashes of contents, which
    serve exact duplicates only, are left out."""
    from deepen.curate.duplicates.near_duplicates import NearDuplicates
    from deepen.curate.duplicates.pairs import SIMILARITY, PairPart, find_pairs, pair_parts
    from deepen.curate.duplicates.signatures import Signer
    from deepen.curate.passes.corpus import PartFiles, open_corpus
    from deepen.formats.documents.documents import Document, table_of
    from deepen.formats.files.atomic import writing

    files = PartFiles(folder, "s-00000")
    with writing(files.shingles) as shingles:
        signer = Signer(shingles)
        for first in range(0, len(texts), 1000):
            own = enumerate(texts[first : first + 1000], start=first)
            signer.sign(table_of([Document(f"{n:032x}", text, "s", content_hash="0" * 32) for n, text in own]))
        signer.save(files)
    (folder / "parts.txt").write_text(files.name)
    template = PairPart(str(folder), str(folder / "parts.txt"), 0, 0, 0, 1, SIMILARITY, SIMILARITY, "")
    work = pair_parts(len(texts), template)
    for part in work:
        find_pairs(part)
    corpus = open_corpus([(0, files)], [part.path for part in work])
    drops = NearDuplicates().apply(corpus, np.ones(len(texts), dtype=np.bool_))
    assert drops.kept is not None
    return list(zip(drops.documents.tolist(), drops.kept.tolist(), strict=True))


def datasketch_drops(texts: Sequence[str], folder: Path) -> list[tuple[int, int]]:
    """datasketch at its best: bulk MinHash of its newest scheme with a fast hash, LSH of 16 bands, no verification."""
    from datasketch import MinHash, MinHashLSH

    del folder
    index = MinHashLSH(num_perm=128, params=(16, 8))
    words = (list(map(str.encode, EVERY_WORD.findall(text.lower()))) for text in texts)
    sets = (set(map(b" ".join, zip(*(own[start:] for start in range(5)), strict=False))) for own in words)
    drops = []
    for row, sketch in enumerate(MinHash.generator(sets, num_perm=128, hashfunc=xxhash.xxh32_intdigest)):
        found = index.query(sketch)
        if found:
            drops.append((row, min(found)))
        index.insert(row, sketch)
    return drops


def daft_drops(texts: Sequence[str], folder: Path) -> list[tuple[int, int]]:
    """Daft's `minhash` with its fastest hash, then the same bands in numpy; no verification."""
    import daft
    from daft.functions import minhash

    del folder
    column = minhash(daft.col("text"), num_hashes=128, ngram_size=5, hash_function="xxhash")
    frame = daft.from_pydict({"text": list(texts)}).select(column.alias("signature"))
    table = frame.to_arrow()["signature"].combine_chunks()
    values = table.flatten().to_numpy().reshape(len(texts), 128)
    return _lsh(values)


def _lsh(values: npt.NDArray[np.uint32]) -> list[tuple[int, int]]:
    """Earlier document with an equal band, for every document that has one."""
    first = np.arange(len(values))
    for band in range(16):
        keys = np.ascontiguousarray(values[:, 8 * band : 8 * band + 8]).view("V32").ravel()
        _, firsts, inverse = np.unique(keys.view("S32"), return_index=True, return_inverse=True)
        first = np.minimum(first, firsts[inverse])
    return [(row, int(other)) for row, other in enumerate(first) if other < row]


SYSTEMS: dict[str, Callable[[Sequence[str], Path], list[tuple[int, int]]]] = {
    "deepen": deepen_drops,
    "datasketch": datasketch_drops,
    "daft": daft_drops,
}


def measure(system: str, path: Path) -> Result:
    """One system on one corpus in this process, on one core: drops and CPU seconds, imports and compilation aside."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = json.loads(path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        warm_up = [" ".join(f"{a}{n % 7}" for a in "abcdefghij") + f" {n % 3}" for n in range(30)]
        SYSTEMS[system](warm_up, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        drops = SYSTEMS[system](texts, Path(folder))
        seconds = time.process_time() - started
    return {"seconds": seconds, "drops": drops}


def measure_memory(folder: Path) -> Result:
    """Peak resident memory of the whole curate stage on the document files of ``folder``, in this process alone."""
    from deepen.curate.config import CurateConfig
    from deepen.curate.stage import curate
    from deepen.formats.manifest import StageJob, open_artifact

    artifact = open_artifact(folder / "ingest")
    assert artifact is not None
    config = CurateConfig.model_validate({"steps": ["exact_duplicates", "near_duplicates"]})
    counts = curate(config, StageJob(folder / "curate", "f", {"ingest": artifact})).counts
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    return {
        "peak": peak,
        "documents": counts["sources"]["s"]["documents_in"],
        "drops": counts["sources"]["s"]["dropped"],
    }


def write_ingested(folder: Path, texts: Sequence[str], copies: int) -> None:
    """The corpus ``copies`` times over as a finished ingest; each time words in another order, so all is new text."""
    from deepen.curate.config import CurateConfig
    from deepen.formats.documents.documents import Document, content_hash, document_id, write_documents
    from deepen.formats.files.atomic import FileEntry
    from deepen.formats.manifest import StageJob, finish_stage

    def documents() -> Iterator[Document]:
        for copy in range(copies):
            for row, text in enumerate(texts):
                words = text.split(" ")
                text = " ".join(word for start in range(copy + 1) for word in words[start :: copy + 1])
                yield Document(document_id("s", f"{copy}:{row}"), text, "s", content_hash=content_hash(text))

    out = folder / "ingest"
    files: list[FileEntry] = []
    stream = documents()
    while group := list(islice(stream, 15_000)):
        files.append(write_documents(out / f"documents/s-{len(files):05d}.parquet", group, out)[0])
    counts = {"sources": {"s": {"role": "domain", "licence": None, "documents": copies * len(texts)}}}
    job = StageJob(out, "f")
    finish_stage(job, stage="ingest", format_number=1, config=CurateConfig(), files=files, counts=counts)


def _apart(*arguments: str) -> Result:
    """``measure`` or ``measure_memory`` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def judge(
    texts: Sequence[str], planted: Sequence[tuple[int, int, float]], drops: Sequence[Sequence[int]], language: str
) -> Result:
    """Recall overall and by similarity, precision over all drops."""
    gone = {row for row, _ in drops}
    found = [(value, first in gone or second in gone) for first, second, value in planted]
    bins = {}
    for low, high in pairwise((0.8, 0.85, 0.9, 0.95, 1.0)):
        inside = [hit for value, hit in found if low <= value < high]
        bins[f"{low:.2f}-{high:.2f}"] = (sum(inside) / len(inside), len(inside))
    right = [true_similarity(texts[row], texts[other], language) >= 0.8 for row, other in drops]
    recall = sum(hit for _, hit in found) / len(found)
    return {"recall": recall, "precision": sum(right) / len(right), "bins": bins, "drops": len(drops)}


def _print_quality(name: str, result: Result) -> None:
    bins = ", ".join(f"{name} {recall:.3f} of {number}" for name, (recall, number) in result["bins"].items())
    print(f"  {name:<11} recall {result['recall']:.4f}  precision {result['precision']:.4f}  drops {result['drops']}")
    print(f"{'':14}recall by similarity: {bins}", flush=True)


def measure_language(language: str, num_pairs: int, rounds: int, folder: Path) -> Result:
    """Quality of all systems (English) or ours, and CPU seconds of each round."""
    path = folder / f"{language}.json"
    planted = plant(path, language, num_pairs)
    texts = json.loads(path.read_text())
    num_bytes = sum(len(text.encode()) for text in texts)
    print(f"{language}: {len(texts):,} documents, {num_bytes / 1e6:.1f} MB, {len(planted):,} planted pairs", flush=True)
    systems = [name for name in SYSTEMS if name == "deepen" or (language == "english" and find_spec(name) is not None)]
    seconds: dict[str, list[float]] = {system: [] for system in systems}
    quality: Result = {}
    for number in range(rounds if language == "english" else 1):
        for system in systems[number % len(systems) :] + systems[: number % len(systems)]:
            done = _apart("--measure", system, str(path))
            seconds[system].append(done["seconds"])
            if system not in quality:
                quality[system] = judge(texts, planted, done["drops"], language)
                _print_quality(system, quality[system])
    return {"quality": quality, "seconds": seconds, "bytes": num_bytes, "texts": texts}


def _print_speed(result: Result) -> dict[str, float]:
    ours = result["seconds"]["deepen"]
    ratios = {}
    for system, seconds in result["seconds"].items():
        ratios[system] = statistics.median(theirs / own for theirs, own in zip(seconds, ours, strict=True))
        middle = statistics.median(seconds)
        speed = result["bytes"] / middle / 1e6
        print(f"  {system:<11} {middle:8.2f} CPU-s  {speed:7.1f} MB/CPU-s  takes {ratios[system]:6.1f} times ours")
    return ratios


def _memory_growth(texts: Sequence[str], folder: Path) -> float:
    peaks = []
    for copies in (1, 10):
        own = folder / f"memory-{copies}"
        write_ingested(own, texts, copies)
        done = _apart("--memory", str(own))
        peaks.append(done["peak"])
        print(f"  {done['documents']:>9,} documents: peak {done['peak'] / 1e6:,.0f} MB resident, drops {done['drops']}")
    return float(peaks[1] / peaks[0])


def main() -> int:
    """Measure and print one PASS or FAIL per bar; the exit code is 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the speed comparison")
    parser.add_argument("--pairs", type=int, default=4000, help="planted pairs of the English corpus")
    parser.add_argument("--measure", nargs=2, metavar=("SYSTEM", "FILE"), help="only run one system")
    parser.add_argument("--memory", type=Path, metavar="FOLDER", help="only run the stage and print its peak memory")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return 0
    if arguments.memory:
        print(json.dumps(measure_memory(arguments.memory)))
        return 0
    if "DEEPEN_TEST_DATA" not in os.environ:
        parser.error("set DEEPEN_TEST_DATA to the folder of the test corpora")
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        others = {name: measure_language(name, 500, 1, folder)["quality"]["deepen"] for name in OTHERS}
        english = measure_language("english", arguments.pairs, arguments.rounds, folder)
        ratios = _print_speed(english)
        growth = _memory_growth(english["texts"], folder)
    own = english["quality"]["deepen"]
    bars = [
        ("recall of pairs of 0.8 and more", own["recall"], ">=", LEAST_RECALL),
        ("recall of pairs in [0.80, 0.85)", own["bins"]["0.80-0.85"][0], ">=", LEAST_RECALL_LOW),
        ("precision", own["precision"], ">=", LEAST_PRECISION),
        ("memory with ten times the documents", growth, "<", MOST_GROWTH),
    ]
    for name, least in (("datasketch", LEAST_SPEED_UP), ("daft", 1.0)):
        if name in ratios:
            bars.append((f"CPU time of {name} over ours", ratios[name], ">=", least))
        else:
            print(f"not compared: {name} is not installed")
    for name, quality in others.items():
        bars.append((f"recall, {name}", quality["recall"], ">=", LEAST_RECALL))
        bars.append((f"precision, {name}", quality["precision"], ">=", LEAST_PRECISION))
    passed = [value >= bar if sign == ">=" else value < bar for _, value, sign, bar in bars]
    for (name, value, sign, bar), good in zip(bars, passed, strict=True):
        print(f"{'PASS' if good else 'FAIL'}  {name}: {value:.4g} ({sign} {bar})")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
