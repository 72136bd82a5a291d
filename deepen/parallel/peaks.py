"""Dense bf16 FLOP/s of GPUs, from their data sheets (without sparsity)."""

from __future__ import annotations

PEAK_BF16 = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
}
"""By a part of the device's name; SXM variants where they differ."""


def peak_bf16(device_name: str) -> float | None:
    """The peak of the device with this name, or None when we do not know it."""
    found = [name for name in PEAK_BF16 if name in device_name.replace("-", " ").split()]
    return PEAK_BF16[found[0]] if found else None
