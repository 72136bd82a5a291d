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
        return cls(flags, dataset)

    @property
    def is_masked(self) -> bool:
        """Whether any token is no target: whether there is a file."""
        return self.flags is not None

    def read(self, sequence: int, start: int, length: int) -> Array | None:
        """Flags (uint8) of tokens ``start .. start + length`` of a sequence, as a view; None: all are targets."""
        if self.flags is None or self.dataset is None:
            return None
        begin = int(self.dataset.offsets[sequence]) // self.dataset.dtype.itemsize + start
        return self.flags[begin : begin + length]


def _flags(path: Path) -> Array | None:
    """The mapped mask in ``path``; None without a file."""
    if not path.is_file():
        return None
    return np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)


class TrainedWriter:
    """Writes the mask of one pair, in a ``with`` block; the file begins to exist with the first masked document."""

    def __init__(self, prefix: Path) -> None:
        self._path = trained_path(prefix)
        self._stack = ExitStack()
        self._file: HashingWriter | None = None
        self.num_tokens = 0
        self.num_targets = 0
        self.entries: tuple[FileEntry, ...] = ()
        """The entry of the file (named by its file name), if there is one, once the block has ended."""

    def __enter__(self) -> Self:
        self._path.unlink(missing_ok=True)  # of an earlier try: no file means that all is trained
        return self

    def add(self, num_tokens: int, flags: Array | None) -> None:
        """Append the flags (uint8) of ``num_tokens`` tokens; None: all of them are targets."""
        if flags is not None and self._file is None:
            self._file = self._stack.enter_context(writing(self._path))
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
            self.entries = (self._file.entry(self._path.name),)


def merge_trained(prefix: Path, parts: Sequence[tuple[Path, int]], root: Path) -> FileEntry | None:
    """Join the masks of parts, given as (prefix, number of tokens) in their order, to the mask of ``prefix``.

    A part without a mask counts as trained in full. None, and no file, when no part has one.
    """
    if not any(trained_path(part).is_file() for part, _ in parts):
        trained_path(prefix).unlink(missing_ok=True)
        return None
    with writing(trained_path(prefix)) as file:
        for part, num_tokens in parts:
            flags = _flags(trained_path(part))
            assert flags is None or len(flags) == num_tokens, f"`{trained_path(part)}` does not fit its ids"
            for begin in range(0, num_tokens, _BLOCK):
                length = min(_BLOCK, num_tokens - begin)
                file.write(np.ones(length, np.uint8) if flags is None else flags[begin : begin + length])
    return file.entry(trained_path(prefix).relative_to(root).as_posix())
