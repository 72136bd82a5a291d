"""Encoding one part of a source, and joining a source's parts to one shard.

A part's files depend on its documents and the tokenizer only, and parts are joined in their order, so a shard's bytes
do not depend on how many workers made it. Memory: a few megabytes of text and ids at a time, and 28 bytes per document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deepen.formats.documents.document_ids import pack_ids
from deepen.formats.documents.documents import read_tables, row_groups
from deepen.formats.files.arrays import Array, open_array, write_array
from deepen.formats.tokens.megatron import IndexedDataset, IndexedDatasetWriter, token_dtype
from deepen.formats.tokens.trained import TrainedWriter, merge_trained
from deepen.tokenize.conversations.masked import PartTurns, with_ends
from deepen.tokenize.conversations.templates import Template
from deepen.tokenize.encoder import Encoder, EncoderName
from deepen.tokenize.pieces import Boundary, cut
from deepen.tokenize.vocabulary.tokenizer import Vocabulary

BATCH_BYTES = 8_000_000
"""Text encoded in one call: more than most row groups have, little enough for its ids to stay cheap to allocate."""
_WORD_BLOCK = 1 << 17
SLICE_BYTES = 256_000_000
"""Uncompressed bytes of row groups after which a document file is cut for another worker."""
CHECK_ONE_IN = 1024
"""One document in this many (by its id) is encoded by ``tokenizers`` too, when another encoder is used."""
CHECK_CHARACTERS = 10_000
"""Of a longer document only the beginning is compared."""


@dataclass(frozen=True)
class EncodePart:
    """One file of documents to encode."""

    documents: Path
    prefix: Path
    """Where the part's ``.bin``, ``.idx``, ``.npy`` and, if anything is masked, ``.trained`` go."""
    tokenizer: Path
    vocabulary: Vocabulary
    encoder: EncoderName
    boundary: Boundary
    template: Template | None = None
    """Chat template for documents with turns; None leaves these as they stand in the text."""
    groups: tuple[int, int] | None = None
    """Only these row groups of the file (the second number is not included)."""


@dataclass(frozen=True)
class FileSlice:
    """Some row groups of a document file: what one part encodes."""

    path: Path
    groups: tuple[int, int]
    num_documents: int

    @property
    def name(self) -> str:
        """Name of the part's files."""
        return self.path.stem if self.groups[0] == 0 else f"{self.path.stem}.{self.groups[0]}"


def slices_of(path: Path) -> list[FileSlice]:
    """A document file cut into slices of some hundred megabytes, so that one huge file is spread over all workers.

    Cuts depend on the file alone. A file of ordinary size is one slice.
    """
    slices: list[FileSlice] = []
    begin = num_documents = num_bytes = 0
    groups = row_groups(path)
    for index, (rows, size) in enumerate(groups):
        num_documents, num_bytes = num_documents + rows, num_bytes + size
        if num_bytes >= SLICE_BYTES or index == len(groups) - 1:
            slices.append(FileSlice(path, (begin, index + 1), num_documents))
            begin, num_documents, num_bytes = index + 1, 0, 0
    return slices or [FileSlice(path, (0, 0), 0)]  # a file without documents still makes an (empty) part


@lru_cache(maxsize=2)
def _encoder(folder: Path, name: EncoderName, control: tuple[int, ...], boundary: Boundary) -> Encoder:
    return Encoder(folder, name=name, control=control, boundary=boundary)


def encode_part(part: EncodePart) -> dict[str, Any]:
    """Encode the documents of one file, each as one sequence; returns counts and the first sample that differed."""
    vocabulary = part.vocabulary
    encoder = _encoder(part.tokenizer, part.encoder, tuple(vocabulary.control), part.boundary)
    counts: dict[str, Any] = {"bytes": 0, "words": 0, "target_bytes": 0}
    all_ids: list[Array] = []
    sample: list[Sampled] = []
    turns = PartTurns(encoder, part.tokenizer, vocabulary, part.template)
    with IndexedDatasetWriter(part.prefix, token_dtype(vocabulary.size)) as writer, TrainedWriter(part.prefix) as mask:
        for ids, texts, spans in _batches(part.documents, part.groups):
            halves, flags = pack_ids(ids), None
            if spans is None:
                tokens, lengths = encoder.encode_column(texts)
                if part.encoder != "tokenizers":  # the reference need not be compared with itself
                    sample += _sample(halves, texts, (tokens, lengths))
                counts["target_bytes"] += _num_bytes(texts)
            else:
                tokens, lengths, flags, written = turns.encode(halves, texts.to_pylist(), spans.to_pylist())
                # Ids, tokens and counts must name the same documents.
                texts, halves = texts.filter(pa.array(written)), halves[written]
            framed, lengths = frame(tokens, lengths, vocabulary)
            writer.add_documents(framed, lengths)
            mask.add(len(framed), flags)
            all_ids.append(halves)
            counts["bytes"] += _num_bytes(texts)
            counts["words"] += num_words(texts)
    counts["checked"], counts["differs"] = len(sample), first_differing(encoder, sample)
    turns.add_to(counts)
    halves = np.concatenate([np.empty((0, 2), np.uint64), *all_ids])
    path = part.prefix.with_name(part.prefix.name + ".npy")
    write_array(path, [halves], shape=halves.shape, dtype=np.uint64, root=path.parent)
    return counts | {"documents": len(halves), "tokens": writer.num_tokens, "targets": mask.num_targets}


def _batches(
    path: Path, groups: tuple[int, int] | None = None
) -> Iterator[tuple[list[str], pa.LargeStringArray, pa.ListArray | None]]:
    """Ids, texts and spans (None where no document has any) of a file, a few megabytes at a time (one long document
    may be more)."""
    for table in read_tables(path, ["id", "text", "spans"], groups):
        spans = None if table["spans"].null_count == len(table) else table["spans"].combine_chunks()
        ids = table["id"].to_pylist()
        chunks = table["text"].cast(pa.large_string()).chunks
        texts = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)  # which copies even a single one
        ends = _offsets(texts)[1:] - _offsets(texts)[0]
        begin = 0
        while begin < len(texts):
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + BATCH_BYTES, side="right")))
            yield ids[begin:end], texts[begin:end], None if spans is None else spans[begin:end]
            begin = end


def _offsets(texts: pa.LargeStringArray) -> Array:
    """int64[len + 1]: where each text begins in the data buffer."""
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)
    return offsets[texts.offset : texts.offset + len(texts) + 1]


def _num_bytes(texts: pa.LargeStringArray) -> int:
    offsets = _offsets(texts)
    return int(offsets[-1] - offsets[0])


def num_words(texts: pa.LargeStringArray) -> int:
    """Words in all texts: runs of bytes that are no ASCII white space."""
    offsets, buffer = _offsets(texts), texts.buffers()[2]
    if buffer is None or offsets[-1] == offsets[0]:
        return 0
    data = np.frombuffer(buffer, dtype=np.uint8)[offsets[0] : offsets[-1]]
    found = 0
    # Whole passes go many bytes at a time, over blocks that stay in the processor's cache; a compiled loop would first
    # load numba.
    for begin in range(0, len(data) - 1, _WORD_BLOCK):
        is_word = _is_word(data[begin : begin + _WORD_BLOCK + 1])  # one byte is shared with the next block
        # A word begins where a byte of one follows one of none.
        found += int(np.count_nonzero(is_word[1:] > is_word[:-1]))
    first = np.unique(offsets[:-1] - offsets[0])
    first = first[first < len(data)]
    inner = first[first > 0]
    # Words that begin with their text were counted only behind a space: those are taken off, then all added.
    across = np.count_nonzero(_is_word(data[inner]) & ~_is_word(data[inner - 1]))
    return int(found - across + np.count_nonzero(_is_word(data[first])))  # a text begins a word, whatever is before it


def _is_word(data: Array) -> Array:
    """Whether bytes (uint8) are no ASCII white space."""
    found: Array = (data != 32) & ((data - np.uint8(9)) > 4)  # 9 to 13 are tab, line ends and such; below 9 wraps
    return found


def frame(tokens: Array, lengths: Array, vocabulary: Vocabulary) -> tuple[Array, Array]:
    """Documents with their begin token (if the tokenizer uses one) and end token around them."""
    begin, end = vocabulary.begin_of_document_id, vocabulary.end_of_document_id
    return with_ends(tokens, lengths, begin, end, token_dtype(vocabulary.size))


@dataclass(frozen=True)
class Sampled:
    """A document to compare with the reference."""

    id: str
    text: str
    tokens: Array


def _sample(halves: Array, texts: pa.LargeStringArray, encoded: tuple[Array, Array]) -> list[Sampled]:
    """The documents of a batch whose id falls into the sample."""
    tokens, lengths = encoded
    sampled = np.flatnonzero(halves[:, 1] % np.uint64(CHECK_ONE_IN) == 0).tolist()
    ends = np.cumsum(lengths) if sampled else lengths
    return [
        Sampled(
            f"{int(halves[at, 0]):016x}{int(halves[at, 1]):016x}",
            texts[at].as_py(),
            tokens[ends[at] - lengths[at] : ends[at]].copy(),  # a view would keep the whole batch
        )
        for at in sampled
    ]


def first_differing(encoder: Encoder, sample: Sequence[Sampled]) -> str | None:
    """Id of the first document with other ids than the reference gives, or None.

    Of a long document the ids up to the first cut after ``CHECK_CHARACTERS`` are compared; all of them where no cut is
    known to be clean.
    """
    for document in sample:
        _, piece = next(cut(document.text, CHECK_CHARACTERS, encoder.boundary))
        expected = encoder.reference_ids(piece)
        given = document.tokens if len(piece) == len(document.text) else document.tokens[: len(expected)]
        if np.array_equal(given, expected):
            continue
        # A beginning may differ at its cut only: before a document is blamed, all of it is compared.
        if len(piece) == len(document.text) or not np.array_equal(
            document.tokens, encoder.reference_ids(document.text)
        ):
            return document.id
    return None


@dataclass(frozen=True)
class MergePart:
    """The parts of one source to join."""

    out: Path
    source: str
    prefixes: tuple[Path, ...]
    vocabulary: Vocabulary


def merge_parts(part: MergePart) -> dict[str, Any]:
    """Join the parts of a source to one pair and one array of document ids; returns their file entries."""
    shard, dtype = part.out / "shards" / part.source, token_dtype(part.vocabulary.size)
    with IndexedDatasetWriter(shard, dtype, blocks=True) as writer:
        for prefix in part.prefixes:
            writer.add_dataset(IndexedDataset.open(prefix))
    sizes = [(prefix, IndexedDataset.open(prefix).num_tokens) for prefix in part.prefixes]
    mask = merge_trained(shard, sizes, part.out, blocks=True)
    arrays = [open_array(prefix.with_name(prefix.name + ".npy")) for prefix in part.prefixes]
    path = part.out / "documents" / f"{part.source}.npy"
    shape = (sum(map(len, arrays)), 2)
    ids = write_array(path, arrays, shape=shape, dtype=np.uint64, root=part.out)
    files = [*(entry.model_copy(update={"path": f"shards/{entry.path}"}) for entry in writer.entries), ids, *mask]
    return {"files": [file.model_dump() for file in files]}
