"""NumPy ``.npy`` files written in blocks and read as memory maps.

``numpy.save`` needs the whole array at once; here a file of any size is streamed through the atomic, hashing writer.
The bytes are those of ``numpy.save`` (format 1.0, C order, little-endian), so any NumPy reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepen.errors import DamageError
from deepen.formats.files.atomic import FileEntry, writing

Array = npt.NDArray[Any]


def write_array(
    path: Path, blocks: Iterable[Array], *, shape: tuple[int, ...], dtype: npt.DTypeLike, root: Path
) -> FileEntry:
    """Write ``blocks`` (cut along the first axis) as one array of ``shape``; its entry is relative to ``root``."""
    kind = np.dtype(dtype).newbyteorder("<")
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": tuple(map(int, shape))}
    num_rows = 0
    with writing(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            assert block.shape[1:] == shape[1:], f"block of shape {block.shape} in an array of shape {shape}"
            if block.size:  # an empty array has no buffer that could be written
                file.write(np.ascontiguousarray(block, dtype=kind))
            num_rows += len(block)
        # Inside the block: a wrong header never gets its name.
        assert num_rows == shape[0], f"{num_rows} rows written, {shape[0]} announced"
    return file.entry(path.relative_to(root).as_posix())


def open_array(path: Path) -> Array:
    """The array in ``path`` as a read-only memory map; raises ``DamageError`` when it is missing or unreadable."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError) as error:
        raise DamageError(
            f"`{path}` cannot be read as an array: {error}", hint="run the stage that wrote it again with --redo"
        ) from error
