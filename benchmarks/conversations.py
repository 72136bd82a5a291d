"""Documents with turns to shard and mask: CPU time beside plain documents of the same words, and what the mask covers.

The questions and answers of ``medical_qa_nih`` become conversations, are encoded with a real tokenizer and its chat
template, and every mask is decoded and compared with its answer (not only the sample that the stage checks). Times are
CPU seconds of one process, medians of 3, after a first pass that loads and compiles. Needs DEEPEN_TEST_DATA;
``python -m benchmarks.conversations``.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zstandard

from deepen.formats.documents.documents import Document, Span, document_id, write_documents
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.formats.tokens.trained import TrainedMask
from deepen.tokenize.conversations.templates import choose_template
from deepen.tokenize.encoder import choose_encoder
from deepen.tokenize.parts import EncodePart, encode_part
from deepen.tokenize.vocabulary.tokenizer import keep_tokenizer, read_vocabulary

TOKENIZERS = ("qwen2", "llama2", "llama3", "mistral_v1", "gpt2")
MOST_WRONG_MASKS = 0


def _documents(data: Path, limit: int) -> Iterator[Document]:
    """Question and answer as two turns."""
    with (data / "medical_qa_nih/corpus.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8", newline="\n")
        for number, line in zip(range(limit), lines, strict=False):
            record = json.loads(line)
            question, answer = record["question"].strip(), record["text"].removeprefix(record["question"]).strip()
            text = f"{question}\n\n{answer}"
            spans = (Span("user", 0, len(question)), Span("assistant", len(question) + 2, len(text)))
            yield Document(document_id("qa", str(number)), text, "qa", spans=spans)


def _seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(3):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def _num_wrong(prefix: Path, tokenizer: Path, documents: list[Document]) -> int:
    """Documents whose targets do not decode to the answer and its end, white space and marks aside."""
    from tokenizers import Tokenizer

    reader, dataset, mask = (
        Tokenizer.from_file(str(tokenizer / "tokenizer.json")),
        IndexedDataset.open(prefix),
        TrainedMask.open(prefix),
    )
    wrong = 0
    for sequence, document in enumerate(documents):
        ids = np.asarray(dataset[sequence])
        targets = ids[np.asarray(mask.read(sequence, 0, len(ids))) == 1]
        assert document.spans is not None
        answer = document.text[document.spans[1].begin :]
        read = reader.decode(targets.tolist(), skip_special_tokens=True)
        wrong += "".join(read.split()) != "".join(answer.split())
    return wrong


def measure(name: str, data: Path, documents: list[Document], work: Path) -> bool:
    """Print one tokenizer's row; returns whether every mask is right."""
    folder = work / name
    keep_tokenizer(data / f"tokenizer_{name}", folder, [])
    tokenizer = folder / "tokenizer"
    vocabulary = read_vocabulary(tokenizer)
    encoder, _ = choose_encoder(tokenizer, vocabulary.control, [document.text for document in documents[:16]])
    template, _, remark = choose_template("auto", tokenizer)
    plain = [Document(document.id, document.text, document.source) for document in documents]
    write_documents(folder / "turns.parquet", documents, folder)
    write_documents(folder / "plain.parquet", plain, folder)
    seconds, counts = {}, {}
    for kind in ("turns", "plain"):
        part = EncodePart(folder / f"{kind}.parquet", folder / kind, tokenizer, vocabulary, encoder, "none", template)
        seconds[kind] = _seconds(lambda part=part: encode_part(part))  # type: ignore[misc]
        counts[kind] = encode_part(part)
    megabytes = sum(len(document.text.encode()) for document in documents) / 1e6
    wrong = _num_wrong(folder / "turns", tokenizer, documents)
    each = (seconds["turns"] - seconds["plain"]) / len(documents) * 1e6
    print(
        f"{name:10} {encoder:10} {'own' if not remark else 'built-in':8} "
        f"turns {megabytes / seconds['turns']:6.1f} MB/s, plain {megabytes / seconds['plain']:6.1f} MB/s, "
        f"{each:5.0f} us more per conversation; "
        f"{counts['turns']['targets'] / counts['turns']['tokens']:.1%} targets; refused {counts['turns']['refused']}; "
        f"wrong masks {wrong} of {len(documents)} {'PASS' if wrong <= MOST_WRONG_MASKS else 'FAIL'}"
    )
    return wrong <= MOST_WRONG_MASKS


def main() -> None:
    """Measure all tokenizers of the test data, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizers", nargs="*", default=TOKENIZERS)
    parser.add_argument("--limit", type=int, default=6_000, help="how many conversations")
    arguments = parser.parse_args()
    data = Path(os.environ["DEEPEN_TEST_DATA"])
    documents = list(_documents(data, arguments.limit))
    with tempfile.TemporaryDirectory() as work:
        passed = [measure(name, data, documents, Path(work)) for name in arguments.tokenizers]
    raise SystemExit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
