"""The search for test items in trained documents: agrees with `decontaminate`, speed, memory flat in documents.

`python benchmarks/contamination.py`; needs DEEPEN_TEST_DATA. Speeds are of CPU time. Each bar prints PASS or FAIL,
and the exit code says whether all passed.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from curate_corpora import DATA, PROBES, document, failures, texts_of, verdict

from deepen.curate.contamination.decontaminate import Decontaminate
from deepen.curate.contamination.scan import TrainedDocuments, scan_documents
from deepen.curate.step import Drop
from deepen.evaluate.items.files import Item, Layout, read_items
from deepen.formats.documents.documents import write_documents
from deepen.formats.documents.found_items import Found, ProbeItem
from deepen.formats.workers import Workers

CORPORA = ("gov_web_prose", "web_mix_small", "medical_qa_nih")
_MOST_GROWTH = 1.15


def items() -> list[ProbeItem]:
    """All items of the test data."""
    found = []
    for name in PROBES:
        for path in sorted((DATA / f"eval_{name}").glob("*.jsonl*")):
            read = read_items(path, Layout(name), lambda row: Item("", "", ""))
            found += [ProbeItem(name, path.stem, item.id, item.texts) for item in read if item.reason is None]
    return found


def scanned(folder: Path, copies: int) -> tuple[Found, float, int, float]:
    """What is found in so many copies of the corpora; CPU seconds of a second search, bytes of text, peak in MB."""
    asked, size, texts = items(), 0, [text for name in CORPORA for text in texts_of(name)]
    for part in range(copies):
        rows = (document(text, part * len(texts) + n) for n, text in enumerate(texts))
        write_documents(folder / "documents" / f"s-{part:05d}.parquet", rows, folder)
        size += sum(len(text.encode()) for text in texts)
    documents = TrainedDocuments(folder / "documents", "benchmark")
    scan_documents(asked, folder / "warm", documents=documents, workers=Workers())  # compiles, builds the index
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    started = time.process_time()
    found = scan_documents(asked, folder / "scratch", documents=documents, workers=Workers())
    seconds = time.process_time() - started
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return found, seconds, size, int(peak.split()[1]) / 1024


def agreement(folder: Path) -> None:
    """An item is found in a document if and only if `decontaminate` drops it."""
    texts = [text for name in CORPORA for text in texts_of(name)]
    files = [str(path) for name in PROBES for path in sorted((DATA / f"eval_{name}").glob("*.jsonl*"))]
    step = Decontaminate(against=tuple(files))
    dropped = {own.id for n, text in enumerate(texts) if isinstance(step.apply(own := document(text, n)), Drop)}
    found, *_ = scanned(folder, 1)
    named = {name for hit in found.hits for name in hit.first}
    print(f"{len(items()):,} items, {len(texts):,} documents: {len(found.hits)} items found, {len(dropped)} documents")
    verdict("the documents named by the search are among those that decontaminate drops", named <= dropped)
    few = all(hit.documents <= len(hit.first) for hit in found.hits)
    verdict("and are all of them, unless an item is in more than it names", named == dropped or not few)


def main() -> None:
    """Run all; with a number, search so many copies and print what came out."""
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            _, seconds, size, peak = scanned(Path(folder), int(sys.argv[1]))
            print(seconds, size, peak)
            return
        agreement(Path(folder))
    peaks = []
    for copies in (1, 4):
        done = subprocess.run([sys.executable, __file__, str(copies)], capture_output=True, text=True, check=True)
        seconds, num_bytes, megabytes = map(float, done.stdout.split())
        peaks.append(megabytes)
        speed = num_bytes / 1e6 / seconds
        print(
            f"{num_bytes / 1e6:.0f} MB of text in one process: {speed:.1f} MB per CPU second, peak {megabytes:,.0f} MB"
        )
    growth = max(later / earlier for earlier, later in pairwise(peaks))
    verdict(f"memory flat: {growth:.2f} times for 4 times the documents", growth < _MOST_GROWTH)
    if failures:
        sys.exit(f"{len(failures)} claims do not hold")


if __name__ == "__main__":
    main()
