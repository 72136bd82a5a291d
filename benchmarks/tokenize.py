"""Documents to token shards: speed against Megatron's way and against the library alone, and equality of every id.

Needs DEEPEN_TEST_DATA. Times are CPU seconds of one process and its children, each measured in a process of its own on
the same text and tokenizer, so that load of the machine hardly matters.

- speed: deepen reads parquet, encodes, checks one document in 1024, writes `.bin/.idx/.npy`, and joins the parts.
  Megatron's way (tools/preprocess_data.py): a pool of processes takes JSON lines, encodes document by document with
  the Hugging Face tokenizer, and the parent appends each to the builder (tensor, array of the builder's type, bytes).
  The library alone: gigatoken on texts in memory. Medians of alternating runs of deepen and the library.
- equality: ids of every corpus and every tokenizer of the test data against `transformers`, and of the vectors against
  their stored ids where `transformers` gives these; `--all`: all documents.
- bytes: the shard against megatron-core's own builder (skipped, and said, where megatron-core is not installed).

`python benchmarks/tokenize.py`; each bar prints PASS or FAIL, and the exit code says whether all passed.
"""

from __future__ import annotations

import sys

if sys.path[0].endswith("benchmarks"):
    sys.path.pop(0)  # this file is called like a module of the standard library, which would find it instead

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

FASTER_THAN_MEGATRON = 15.0
SHARE_OF_LIBRARY = 0.60
TOKENIZERS = ("gpt2", "qwen2", "llama2", "llama3", "mistral_v1")
TIMED = ("medical_trials_fulltext", "medical_qa_nih", "gov_web_prose", "legal_scotus_opinions", "english_novels")
_PART_BYTES = 16_000_000


def corpus(data: Path, name: str) -> Iterator[str]:
    """Texts of a corpus of the test data."""
    plain, packed = data / name / "corpus.jsonl", data / name / "corpus.jsonl.zst"
    raw = (
        plain.read_bytes() if plain.is_file() else zstandard.ZstdDecompressor().stream_reader(packed.open("rb")).read()
    )
    for line in raw.split(b"\n"):
        if line:
            yield json.loads(line)["text"]


def cpu_seconds() -> float:
    """CPU time of this process and of its children that ended."""
    use = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in use)


def timed(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` returns in a fresh process: its CPU seconds, or the result of a check."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def deepen_seconds(folder: Path, out: Path, documents: list[Path]) -> tuple[float, float]:
    """Parquet to the joined shard: seconds with the tokenizer's loading, and without."""
    from deepen.tokenize import parts as stage
    from deepen.tokenize.encoder import choose_boundary
    from deepen.tokenize.vocabulary.tokenizer import read_vocabulary

    vocabulary = read_vocabulary(folder)
    boundary = choose_boundary(folder, vocabulary.control, ["Some words of text. " * 200], "gigatoken")
    begin = cpu_seconds()
    stage._encoder(folder, "gigatoken", tuple(vocabulary.control), boundary)
    loaded = cpu_seconds()
    parts = [stage.EncodePart(path, out / path.stem, folder, vocabulary, "gigatoken", boundary) for path in documents]
    for part in parts:
        stage.encode_part(part)
    stage.merge_parts(stage.MergePart(out, "all", tuple(part.prefix for part in parts), vocabulary))
    return cpu_seconds() - begin, cpu_seconds() - loaded


def library_seconds(folder: Path, documents: list[Path]) -> tuple[float, float]:
    """gigatoken alone, on lists of strings in memory, as many at a time as deepen gives it: seconds likewise."""
    import gigatoken

    from deepen.tokenize.parts import _batches

    batches = [texts.to_pylist() for path in documents for _, texts, _ in _batches(path)]
    path = str(folder / "tokenizer.json")
    gigatoken.Tokenizer(path).encode_batch(["imports what it imports"], parallel=False)
    begin = cpu_seconds()
    tokenizer = gigatoken.Tokenizer(path)
    loaded = cpu_seconds()
    for batch in batches:
        tokenizer.encode_batch(batch, parallel=False)
    return cpu_seconds() - begin, cpu_seconds() - loaded


_tokenizer: Any = None


def _start(folder: Path) -> None:
    global _tokenizer
    from transformers import AutoTokenizer

    _tokenizer = AutoTokenizer.from_pretrained(folder)


def _encode_line(line: str) -> tuple[list[int], int]:
    ids = _tokenizer(json.loads(line)["text"], verbose=False).input_ids
    return [*ids, _tokenizer.eos_token_id], len(line)


def megatron_seconds(folder: Path, out: Path, lines: Path) -> float:
    """The way of Megatron's preprocess_data.py: pool.imap over JSON lines, chunks of 32, then the builder."""
    import torch

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    begin = cpu_seconds()
    lengths, documents = [], [0]
    pool = multiprocessing.get_context("fork").Pool(2, _start, (folder,))
    with lines.open(encoding="utf-8") as file, (out / "way.bin").open("wb") as binary:
        for ids, _ in pool.imap(_encode_line, file, 32):
            # IndexedDatasetBuilder.add_document: a tensor of the ids, an array of the builder's type, its bytes
            tensor = torch.IntTensor(ids)
            array = np.array(tensor.numpy(), dtype=np.uint16)
            binary.write(array.tobytes(order="C"))
            lengths.extend([len(ids)])
            documents.append(len(lengths))
    pool.close()
    pool.join()
    pointers = np.concatenate([[0], np.cumsum(np.array(lengths[:-1], dtype=np.int64)) * 2])
    with (out / "way.idx").open("wb") as index:
        for values, kind in ((lengths, np.int32), (pointers, np.int64), (documents, np.int64)):
            index.write(np.array(values, dtype=kind).tobytes())
    return cpu_seconds() - begin


def write_inputs(texts: list[str], out: Path) -> tuple[list[Path], Path]:
    """The texts as document files of some 16 MB and as JSON lines."""
    from deepen.formats.documents.documents import Document, content_hash, document_id, write_documents

    paths: list[Path] = []
    group: list[Document] = []
    num_bytes = 0
    for number, text in enumerate(texts):
        group.append(Document(document_id("all", str(number)), text, "all", content_hash=content_hash(text)))
        num_bytes += len(text.encode())
        if num_bytes > _PART_BYTES or number == len(texts) - 1:
            paths.append(out / f"all-{len(paths):05d}.parquet")
            write_documents(paths[-1], group, out)
            group, num_bytes = [], 0
    lines = out / "all.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return paths, lines


def kept_tokenizer(data: Path, name: str, out: Path) -> Path:
    """The tokenizer's folder as deepen writes it for a run."""
    from deepen.tokenize.vocabulary.tokenizer import keep_tokenizer

    keep_tokenizer(data / f"tokenizer_{name}", out / name, ["Some text."])
    return out / name / "tokenizer"


def bar(name: str, value: float, least: float, shown: str) -> bool:
    """Print a figure against its bar; whether it passes."""
    passed = value >= least
    print(f"{'PASS' if passed else 'FAIL'}  {name}: {shown} (bar: {least:g})")
    return passed


def speed(data: Path, out: Path, megabytes: float) -> bool:
    """The two ratios, and the bytes against megatron-core."""
    texts = [text for name in TIMED for text in corpus(data, name)]
    random.Random(17).shuffle(texts)
    total = sum(len(text.encode()) for text in texts)
    texts = texts[: max(1, int(len(texts) * min(1.0, megabytes * 1e6 / total)))]
    size = sum(len(text.encode()) for text in texts) / 1e6
    folder = kept_tokenizer(data, "gpt2", out)
    documents, lines = write_inputs(texts, out)
    timed(deepen_seconds, folder, out / "warm", documents[:1])  # kernels compiled, files cached
    pairs = [
        (timed(deepen_seconds, folder, out, documents), timed(library_seconds, folder, documents)) for _ in range(7)
    ]
    own, own_loaded = (statistics.median(ours[side] for ours, _ in pairs) for side in (0, 1))
    alone, alone_loaded = (statistics.median(theirs[side] for _, theirs in pairs) for side in (0, 1))
    theirs = megatron_seconds(folder, out, lines)
    print(
        f"{size:.1f} MB of text, {len(texts)} documents, GPT-2; MB per CPU second with (without) loading the "
        f"tokenizer: deepen {size / own:.0f} ({size / own_loaded:.0f}), gigatoken in memory {size / alone:.0f} "
        f"({size / alone_loaded:.0f}), Megatron's way {size / theirs:.2f}; share with loading {alone / own:.0%}"
    )
    passed = bar("times Megatron's way, loading included", theirs / own, FASTER_THAN_MEGATRON, f"{theirs / own:.1f}x")
    share = alone_loaded / own_loaded
    passed &= bar("share of the library in memory, once loaded", share, SHARE_OF_LIBRARY, f"{share:.0%}")
    return megatron_bytes(out) and passed


def megatron_bytes(out: Path) -> bool:
    """Whether megatron-core's builder writes the same two files from the same ids."""
    from deepen.formats.tokens.megatron import IndexedDataset

    try:
        from importlib import import_module

        builder_class = import_module("megatron.core.datasets.indexed_dataset").IndexedDatasetBuilder
    except ImportError:
        print("SKIP  bytes of megatron-core's builder: it is not installed (pip install --no-deps megatron-core)")
        return True
    import torch

    dataset = IndexedDataset.open(out / "shards" / "all")
    builder = builder_class(str(out / "theirs.bin"), dtype=np.uint16)
    for ids in (dataset[k] for k in range(len(dataset))):
        builder.add_document(torch.from_numpy(ids.astype(np.int64)), [len(ids)])
    builder.finalize(str(out / "theirs.idx"))
    pairs = [(out / "shards" / f"all.{end}", out / f"theirs.{end}") for end in ("bin", "idx")]
    equal = sum(ours.read_bytes() == theirs.read_bytes() for ours, theirs in pairs)
    return bar("files equal to megatron-core's builder", equal, 2, f"{equal} of 2")


def equality(data: Path, out: Path, name: str, sample: list[str]) -> bool:
    """Ids of one tokenizer on the sample and on its vectors, against ``transformers``."""
    from transformers import AutoTokenizer

    from deepen.tokenize.encoder import Encoder, choose_boundary, choose_encoder
    from deepen.tokenize.vocabulary.tokenizer import read_vocabulary

    folder = kept_tokenizer(data, name, out)
    vectors = data / f"tokenizer_{name}" / "vectors.jsonl"
    given = [json.loads(line) for line in vectors.read_text().splitlines()] if vectors.is_file() else []
    texts = [*sample, *(vector["text"] for vector in given)]
    control = read_vocabulary(folder).control
    chosen, why = choose_encoder(folder, control, texts[:200])
    boundary = choose_boundary(folder, control, [text[:20_000] for text in texts[:50]], chosen)
    encoder = Encoder(folder, name=chosen, control=control, boundary=boundary)
    encoded = [
        encoder.encode_column(pa.array(texts[at : at + 100], pa.large_string())) for at in range(0, len(texts), 100)
    ]
    ids, lengths = (np.concatenate([each[side] for each in encoded]) for side in (0, 1))
    reference = AutoTokenizer.from_pretrained(data / f"tokenizer_{name}")
    special = [token.content for token in reference.added_tokens_decoder.values() if token.special]
    differ, spelled, begin = 0, 0, 0
    for text, length in zip(texts, lengths.tolist(), strict=True):
        if any(token in text for token in special):
            spelled += 1  # deepen keeps such a spelling as ordinary text, on purpose
        else:
            expected = reference(text, add_special_tokens=False, verbose=False).input_ids
            differ += not np.array_equal(ids[begin : begin + length], expected)
        begin += length
    # The stored ids, where transformers gives them too (for Llama 2 it gives others for texts that begin with spaces).
    begins = np.cumsum(lengths) - lengths
    stored, as_stored = 0, 0
    for at, vector in enumerate(given, start=len(sample)):
        if reference(vector["text"], add_special_tokens=False, verbose=False).input_ids == vector["ids"]:
            stored += 1
            as_stored += np.array_equal(ids[begins[at] : begins[at] + lengths[at]], vector["ids"])
    print(f"{name}: {chosen}{f' ({why})' if why else ''}, cut at {boundary}, {len(texts)} texts, "
          f"{spelled} with the spelling of a special token left out")  # fmt: skip
    other = f"transformers itself gives {len(given) - stored} others"
    passed = not given or bar(
        f"{name}: vectors with their stored ids", as_stored, stored, f"{as_stored} of {stored}; {other}"
    )
    compared = len(texts) - spelled
    shown = f"{compared - differ} of {compared}"
    return passed & bar(f"{name}: texts with the ids of transformers", compared - differ, compared, shown)


def sampled(data: Path, megabytes: float | None) -> list[str]:
    """Texts of all corpora: ``megabytes`` of each, evenly chosen, or all."""
    found = []
    for folder in sorted(path.parent for path in data.glob("*/corpus.jsonl*")):
        texts = list(corpus(data, folder.name))
        if megabytes is not None:
            random.Random(17).shuffle(texts)
            ends = np.cumsum([len(text.encode()) for text in texts])
            texts = texts[: int(np.searchsorted(ends, megabytes * 1e6)) + 1]
        found += texts
    return found


def main() -> int:
    """Run all; 0 when every bar passes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=float, default=100.0, help="text for the speed part")
    parser.add_argument("--sample", type=float, default=0.5, help="megabytes of each corpus for the equality part")
    parser.add_argument("--all", action="store_true", help="compare all documents (134 MB for each tokenizer)")
    parser.add_argument("--only", choices=("speed", "equality"), help="one part alone")
    options = parser.parse_args()
    if not os.environ.get("DEEPEN_TEST_DATA"):
        print("SKIP: set DEEPEN_TEST_DATA to the test data")
        return 0
    data, passed = Path(os.environ["DEEPEN_TEST_DATA"]), True
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        if options.only != "equality":
            passed &= speed(data, out, options.megabytes)
        if options.only != "speed":
            sample = sampled(data, None if options.all else options.sample)
            for tokenizer in TOKENIZERS:
                passed &= equality(data, out / "equality", tokenizer, sample)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
