"""Dense bf16 FLOP/s of GPUs, from their data sheets (without sparsity)."""

from __future__ import annotations

PEAK_BF16 = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "L4": 121e12,
}
"""By words of the device's name, the first that fits; SXM variants where nothing else is said."""


def peak_bf16(device_name: str) -> float | None:
    """The peak of the device with this name, or None when we do not know it."""
    words = set(device_name.replace("-", " ").split())
    found = [name for name in PEAK_BF16 if words.issuperset(name.split())]
    return PEAK_BF16[found[0]] if found else None
