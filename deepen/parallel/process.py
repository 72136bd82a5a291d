"""Setting a process up for training or scoring: device, threads, reproducibility. One process so far."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from deepen.errors import RunError
from deepen.parallel.config import Compute


@dataclass(frozen=True)
class Process:
    """What this process computes with."""

    device: torch.device
    threads: int
    """CPU threads of matrix products."""


def set_up(compute: Compute) -> Process:
    """Choose the device, set the number of threads and make results repeatable; raises ``RunError`` without a GPU.

    The same machine with the same number of threads then gives the same bits. On a GPU that means deterministic kernels
    where they exist (a warning names an operation that has none).
    """
    has_gpu = torch.cuda.is_available()
    if compute.device == "cuda" and not has_gpu:
        raise RunError(
            "`device: cuda` was asked for, but there is no GPU that PyTorch can use", hint="use device: auto"
        )
    device = torch.device("cuda" if has_gpu and compute.device != "cpu" else "cpu")
    threads = len(os.sched_getaffinity(0)) if compute.threads == "auto" else compute.threads
    torch.set_num_threads(threads)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling new memory costs time and changes nothing that is read.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return Process(device, threads)


def resolve_precision(precision: str, device: torch.device) -> str:
    """``fp32`` or ``bf16``: what ``auto`` means on ``device`` (bf16 on a GPU that computes in it, else fp32)."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def memory_bytes(device: torch.device) -> int:
    """Largest memory use so far: allocated on the GPU, or resident of this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
