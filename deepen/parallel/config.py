"""Where the model computes: part of the machine file, never of the recipe, and never fingerprinted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from deepen.settings import Settings

_Positive = Annotated[int, Field(gt=0)]

_TOKENS_PER_MICRO_BATCH = {"cpu": 4_096, "cuda": 16_384}
"""What ``micro_batch_rows: auto`` aims at: enough work per matrix product, little enough memory for activations."""


class Compute(Settings):
    """Device, threads and micro-batch: they change speed and memory, and results only by rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lives; ``auto``: the GPU when there is one."""
    threads: Literal["auto"] | _Positive = "auto"
    """CPU threads of the matrix products; ``auto``: one per core. Bit-equal resume needs the same number."""
    micro_batch_rows: Literal["auto"] | _Positive = "auto"
    """Rows per forward pass; ``auto``: about 4,096 tokens on a CPU, 16,384 on a GPU. Smaller needs less memory."""

    def rows_per_micro_batch(self, *, rows_per_batch: int, sequence_length: int, device: str) -> int:
        """Rows of one forward pass on ``device`` (``cpu`` or ``cuda``), at least 1 and at most the whole batch."""
        rows = self.micro_batch_rows
        if rows == "auto":
            rows = _TOKENS_PER_MICRO_BATCH[device] // sequence_length
        return max(1, min(rows, rows_per_batch))
