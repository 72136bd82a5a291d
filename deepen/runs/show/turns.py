"""Documents with turns, to be looked at: who said what, and after tokenizing what of it is learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from deepen.formats.documents.document_ids import read_document_ids
from deepen.formats.documents.documents import TRAINED_ROLES, Document
from deepen.formats.manifest import Artifact
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.formats.tokens.trained import TrainedMask
from deepen.runs.order.rows import open_tokenizer

MASKED = "\u27e6{}\u27e7"
"""Brackets around what is read and not learned."""


def document_record(document: Document) -> dict[str, Any]:
    """A document as a record; instead of spans, where it has some, its turns and whether they are learned."""
    record = asdict(document)
    del record["spans"]
    if document.spans is not None:
        record["turns"] = [
            {
                "role": span.role,
                "trained": span.role in TRAINED_ROLES,
                "text": document.text[span.begin : span.end],
            }
            for span in document.spans
        ]
    return record


def masked_documents(tokenized: Artifact, sample: int) -> Iterator[dict[str, Any]]:
    """The first ``sample`` documents of each source with a mask, decoded, what is not learned in brackets."""
    tokenizer = open_tokenizer(tokenized.path / "tokenizer")
    for name in tokenized.counts["sources"]:
        prefix = tokenized.path / "shards" / name
        dataset = IndexedDataset.open(prefix)
        mask = TrainedMask.open(prefix, dataset)
        if not mask.is_masked:
            continue
        ids = read_document_ids(tokenized.path / "documents" / f"{name}.npy")
        for sequence in range(min(sample, len(dataset))):
            tokens = np.asarray(dataset[sequence])
            flags = np.asarray(mask.read(sequence, 0, len(tokens)))
            yield {
                "source": name,
                "document": ids[sequence],
                "tokens": len(tokens),
                "targets": int(flags.sum()),
                "text": marked_text(tokenizer, tokens, flags),
            }


def marked_text(tokenizer: Any, tokens: npt.NDArray[Any], flags: npt.NDArray[Any]) -> str:
    """Tokens as text, those without a flag in brackets; marks of the template are spelled out."""
    cuts = np.flatnonzero(np.diff(flags)) + 1
    pieces = []
    for part, own in zip(np.split(tokens, cuts), np.split(flags, cuts), strict=True):
        text = tokenizer.decode(part.tolist(), skip_special_tokens=False)
        pieces.append(text if len(own) and own[0] else MASKED.format(text))
    return "".join(pieces)
