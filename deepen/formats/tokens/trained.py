"""Which tokens of a shard are targets: ``PREFIX.trained``, one byte for each token of ``PREFIX.bin``.

1: this token is to be predicted, 0: it is only read (a question, a system prompt, the marks of a chat template). The
file exists only where some document of the source is masked; without it every token is a target. Bytes instead of bits
because readers slice them beside the ids without shifting anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from deepen.errors import DamageError
from deepen.formats.files.arrays import Array
from deepen.formats.files.atomic import FileEntry, HashingWriter, writing
from deepen.formats.files.blocks import BlockHashes, CheckedBlocks, blocks_path
from deepen.formats.tokens.megatron import IndexedDataset

_BLOCK = 1 << 20


def trained_path(prefix: Path) -> Path:
    """``PREFIX.trained``; a dot inside the prefix is part of its name."""
    return prefix.with_name(prefix.name + ".trained")


@dataclass(frozen=True)
class TrainedMask:
    """The mask beside a pair; ``read`` gives None where the pair has none, which means that all is trained."""

    flags: Array | None
    """uint8 per token of ``.bin``, back to back; None: no file, every token is a target."""
    dataset: IndexedDataset | None = None
    """The pair that the mask belongs to, where there is a mask."""
    blocks: CheckedBlocks | None = None
    """Hashes of the blocks of the mask, where it has a table of them."""

    @classmethod
    def open(cls, prefix: Path, dataset: IndexedDataset | None = None) -> TrainedMask:
        """Map the mask of the pair at ``prefix`` (``dataset`` spares opening it again).

        Raises ``DamageError`` when the mask has not one byte per token.
        """
        path = trained_path(Path(prefix))
        if not path.is_file():
            return cls(None)
        dataset = IndexedDataset.open(Path(prefix)) if dataset is None else dataset
        flags = _flags(path)
        if flags is None or len(flags) != dataset.num_tokens:
            raise DamageError(
                f"`{path}` has {path.stat().st_size} bytes, its shard has {dataset.num_tokens} tokens",
                hint="run `deepen tokenize` again with --redo",
            )
        return cls(flags, dataset, CheckedBlocks.open(path, flags))

    @property
    def is_masked(self) -> bool:
        """Whether any token is no target: whether there is a file."""
        return self.flags is not None

    def read(self, sequence: int, start: int, length: int) -> Array | None:
        """Flags (uint8) of tokens ``start .. start + length`` of a sequence, as a view; None: all are targets."""
        if self.flags is None or self.dataset is None:
            return None
        begin = int(self.dataset.offsets[sequence]) // self.dataset.dtype.itemsize + start
        if self.blocks is not None:
            self.blocks.check(begin, min(begin + length, len(self.flags)))
        return self.flags[begin : begin + length]


def _flags(path: Path) -> Array | None:
    """The mapped mask in ``path``; None without a file."""
    if not path.is_file():
        return None
    return np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)


class TrainedWriter:
    """Writes the mask of one pair, in a ``with`` block; the file begins to exist with the first masked document."""

    def __init__(self, prefix: Path, *, blocks: bool = False) -> None:
        self._path = trained_path(prefix)
        self._blocks = BlockHashes() if blocks else None
        self._stack = ExitStack()
        self._file: HashingWriter | None = None
        self.num_tokens = 0
        self.num_targets = 0
        self.entries: tuple[FileEntry, ...] = ()
        """Entries of the file and of its table of blocks (by file names), if there is one, once the block has ended."""

    def __enter__(self) -> Self:
        _remove_mask(self._path)
        return self

    def add(self, num_tokens: int, flags: Array | None) -> None:
        """Append the flags (uint8) of ``num_tokens`` tokens; None: all of them are targets."""
        if flags is not None and self._file is None:
            self._file = self._stack.enter_context(writing(self._path))
            self._file.also = self._blocks.update if self._blocks is not None else None
            self._write_ones(self.num_tokens)  # for all that came before the first masked document
        if flags is not None and self._file is not None:
            assert len(flags) == num_tokens, f"{len(flags)} flags for {num_tokens} tokens"
            self._file.write(np.ascontiguousarray(flags, dtype=np.uint8))
        else:
            self._write_ones(num_tokens)
        self.num_tokens += num_tokens
        self.num_targets += num_tokens if flags is None else int(flags.sum(dtype=np.int64))

    def _write_ones(self, num_tokens: int) -> None:
        for begin in range(0, num_tokens if self._file is not None else 0, _BLOCK):
            assert self._file is not None
            self._file.write(np.ones(min(_BLOCK, num_tokens - begin), dtype=np.uint8))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None and self._file is not None:
            table = (self._blocks.write(self._path),) if self._blocks is not None else ()
            self.entries = (self._file.entry(self._path.name), *table)


def _remove_mask(path: Path) -> None:
    """Remove the mask of an earlier try: no file means that all is trained."""
    path.unlink(missing_ok=True)
    blocks_path(path).unlink(missing_ok=True)


def merge_trained(
    prefix: Path, parts: Sequence[tuple[Path, int]], root: Path, *, blocks: bool = False
) -> tuple[FileEntry, ...]:
    """Join the masks of parts, given as (prefix, number of tokens) in their order, to the mask of ``prefix``.

    Returns its entry and, with ``blocks``, that of the table of its blocks. A part without a mask counts as trained in
    full. No entry, and no file, when no part has one.
    """
    path, hashes = trained_path(prefix), BlockHashes()
    _remove_mask(path)
    if not any(trained_path(part).is_file() for part, _ in parts):
        return ()
    with writing(path) as file:
        file.also = hashes.update if blocks else None
        for part, num_tokens in parts:
            flags = _flags(trained_path(part))
            assert flags is None or len(flags) == num_tokens, f"`{trained_path(part)}` does not fit its ids"
            for begin in range(0, num_tokens, _BLOCK):
                length = min(_BLOCK, num_tokens - begin)
                file.write(np.ones(length, np.uint8) if flags is None else flags[begin : begin + length])
    entry = file.entry(path.relative_to(root).as_posix())
    if not blocks:
        return (entry,)
    table = hashes.write(path)
    return entry, table.model_copy(update={"path": blocks_path(path).relative_to(root).as_posix()})
