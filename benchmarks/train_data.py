"""Data of the training benchmarks, in deepen's own formats: real text that every machine has, or random tokens.

Real text is what Python brings along (``deepen demo`` trains on it too), cut by a small tokenizer of its own, packed
best fit, with the first half of every third document as a prompt that carries no loss. It needs no download.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from deepen.formats.documents.document_ids import pack_ids
from deepen.formats.documents.documents import document_id
from deepen.formats.manifest import Artifact, CodeVersion, Manifest
from deepen.formats.tokens.megatron import IndexedDatasetWriter, token_dtype
from deepen.formats.tokens.order import Segment, Segments, row_ids, write_order, write_segments
from deepen.formats.tokens.packs import write_packs
from deepen.formats.tokens.trained import trained_path
from deepen.mix.packing.pack import pack
from deepen.model.config import RandomInit, ResolvedBase
from deepen.workflow.commands.demo import write_corpus

Array = npt.NDArray[Any]

_END = 0


@dataclass(frozen=True)
class Size:
    """A network and its batches."""

    vocabulary: int
    hidden: int
    layers: int
    sequence_length: int
    rows: int
    num_batches: int = 400
    micro_batch_rows: int | None = None
    """Rows of one forward pass; None: the whole batch."""

    @property
    def tokens_per_step(self) -> int:
        """Positions in a batch."""
        return self.sequence_length * self.rows

    @property
    def at_once(self) -> int:
        """Rows of one forward pass."""
        return self.micro_batch_rows or self.rows


def base_of(size: Size) -> ResolvedBase:
    """The random network that all loops train."""
    init = RandomInit(
        init="random", hidden_size=size.hidden, layers=size.layers, heads=max(1, size.hidden // 32), max_length=2048
    )
    return ResolvedBase("random", None, init, "random")


def random_data(root: Path, size: Size) -> dict[str, Artifact]:
    """Random documents of 20 tokens to one and a half rows."""
    random = np.random.default_rng(0)
    num_tokens = size.tokens_per_step * min(size.num_batches, 40)
    lengths = random.integers(
        min(20, size.sequence_length), 3 * size.sequence_length // 2, 2 * num_tokens // size.sequence_length + 2
    )
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1]
    tokens = random.integers(1, size.vocabulary, int(lengths.sum()))
    return _write(root, size, tokens, lengths, np.ones(len(tokens), np.uint8), 4 * len(tokens))


def real_data(root: Path, size: Size) -> dict[str, Artifact]:
    """Descriptions of packages and Python's own source: documents of all lengths, a third of them with a prompt."""
    documents, num_bytes = real_documents(size.vocabulary)
    lengths = np.array([len(document) for document in documents])
    tokens = np.concatenate([np.array(document) for document in documents])
    flags = np.ones(len(tokens), np.uint8)
    starts = np.cumsum(lengths) - lengths
    for number in range(0, len(lengths), 3):
        flags[starts[number] : starts[number] + lengths[number] // 2] = 0
    return _write(root, size, tokens, lengths, flags, num_bytes)


def real_documents(vocabulary: int) -> tuple[list[list[int]], int]:
    """Token ids of each document, each ending in the end token 0; and the bytes of all."""
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder))
        texts = [text for file in sorted(Path(folder).glob("*.jsonl")) for text in _texts(file)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<end>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts[::4], trainer)
    order = np.random.default_rng(0).permutation(len(texts))
    encoded = tokenizer.encode_batch([texts[number] for number in order])
    return [[*one.ids, _END] for one in encoded], sum(len(text.encode()) for text in texts)


def _texts(file: Path) -> Iterator[str]:
    with file.open() as lines:
        for line in lines:
            yield json.loads(line)["text"]


def _write(root: Path, size: Size, tokens: Array, lengths: Array, flags: Array, num_bytes: int) -> dict[str, Artifact]:
    """Shard, rows packed best fit, and an order that goes through all rows as often as needed."""
    for name in ("tokenize/shards", "tokenize/documents"):
        (root / name).mkdir(parents=True)
    with IndexedDatasetWriter(root / "tokenize/shards/text", token_dtype(size.vocabulary)) as writer:
        writer.add_documents(tokens.astype(token_dtype(size.vocabulary)), lengths)
    if not flags.all():
        trained_path(root / "tokenize/shards/text").write_bytes(flags.tobytes())
    ids = pack_ids([document_id("text", str(number)) for number in range(len(lengths))])
    np.save(root / "tokenize/documents/text.npy", ids)
    rows, segments = pack(lengths, size.sequence_length, "best_fit")
    write_packs(root / "mix", "text", rows, segments)
    num_rows = len(rows) - 1
    order = np.resize(row_ids(0, np.random.default_rng(1).permutation(num_rows)), size.num_batches * size.rows)
    write_order(root / "mix/order/000.u64", [order], root)
    segment = Segment(
        file="order/000.u64", first_batch=0, num_batches=size.num_batches, sequence_length=size.sequence_length,
        rows_per_batch=size.rows,
    )  # fmt: skip
    write_segments(root / "mix", Segments(sources=("text",), segments=(segment,)))
    counts = {"role": "domain", "tokens": len(tokens), "bytes": num_bytes}
    if not flags.all():
        counts |= {"targets": int(flags.sum()), "target_bytes": num_bytes * int(flags.sum()) // len(tokens)}
    both = {"sources": {"text": counts}, "vocabulary_size": size.vocabulary}
    return {name: _artifact(root / name, both) for name in ("tokenize", "mix")}


def _artifact(path: Path, counts: dict[str, Any]) -> Artifact:
    manifest = Manifest(
        stage=path.name, format=1, fingerprint=path.name, config={}, inputs={}, counts=counts,
        code=CodeVersion(version="0"), started="", finished="",
    )  # fmt: skip
    return Artifact(path, manifest)
