"""Token shards in Megatron's MMAP format: ``PREFIX.bin`` (ids, back to back) and ``PREFIX.idx`` (where they begin).

Byte-exact both ways with Megatron-LM's ``IndexedDataset``, so shards can be handed to and taken from Megatron users.
All integers are little-endian. ``.idx``: magic (9 bytes), u64 version, u8 dtype code, u64 n = sequences, u64 d =
documents + 1, i32[n] lengths, i64[n] byte offsets, i64[d] document boundaries as sequence numbers; nothing is aligned.
Writing keeps 4 bytes per sequence and 8 per document in memory; reading maps the files and keeps nothing.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from deepen.errors import DamageError, SourceError
from deepen.formats.files.arrays import Array
from deepen.formats.files.atomic import FileEntry, HashingWriter, writing
from deepen.formats.files.blocks import BlockHashes, CheckedBlocks, blocks_path

MAGIC = b"MMIDIDX\x00\x00"
OLD_MAGIC = b"TNTIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
_TOKEN_CODES = (1, 2, 3, 4, 5, 8)
_LARGEST_U16_VOCABULARY = 65_500  # Megatron's limit, not 65,536
_BLOCK = 1 << 20
_REMEDY = "copy the pair again from where it was made, or make it anew"


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """The type Megatron stores ids of such a vocabulary in: u16 below 65,500 entries, else i32 (never u32)."""
    return np.dtype("<u2" if vocabulary_size < _LARGEST_U16_VOCABULARY else "<i4")


def bin_path(prefix: Path) -> Path:
    """``PREFIX.bin``; a dot inside the prefix is part of its name."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """``PREFIX.idx``."""
    return prefix.with_name(prefix.name + ".idx")


class IndexedDatasetWriter:
    """Writes one pair, in a ``with`` block; both files appear, complete, when the block ends without an error.

    ``.bin`` is renamed before ``.idx``, so an ``.idx`` on disk always has its ``.bin``. With ``blocks`` a table of the
    hashes of the blocks of ``.bin`` stands beside it. Afterwards ``entries`` holds the manifest entries.
    """

    def __init__(self, prefix: Path, dtype: npt.DTypeLike, *, blocks: bool = False) -> None:
        self.prefix = prefix
        self._blocks = BlockHashes() if blocks else None
        self.dtype = np.dtype(dtype).newbyteorder("<")
        assert self.dtype in _CODES, f"Megatron has no code for {self.dtype}"
        self.num_tokens = 0
        self.entries: tuple[FileEntry, ...] = ()
        """Entries of the files (named by their file names) once the block has ended."""
        self._lengths = array("i")  # grows in place, 4 bytes a number; a list of Python numbers takes many times that
        self._boundaries = array("q", [0])
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._bin: HashingWriter = self._stack.enter_context(writing(bin_path(self.prefix)))
        self._bin.also = self._blocks.update if self._blocks is not None else None
        return self

    def add_documents(self, tokens: Array, lengths: Array) -> None:
        """Append documents of one sequence each: ``tokens`` back to back, ``lengths[k]`` ids for the k-th.

        Ids must fit the writer's dtype. A length of zero is an empty document: a boundary without a sequence.
        """
        lengths = np.asarray(lengths, dtype=np.int64)
        assert lengths.sum() == len(tokens), f"lengths add up to {lengths.sum()}, there are {len(tokens)} tokens"
        assert lengths.max(initial=0) < 2**31, "a sequence holds at most 2^31 - 1 tokens"
        self._write(tokens)
        filled = lengths > 0
        # A boundary for every document, a sequence for those that are not empty.
        boundaries = len(self._lengths) + np.cumsum(filled, dtype=np.int64)
        self._lengths.frombytes(lengths[filled].astype(np.int32).tobytes())
        self._boundaries.frombytes(boundaries.tobytes())

    def add_dataset(self, dataset: IndexedDataset) -> None:
        """Append all documents of another pair of the same dtype."""
        assert dataset.dtype == self.dtype, f"cannot merge {dataset.dtype} into {self.dtype}"
        first = len(self._lengths)
        for begin in range(0, dataset.num_tokens, _BLOCK):
            self._write(dataset.ids(begin, min(begin + _BLOCK, dataset.num_tokens)))
        self._lengths.frombytes(dataset.lengths.astype(np.int32).tobytes())
        self._boundaries.frombytes((dataset.boundaries[1:] + first).astype(np.int64).tobytes())

    def _write(self, tokens: Array) -> None:
        if len(tokens) and tokens.dtype != self.dtype:  # a cast would wrap ids that are too large, without a word
            limits = np.iinfo(self.dtype)
            low, high = int(tokens.min()), int(tokens.max())
            assert limits.min <= low and high <= limits.max, f"ids {low}..{high} do not fit {self.dtype}"
        self._bin.write(np.ascontiguousarray(tokens, dtype=self.dtype))
        self.num_tokens += len(tokens)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)  # renames `.bin`, if there was no error
        if kind is not None:
            return
        path = bin_path(self.prefix)
        table = (self._blocks.write(path),) if self._blocks is not None else ()
        if not table:  # of an earlier pair under this name: it would not fit
            blocks_path(path).unlink(missing_ok=True)
        with writing(idx_path(self.prefix)) as file:
            file.write(_HEADER.pack(MAGIC, VERSION, _CODES[self.dtype], len(self._lengths), len(self._boundaries)))
            for block in self._index_blocks():
                file.write(block)
        self.entries = (self._bin.entry(path.name), *table, file.entry(idx_path(self.prefix).name))

    def _index_blocks(self) -> Iterator[Array]:
        """The three arrays of the index, in pieces, so that byte offsets never exist as a whole."""
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        yield lengths.astype("<i4", copy=False)
        offset = 0
        for begin in range(0, len(lengths), _BLOCK):
            ends = np.cumsum(lengths[begin : begin + _BLOCK], dtype=np.int64) * self.dtype.itemsize + offset
            yield np.concatenate([[offset], ends[:-1]]).astype("<i8")
            offset = int(ends[-1])
        yield np.frombuffer(self._boundaries, dtype=np.int64).astype("<i8", copy=False)


@dataclass(frozen=True)
class IndexedDataset:
    """A pair opened for reading; ``dataset[k]`` is sequence k as a view into the mapped file.

    What is read is checked first, block by block, where the pair has a table of its blocks.
    """

    prefix: Path
    tokens: Array
    """All ids, back to back, unchecked: ``ids`` and ``read`` look at the hashes."""
    lengths: Array
    """int32[num_sequences]: ids per sequence."""
    offsets: Array
    """int64[num_sequences]: where a sequence begins in ``.bin``, in bytes."""
    boundaries: Array
    """int64[documents + 1]: document k is the sequences from ``boundaries[k]`` up to ``boundaries[k + 1]``."""
    blocks: CheckedBlocks | None = None
    """Hashes of the blocks of ``.bin``; None where it has no table (pairs of other programs and of version 0.1)."""

    @classmethod
    def open(cls, prefix: Path) -> IndexedDataset:
        """Map ``PREFIX.bin`` and ``PREFIX.idx`` after checking that they are whole and belong together.

        Raises ``SourceError`` for a pair that is no Megatron data, ``DamageError`` for one that is cut or mixed up.
        """
        prefix = Path(prefix)
        index = _read_index(idx_path(prefix))
        dtype = np.dtype(_DTYPES[index.dtype_code])
        tokens = _read_tokens(bin_path(prefix), dtype, index)
        blocks = CheckedBlocks.open(bin_path(prefix), tokens)
        return cls(prefix, tokens, index.lengths, index.offsets, index.boundaries, blocks)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the ids."""
        return self.tokens.dtype

    @property
    def num_sequences(self) -> int:
        """Number of sequences; in deepen's own shards that is the number of documents."""
        return len(self.lengths)

    @property
    def num_documents(self) -> int:
        """Number of documents, empty ones included."""
        return len(self.boundaries) - 1

    @property
    def num_tokens(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    def __len__(self) -> int:
        return self.num_sequences

    def __getitem__(self, sequence: int) -> Array:
        return self.read(sequence, 0, int(self.lengths[sequence]))

    def read(self, sequence: int, start: int, length: int) -> Array:
        """Ids ``start .. start + length`` of a sequence, as a view."""
        begin = int(self.offsets[sequence]) // self.tokens.itemsize + start
        return self.ids(begin, begin + length)

    def ids(self, begin: int, end: int) -> Array:
        """Ids ``begin .. end`` of the whole shard, as a view; raises ``DamageError`` when their bytes changed."""
        if self.blocks is not None:
            size = self.tokens.itemsize
            self.blocks.check(begin * size, min(end, len(self.tokens)) * size)
        return self.tokens[begin:end]


@dataclass(frozen=True)
class _Index:
    dtype_code: int
    lengths: Array
    offsets: Array
    boundaries: Array


def _read_index(path: Path) -> _Index:
    if not path.is_file():
        raise SourceError(f"`{path}` is missing", hint="a Megatron pair is PREFIX.bin and PREFIX.idx; give the prefix")
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if head.startswith(OLD_MAGIC):
        raise SourceError(
            f"`{path}` is in the old fairseq format (TNTIDX), which Megatron itself no longer reads",
            hint="make the pair anew with Megatron's tools/preprocess_data.py, or give the text instead",
        )
    if not head.startswith(MAGIC):
        raise SourceError(
            f"`{path}` is no Megatron index (it begins with {head[:9]!r})", hint="give the prefix of a pair"
        )
    if len(head) < _HEADER.size:
        raise DamageError(f"`{path}` ends inside its header ({num_bytes} bytes)", hint=_REMEDY)
    _, version, code, num_sequences, num_boundaries = _HEADER.unpack(head)
    if version == int.from_bytes(VERSION.to_bytes(8, "little"), "big"):  # 1, read in the wrong direction
        raise SourceError(
            f"`{path}` is big-endian (its version, at byte 9, reads {version}); pairs are little-endian",
            hint="it was made on another kind of machine: make the pair anew on a little-endian one, or give the text",
        )
    if version != VERSION:
        raise SourceError(f"`{path}` has version {version}, known is {VERSION}", hint="make the pair anew")
    if code not in _TOKEN_CODES:
        kind = np.dtype(_DTYPES[code]).name if code in _DTYPES else f"unknown code {code}"
        raise SourceError(f"`{path}` does not hold token ids (type: {kind})", hint="give the prefix of a token shard")
    return _map_index(path, num_bytes, code, num_sequences, num_boundaries)


def _map_index(path: Path, num_bytes: int, code: int, num_sequences: int, num_boundaries: int) -> _Index:
    expected = _HEADER.size + 12 * num_sequences + 8 * num_boundaries
    # A multimodal index has one more byte per sequence, which its header does not announce.
    if num_bytes not in (expected, expected + num_sequences) or num_boundaries < 1:
        raise DamageError(
            f"`{path}` has {num_bytes} bytes, its header asks for {expected} "
            f"({num_sequences} sequences, {num_boundaries} document boundaries)",
            hint=_REMEDY,
        )
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    at = _HEADER.size
    # Views of bytes, since nothing is aligned in this format: the header has 34 bytes.
    lengths = raw[at : at + 4 * num_sequences].view("<i4")
    offsets = raw[at + 4 * num_sequences : at + 12 * num_sequences].view("<i8")
    boundaries = raw[at + 12 * num_sequences : expected].view("<i8")
    if boundaries[-1] != num_sequences or boundaries[0] != 0:
        raise DamageError(
            f"`{path}`: documents cover sequences {boundaries[0]} to {boundaries[-1]}, there are {num_sequences}",
            hint=_REMEDY,
        )
    return _Index(code, lengths, offsets, boundaries)


def _read_tokens(path: Path, dtype: np.dtype[Any], index: _Index) -> Array:
    if not path.is_file():
        raise DamageError(f"`{path}` is missing, its index is there", hint=_REMEDY)
    num_bytes = path.stat().st_size
    expected = 0
    for begin in range(0, len(index.lengths), _BLOCK):  # in blocks, so that a long index is not held in memory
        expected += int(index.lengths[begin : begin + _BLOCK].sum(dtype=np.int64)) * dtype.itemsize
    if num_bytes != expected:
        raise DamageError(f"`{path}` has {num_bytes} bytes, its index asks for {expected}", hint=_REMEDY)
    last_end = int(index.offsets[-1]) + int(index.lengths[-1]) * dtype.itemsize if len(index.lengths) else 0
    if last_end != expected:
        raise DamageError(f"`{idx_path(path)}`: sequences end at byte {last_end}, not at {expected}", hint=_REMEDY)
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=dtype, mode="r") if num_bytes else np.empty(0, dtype=dtype)
