"""Writing tensors as safetensors: atomically, hashed on the way, one tensor at a time in memory.

The library's own writer wants all tensors on the CPU at once and returns no hash.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepen.formats.files.atomic import FileEntry, writing

_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Write tensors as one safetensors file, atomically and hashed, moving one at a time to the CPU."""
    return write_streamed(path, tensors, lambda name: tensors[name])


def write_streamed(path: Path, shapes: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> FileEntry:
    """The same of tensors that ``read`` brings by name, one at a time; ``shapes`` has their shapes and precisions."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in shapes.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format lets a header end in spaces, so that the data begins at a multiple of 8.
    text += b" " * (-len(text) % 8)
    with writing(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in shapes:
            plain = read(name).detach().to("cpu").contiguous().reshape(-1)
            if plain.numel():
                file.write(plain.view(torch.uint8).numpy())
    return file.entry(path.name)
