"""Curation rules: speed, growth, extremes, agreement with datatrove, and what planted material says of their judgement.

Needs DEEPEN_TEST_DATA. Speeds are CPU seconds of one process, medians of three. ``--datatrove PYTHON`` names an
interpreter that has datatrove and spaCy, for the agreement rule by rule. Every section prints PASS or FAIL.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
import json
import random
import re
import resource
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from curate_corpora import DATA, PROBES, PROSE, document, failures, texts_of, verdict
from curate_planted import decontamination, planted

from deepen.curate.batch.columns import batches_of
from deepen.curate.batch.text_facts import Words, lines_of, words_of
from deepen.curate.config import CurateConfig
from deepen.curate.contamination.decontaminate import Decontaminate
from deepen.curate.kernels.words import count_words, describe_word
from deepen.curate.passes.chain import apply_to_batch
from deepen.curate.passes.corpus import save_array
from deepen.curate.passes.surveys import surveyed
from deepen.curate.rules.boilerplate_lines import BoilerplateLines
from deepen.curate.rules.c4 import C4
from deepen.curate.rules.fineweb import FineWeb
from deepen.curate.rules.gopher_quality import GopherQuality
from deepen.curate.rules.gopher_repetition import GopherRepetition
from deepen.curate.rules.language import Language
from deepen.curate.rules.length import LengthStep
from deepen.curate.rules.normalize import Normalize, normalized
from deepen.curate.stage import curate
from deepen.curate.step import Applies, DocumentStep
from deepen.formats.documents.documents import Document, table_of, write_documents
from deepen.formats.manifest import Artifact, StageJob, finish_stage

PARITY = {
    "gov_web_prose": 500, "web_mix_small": 600, "medical_trials_fulltext": 130, "medical_qa_nih": 430,
    "wikitext2_eval": 100, "legal_scotus_opinions": 120, "sql_questions": 100, "gutenberg_and_speeches": 20,
}  # fmt: skip
LEAST_TOGETHER, LEAST_CHAIN, LEAST_AGREEMENT, MOST_GROWTH = 60.0, 5.0, 0.99, 1.2
MOST_SECONDS_TINY, MOST_MEGABYTES_LINE = 40, 2500
RULES: tuple[DocumentStep, ...] = (GopherQuality(), GopherRepetition(), FineWeb(), C4())


def cpu_seconds(work: Callable[[], object]) -> float:
    """Median of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def speed() -> None:
    """MB/s per step and for the rules together, on documents of several kinds."""
    documents = [document(normalized(text)) for name in PROSE for text in texts_of(name)]
    megabytes = sum(len(item.text.encode()) for item in documents) / 1e6
    items = [str(path) for name in PROBES for path in sorted((DATA / f"eval_{name}").glob("*.jsonl*"))]
    steps: dict[str, Sequence[Applies]] = {
        "normalize": (Normalize(),), "length": (LengthStep(),), "gopher_quality": RULES[:1],
        "gopher_repetition": RULES[1:2], "fineweb": RULES[2:3], "c4": RULES[3:], "rules together": RULES,
        "decontaminate": (Decontaminate(against=tuple(items)),), "language": (Language(),),
    }  # fmt: skip
    print(f"speed on {megabytes:.1f} MB of English in {len(documents)} documents, one core, Arrow to Arrow")
    tables = [table_of(documents[first : first + 1000]) for first in range(0, len(documents), 1000)]
    results = {}
    for name, chain in steps.items():
        run_chain(chain, tables[:1])  # compiles
        results[name] = megabytes / cpu_seconds(lambda chain=chain: run_chain(chain, tables))  # type: ignore[misc]
        print(f"  {name:18} {results[name]:8.1f} MB/s")
    survey = BoilerplateLines()
    with tempfile.TemporaryDirectory() as folder:
        found = survey.batch_keys(next(batches_of(tables[0])))
        save_array(Path(folder) / "s.found.npy", np.unique(found)[::100])
        chain = (surveyed(survey, folder),)
        run_chain(chain, tables[:1])
        keys = cpu_seconds(lambda: [survey.batch_keys(batch) for table in tables for batch in batches_of(table)])
        seconds = keys + cpu_seconds(lambda: run_chain(chain, tables))
    print(f"  {'boilerplate_lines':18} {megabytes / seconds:8.1f} MB/s")
    verdict(
        f"rules together {results['rules together']:.1f} >= {LEAST_TOGETHER} MB/s",
        results["rules together"] >= LEAST_TOGETHER,
    )


def run_chain(chain: Sequence[Applies], tables: Sequence[pa.Table]) -> None:
    """Every step on every document, those that another step would drop too; then the columns that come out."""
    for table in tables:
        for batch in batches_of(table):
            for step in chain:
                apply_to_batch((step,), batch)
                batch.alive[:] = True
            batch.kept()


def write_corpus(folder: Path, texts: Iterable[str]) -> Artifact:
    """A finished ingest stage of one source, in parts of about 8 MB."""
    files, number, part, size = [], 0, [], 0  # type: ignore[var-annotated]
    for text in texts:
        part.append(document(text, number))
        number, size = number + 1, size + len(text)
        if size > 8_000_000:
            files.append(write_documents(folder / f"documents/s-{len(files):05d}.parquet", part, folder)[0])
            part, size = [], 0
    files.append(write_documents(folder / f"documents/s-{len(files):05d}.parquet", part, folder)[0])
    counts = {"sources": {"s": {"role": "domain", "licence": None, "documents": number}}}
    job = StageJob(folder, "corpus")
    manifest = finish_stage(job, stage="ingest", format_number=1, config=CurateConfig(), files=files, counts=counts)
    return Artifact(folder, manifest)


def staged(texts: Iterable[str], steps: str) -> dict[str, Any]:
    """Run the stage in a process of its own; returns CPU seconds, resident megabytes and counts."""
    with tempfile.TemporaryDirectory() as name:
        write_corpus(Path(name) / "ingest", texts)
        command = [sys.executable, __file__, "--child", name, "--steps", steps]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return dict(json.loads(answer.splitlines()[-1]))


def child(folder: Path, steps: str) -> None:
    """Curate in this process and print what it took."""
    from deepen.formats.manifest import open_artifact

    ingested = open_artifact(folder / "ingest")
    assert ingested is not None
    config = CurateConfig.model_validate({"steps": json.loads(steps)} if steps else {})
    warm = write_corpus(folder / "warm", (f"{word} of the text, and so on. " * 30 for word in ("one", "two", "three")))
    curate(config, StageJob(folder / "warmed", "w", {"ingest": warm}), preview=True)
    start = time.process_time()
    manifest = curate(config, StageJob(folder / "out", "f", {"ingest": ingested}), preview=True)
    seconds = time.process_time() - start
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "resident": megabytes, **manifest.counts["sources"]["s"]}))


ALL_RULES = json.dumps(["normalize", "boilerplate_lines", "gopher_quality", "gopher_repetition", "fineweb", "c4"])


def growth() -> None:
    """Ten times the corpus: time and memory of the whole stage, for the default chain and for all rules."""
    texts = [text for name in ("gov_web_prose", "web_mix_small") for text in texts_of(name)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6

    def grown(copies: int) -> Iterator[str]:
        for copy in range(copies):  # another ending on every word makes another text of the same kind
            yield from (re.sub(r"(?<=[a-z])\b", "abcdefghij"[copy], text) if copy else text for text in texts)

    for name, steps in (("default chain", ""), ("all rules", ALL_RULES)):
        small = statistics.median(staged(grown(1), steps)["seconds"] for _ in range(3))
        once, tenfold = staged(grown(1), steps), staged(grown(10), steps)
        rate, ratio = 10 * megabytes / tenfold["seconds"], tenfold["seconds"] / small
        memory = tenfold["resident"] / once["resident"]
        print(
            f"{name}: {megabytes:.0f} MB {small:.1f} s; ten times as much {ratio:.1f} times the time ({rate:.1f} MB/s),"
        )
        print(f"  resident {once['resident']:.0f} -> {tenfold['resident']:.0f} MB")
        verdict(f"{name}: time within 20 % of linear", ratio <= 10 * MOST_GROWTH)
        verdict(f"{name}: {memory:.2f} times the memory, < 1.5", memory < 1.5)
        if not steps:
            verdict(f"default chain {rate:.1f} >= {LEAST_CHAIN} MB/s", rate >= LEAST_CHAIN)


def extremes() -> None:
    """A million tiny documents, and one line of 200 MB, through all rules."""
    loose = [
        {"use": "gopher_quality", "min_words": 0, "max_words": "1B", "min_stop_words": 0, "symbols_are_words": False},
        "gopher_repetition",
    ]
    steps = json.dumps(["normalize", "boilerplate_lines", *loose, "fineweb"])
    tiny = staged((f"Tiny text of number {number}, and no more." for number in range(1_000_000)), steps)
    print(f"a million tiny documents: {tiny['seconds']:.0f} s, {tiny['resident']:.0f} MB, {tiny['dropped']}")
    verdict("all tiny documents accounted for", tiny["documents_in"] == 1_000_000)
    verdict(
        f"tiny documents: {tiny['seconds']:.0f} < {MOST_SECONDS_TINY} CPU seconds", tiny["seconds"] < MOST_SECONDS_TINY
    )
    words = [word for text in texts_of("gov_web_prose") for word in text.split()]
    chosen = random.Random(1).choices(words, k=1 + 200_000_000 * len(words) // sum(len(word) + 1 for word in words))
    line = staged([" ".join(chosen)], steps)
    size, seconds = line["bytes_in"] / 1e6, line["seconds"]
    print(f"one line of {size:.0f} MB: {seconds:.0f} s, {line['resident']:.0f} MB, {line['dropped']}")
    verdict(f"the line: {line['resident']:.0f} < {MOST_MEGABYTES_LINE} MB", line["resident"] < MOST_MEGABYTES_LINE)
    verdict("the line is accounted for", line["documents_in"] == line["documents_kept"] + sum(line["dropped"].values()))


def agreement(python: str) -> None:
    """Decisions rule by rule beside datatrove's, given its words and with ours."""
    generator = random.Random(1)
    texts = []
    for name, number in PARITY.items():
        own = texts_of(name)
        texts += [normalized(text)[:200_000] for text in generator.sample(own, min(number, len(own)))]
    script = Path(__file__).with_name("datatrove_decisions.py")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    done = subprocess.run([python, str(script)], input=lines, capture_output=True, text=True, check=True)
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    print(f"agreement with datatrove on {len(theirs)} documents")
    for whose, least in (("their words", 1.0), ("our words", LEAST_AGREEMENT)):
        differing: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        whole: Counter[str] = Counter()
        for text, answer in zip(texts, theirs, strict=True):
            words = words_of([text]) if whose == "our words" else _words_at(text, _spans(text, answer["words"]))
            for step, rules in _decisions(text, words).items():
                expected = {rule: passes for rule, passes in answer[step].items() if rule in rules}
                whole[step] += all(rules.values()) != all(expected.values())
                for rule, passes in expected.items():
                    dropped[f"{step}.{rule}"] += not passes
                    differing[f"{step}.{rule}"] += rules[rule] != passes
        for rule in dropped:
            if whose == "our words" or differing[rule]:
                print(f"  {whose}: {rule:48} they drop {dropped[rule]:5}, differ {differing[rule]}")
        worst = 1 - max(differing.values()) / len(texts)
        print(f"  {whose}: documents decided otherwise: {dict(whole)}")
        if whose == "their words":
            decided = sum(whole[step] for step in ("gopher_quality", "gopher_repetition", "fineweb"))
            verdict("given their words every document is decided alike", decided == 0)
        else:
            verdict(f"worst rule {worst:.2%} >= {least:.0%}", worst >= least)


def _words_at(text: str, spans: Sequence[tuple[int, int]]) -> Words:
    """Words of one text given by another splitter as positions in its UTF-8 bytes."""
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    found = [describe_word(data, np.int32(start), np.int32(end)) for start, end in spans]
    kinds = (np.uint64, np.int32, np.uint8)
    hashes, lengths, flags = (np.array([word[i] for word in found], dtype=kind) for i, kind in enumerate(kinds))
    counts = np.array([count_words(lengths, flags)], dtype=np.int64)
    return Words(hashes, lengths, flags, np.array([0, len(found)]), counts)


def _spans(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Byte positions of words that follow each other in a text."""
    spans: list[tuple[int, int]] = []
    position, byte = 0, 0
    for word in words:
        start = text.index(word, position)
        byte += len(text[position:start].encode())
        spans.append((byte, byte + len(word.encode())))
        position, byte = start + len(word), spans[-1][1]
    return spans


SAME = {"hash_signs": "symbols", "ellipses": "symbols", "many_short_lines": "short_lines", "many_newlines": "newlines",
        "many_duplicate_line_characters": "duplicate_line_characters"}  # fmt: skip


def _decisions(text: str, words: Words) -> dict[str, dict[str, bool]]:
    """Whether the text passes each of our rules."""
    lines = lines_of([text])
    found: dict[str, dict[str, bool]] = {"gopher_quality": {}, "gopher_repetition": {}, "fineweb": {}, "c4": {}}
    for step, rules in (
        ("gopher_quality", GopherQuality(language="en").rules(words, lines, ["en"])),
        ("gopher_repetition", GopherRepetition(as_datatrove=True).rules(words, lines)),
        ("fineweb", FineWeb().rules(words, lines)),
    ):
        for reason, _, _, broken in rules:
            rule = SAME.get(reason, reason)
            found[step][rule] = found[step].get(rule, True) and not broken[0]
    for rule, c4 in (("c4", C4()), ("c4_without_terminal_punctuation", C4(terminal_punctuation=False))):
        found["c4"][rule] = isinstance(c4.apply(document(text)), Document)
    return found


SECTIONS: dict[str, Callable[[], None]] = {
    "speed": speed, "planted": planted, "decontamination": decontamination, "growth": growth, "extremes": extremes,
}  # fmt: skip


def main() -> None:
    """Run the sections named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    parser.add_argument("--datatrove", metavar="PYTHON", help="interpreter with datatrove, for rule by rule agreement")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.steps)
        return
    for name in options.sections or SECTIONS:
        SECTIONS[name]()
    if options.datatrove:
        agreement(options.datatrove)
    sys.exit(f"{len(failures)} failed" if failures else 0)


if __name__ == "__main__":
    main()
