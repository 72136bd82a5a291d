"""Hashes of a large file's blocks: whatever is read of the file is checked when its block is first touched.

``NAME.blocks`` stands beside ``NAME``: a header (16 bytes that say what it is, u64 bytes of a block, u64 bytes of the
file), then one xxh3-64 per block, all little-endian. Hashing a whole shard before training would read it twice; so each
block is hashed once per process, where it is mapped, and what it costs is spread over the reading.
"""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

import numpy as np
import xxhash

from deepen.errors import DamageError
from deepen.formats.files.arrays import Array
from deepen.formats.files.atomic import FileEntry, writing

BLOCK_BYTES = 1 << 18
"""Rows are read at random places, so the first one in a block pays for all of it: small blocks keep that cheap. About
as much as the system reads ahead anyway; the table is 1/32768 of the file."""
_MAGIC = b"deepen-blocks-1\n"
_HEADER = struct.Struct("<16sQQ")


def blocks_path(path: Path) -> Path:
    """``NAME.blocks`` of the file ``NAME``."""
    return path.with_name(path.name + ".blocks")


class BlockHashes:
    """Hashes of blocks, taken while a file is written (``HashingWriter.also``)."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._block = xxhash.xxh3_64()
        self._filled = 0
        self._num_bytes = 0

    def update(self, view: memoryview) -> None:
        """Take in the next bytes of the file."""
        at = 0
        while at < len(view):
            piece = view[at : at + BLOCK_BYTES - self._filled]
            self._block.update(piece)
            at, self._filled = at + len(piece), self._filled + len(piece)
            if self._filled == BLOCK_BYTES:
                self._end_block()
        self._num_bytes += len(view)

    def _end_block(self) -> None:
        self._hashes.append(self._block.intdigest())
        self._block.reset()
        self._filled = 0

    def write(self, path: Path) -> FileEntry:
        """Write the table of the file ``path``, which is complete; the entry is named by the table's file name."""
        if self._filled:
            self._end_block()
        table = blocks_path(path)
        with writing(table) as file:
            file.write(_HEADER.pack(_MAGIC, BLOCK_BYTES, self._num_bytes))
            if self._hashes:  # an empty array has no buffer that could be written
                file.write(np.frombuffer(self._hashes, dtype=np.uint64).astype("<u8", copy=False))
        return file.entry(table.name)


class CheckedBlocks:
    """Which blocks of a mapped file were found to be as they were written, in this process."""

    def __init__(self, path: Path, data: Array, hashes: Array, block_bytes: int) -> None:
        self._path, self._data, self._hashes, self._block_bytes = path, data, hashes, block_bytes
        # One byte per block, set when it was checked. Threads may check a block twice, which does no harm.
        self._checked = bytearray(len(hashes))

    @classmethod
    def open(cls, path: Path, mapped: Array) -> CheckedBlocks | None:
        """The blocks of ``path``, which is mapped as ``mapped``; None when no table stands beside it.

        Raises ``DamageError`` for a table that is not of this file.
        """
        table = blocks_path(path)
        if not table.is_file():
            return None
        raw = table.read_bytes()
        data = np.asarray(mapped).view(np.uint8)
        head = _HEADER.unpack(raw[: _HEADER.size]) if len(raw) >= _HEADER.size else (b"", 0, 0)
        magic, block_bytes, num_bytes = head
        num_blocks = -(-num_bytes // block_bytes) if magic == _MAGIC and block_bytes else -1
        if num_bytes != data.nbytes or len(raw) != _HEADER.size + 8 * num_blocks:
            raise DamageError(f"`{table}` is no table of the blocks of `{path.name}`", hint=_remedy(path))
        return cls(path, data, np.frombuffer(raw, dtype="<u8", offset=_HEADER.size), block_bytes)

    def check(self, begin: int, end: int) -> None:
        """Check the blocks that bytes ``begin .. end`` lie in; raises ``DamageError`` naming file, block and remedy."""
        for block in range(begin // self._block_bytes, -(-end // self._block_bytes)):
            if not self._checked[block]:
                self._check(block)

    def _check(self, block: int) -> None:
        begin = block * self._block_bytes
        data = self._data[begin : begin + self._block_bytes]
        if xxhash.xxh3_64_intdigest(data) != int(self._hashes[block]):  # type: ignore[arg-type]
            raise DamageError(
                f"block {block} of `{self._path}` (bytes {begin} to {begin + len(data)}) is not as it was written "
                "(hash differs)",
                hint=_remedy(self._path),
            )
        self._checked[block] = 1


def _remedy(path: Path) -> str:
    """What to do about a damaged file ``RUN/STAGE/FOLDER/NAME``: the command that makes its stage anew."""
    stage = path.parents[1]
    if (stage.parent / "recipe.yaml").is_file():
        return f"`deepen {stage.name} {stage.parent} --redo` makes what is damaged anew"
    return f"remove `{stage}` and make it again"
