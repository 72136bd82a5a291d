"""What was trained, per source: the part of the token account that training keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deepen.train.batches.read import IGNORED, Batch


@dataclass
class SourceCounts:
    """Running totals of one source. ``tokens == loss_tokens + masked + without_label``; padding is none of them."""

    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    masked: int = 0
    """Tokens whose label is no target: what a question or a mark of a chat template would follow."""
    without_label: int = 0
    """Last tokens of documents."""
    skipped_rows: int = 0
    """Rows of batches whose update was skipped; they are in none of the other numbers."""
    skipped_tokens: int = 0


def count_batch(counts: list[SourceCounts], batch: Batch, *, applied: bool) -> None:
    """Add a batch to the totals, by source index."""
    tokens_B = (batch.documents_BT >= 0).sum(1)
    labels_B = (batch.labels_BT != IGNORED).sum(1)
    rows_S = np.bincount(batch.source_B, minlength=len(counts))
    # With weights bincount adds up in float64, which is exact for counts below 2^53.
    tokens_S = np.bincount(batch.source_B, tokens_B, len(counts)).astype(np.int64)
    labels_S = np.bincount(batch.source_B, labels_B, len(counts)).astype(np.int64)
    masked_S = np.bincount(batch.source_B, batch.masked_B, len(counts)).astype(np.int64)
    for source, total in enumerate(counts):
        rows, tokens, labels = int(rows_S[source]), int(tokens_S[source]), int(labels_S[source])
        if applied:
            total.rows += rows
            total.tokens += tokens
            total.loss_tokens += labels
            total.masked += int(masked_S[source])
            total.without_label += tokens - labels - int(masked_S[source])
        else:
            total.skipped_rows += rows
            total.skipped_tokens += tokens


def counts_to_json(names: tuple[str, ...], counts: list[SourceCounts]) -> dict[str, dict[str, int]]:
    """The totals by source name."""
    return {name: asdict(total) for name, total in zip(names, counts, strict=True)}


def counts_from_json(names: tuple[str, ...], stored: Mapping[str, Any]) -> list[SourceCounts]:
    """The inverse of ``counts_to_json``; a source that is not in ``stored`` begins at zero."""
    return [SourceCounts(**stored.get(name, {})) for name in names]
