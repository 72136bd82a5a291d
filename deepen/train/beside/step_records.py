"""The record of a step in ``metrics.jsonl``: losses overall and per source, speed, memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deepen.parallel.process import memory_bytes
from deepen.train.batches.read import IGNORED, Batch
from deepen.train.run import Run
from deepen.train.step import StepResult


def step_record(run: Run, batch: Batch, result: StepResult) -> dict[str, Any]:
    """What a step measured: losses in nats per token and bits per byte, overall and per source."""
    num_sources = len(run.names)
    labels_B = (batch.labels_BT != IGNORED).sum(1)
    nll_S = np.bincount(batch.source_B, result.nll_B, num_sources)
    labels_S = np.bincount(batch.source_B, labels_B, num_sources)
    # Nobody counts the bytes of a batch: the ratio of the whole source turns labels into bytes.
    bytes_S = labels_S / run.tokens_per_byte
    present = [source for source in range(num_sources) if labels_S[source]]
    return {
        "step": run.progress.step,
        "tokens": run.progress.tokens,
        "loss": _finite(nll_S.sum() / max(1, labels_S.sum())),
        "bits_per_byte": _finite(nll_S.sum() / math.log(2) / max(1.0, bytes_S.sum())),
        "loss_by_source": {run.names[s]: _finite(nll_S[s] / labels_S[s]) for s in present},
        "bits_per_byte_by_source": {run.names[s]: _finite(nll_S[s] / math.log(2) / bytes_S[s]) for s in present},
        "gradient_norm": _finite(result.gradient_norm),
        "skipped": result.skipped,
        **({} if not result.penalties else {"penalties": {n: _finite(v) for n, v in result.penalties.items()}}),
    }


def speed_record(run: Run, batch: Batch, seconds: float) -> dict[str, Any]:
    """Speed of a step without evaluation and saving: tokens (no padding), and FLOP/s as a share of the peak (MFU)."""
    num_tokens = int((batch.documents_BT >= 0).sum())
    flops_per_second = run.flops.of(num_tokens, batch.tokens_BT.shape[1], seconds)
    compiled = {} if run.compilations is None else {"recompiles": run.compilations.take()}
    return {
        "tokens_per_second": num_tokens / seconds,
        "model_flops_per_second": flops_per_second,
        "mfu": flops_per_second / run.flops.peak if flops_per_second and run.flops.peak else None,
        "memory_bytes": memory_bytes(run.trainee.device),
        "elapsed_seconds": run.progress.elapsed_seconds,
        **compiled,
    }


def _finite(value: float) -> float | None:
    """A number for JSON, which knows neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None
