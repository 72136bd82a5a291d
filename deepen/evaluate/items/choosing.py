"""Measuring choices by likelihood: every choice is scored given its prompt, the likeliest one is the answer.

Likelihoods come from the same windows as held-out documents: batches of similar length, no logits kept. All choices of
all items are scored together, so that batches are full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from deepen.evaluate.documents.likelihoods import NOT_FINITE
from deepen.evaluate.documents.material import Material
from deepen.evaluate.documents.windows import Encoded, likelihoods
from deepen.evaluate.items.files import Item
from deepen.evaluate.items.prompts import Texts, continuation_of, cut_left, texts_of
from deepen.evaluate.items.tables import Outcome, table_of
from deepen.model.loss.model import LossModel

TOO_LONG, NOTHING = "too_long_for_the_model", "choice_without_tokens"
"""Reasons of items that no model of this size, or no tokenizer, can be asked."""


@dataclass(frozen=True)
class Choosing:
    """How choices are asked for and compared."""

    normalise: str
    """``none``, ``bytes``, ``characters`` or ``tokens``: what likelihoods are divided by before they are compared."""
    separator: str
    """Stands between the prompt and a choice."""
    rest_only: bool = False
    """Of a cloze, score only the text behind the blank."""


def prepare_choices(
    items: Sequence[Item], choosing: Choosing, material: Material
) -> Callable[[LossModel, str | None], pa.Table]:
    """Encode items (those of ``material.only``, if set); see ``Probe.prepare`` for what is returned."""
    asked = [item for item in items if material.only is None or item.id in material.only]
    texts = texts_of(material)
    encoded = [[_encode(texts, item, choice, choosing) for choice in item.choices] for item in asked]

    def measure(model: LossModel, what: str | None) -> pa.Table:
        context = model.model.config.max_position_embeddings
        cut = [[cut_left(one, context) for one in documents] for documents in encoded]
        reasons = [item.reason or _reason(documents) for item, documents in zip(asked, cut, strict=True)]
        usable = [documents for documents, reason in zip(cut, reasons, strict=True) if reason is None]
        flat = [one for documents in usable for one in documents if one is not None]
        # Taken from one by one below, in the order of `flat`.
        nll = iter(likelihoods(model, flat, context=context, stride=1.0, what=what).tolist())
        return table_of(
            _outcome(item, documents, nll, choosing, cut_tokens=_most_cut(documents, shorter))
            if reason is None
            else _unused(item, reason)
            for item, documents, shorter, reason in zip(asked, encoded, cut, reasons, strict=True)
        )

    return measure


def _encode(texts: Texts, item: Item, choice: str, choosing: Choosing) -> Encoded:
    """A choice behind its prompt; of a cloze the text behind the blank belongs to it, or is all that is scored."""
    if choosing.rest_only:
        return continuation_of(texts, item.prompt + choosing.separator + choice, item.rest)
    return continuation_of(texts, item.prompt, choosing.separator + choice + item.rest)


def _reason(documents: Iterable[Encoded | None]) -> str | None:
    if any(one is None for one in documents):
        return TOO_LONG
    return NOTHING if any(one is not None and one.num_scored == 0 for one in documents) else None


def _most_cut(whole: Sequence[Encoded], cut: Sequence[Encoded | None]) -> int:
    return max(len(one.tokens) - len(other.tokens) for one, other in zip(whole, cut, strict=True) if other is not None)


def _unused(item: Item, reason: str) -> Outcome:
    gold = item.choices[item.gold] if item.choices else ""
    return Outcome(item.id, item.task, item.cluster, reason=reason, gold=gold)


def _outcome(
    item: Item, documents: Sequence[Encoded], nll: Iterator[float], choosing: Choosing, *, cut_tokens: int
) -> Outcome:
    found = [next(nll) for _ in documents]
    sizes = [len(text.encode()) for text in item.choices], [document.num_scored for document in documents]
    lengths = {
        "none": [1] * len(found),
        "bytes": sizes[0],
        "characters": [len(text) for text in item.choices],
        "tokens": sizes[1],
    }[choosing.normalise]
    best = int(np.argmin([value / length for value, length in zip(found, lengths, strict=True)]))
    is_finite = bool(np.isfinite(found).all())
    return Outcome(
        item.id, item.task, item.cluster,
        value=float(best == item.gold) if is_finite else None,
        reason=None if is_finite else NOT_FINITE,
        gold=item.choices[item.gold],
        answer=item.choices[best] if is_finite else "",
        nll=tuple(found) if is_finite else (), bytes=tuple(sizes[0]), tokens=tuple(sizes[1]),
        cut_tokens=cut_tokens,
    )  # fmt: skip
