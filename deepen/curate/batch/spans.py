"""Keeping spans right while texts are edited: who said what must hold after every step, to the character.

A step that rewrites characters does so within each span and between them; a step that takes lines out tells which
pieces stay. Whatever else changes the text of a document with spans loses it, with a reason.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from deepen.formats.documents.documents import TRAINED_ROLES, Document, Span

Piece = tuple[str, int, int]
"""Something of a text that stays: the separator that goes before it, and its first byte and the byte after it."""


def edited_within(document: Document, edit: Callable[[str], str]) -> Document:
    """The document with ``edit`` applied to its text; where it has spans, to each of them and to what is between."""
    if document.spans is None:
        text = edit(document.text)
        return document if text == document.text else replace(document, text=text)
    parts: list[str] = []
    spans: list[Span] = []
    old, new = 0, 0
    for span in document.spans:
        # Each part by itself: an edit of the whole text could join the end of a turn with what follows it.
        between, said = edit(document.text[old : span.begin]), edit(document.text[span.begin : span.end])
        begin = new + len(between)
        parts += [between, said]
        spans.append(Span(span.role, begin, begin + len(said)))
        old, new = span.end, begin + len(said)
    text = "".join([*parts, edit(document.text[old:])])
    return document if text == document.text else replace(document, text=text, spans=tuple(spans))


def of_pieces(document: Document, text: bytes, pieces: Sequence[Piece]) -> Document:
    """The document (whose text is ``text``) reduced to the pieces that stay, ascending, with its spans moved along.

    A span of which nothing stays becomes empty; separators between pieces of one span belong to it.
    """
    parts = [part for separator, first, last in pieces for part in (separator, text[first:last].decode())]
    reduced = "".join(parts)
    if document.spans is None or reduced == document.text:
        return replace(document, text=reduced)
    lengths = [len(part) for part in parts]
    # Every second part is a piece, the others are separators.
    new_begins = (np.cumsum(lengths) - lengths)[1::2].tolist()
    before = _characters_before(text)  # pieces count bytes, spans count characters
    old_begins = [int(before[first]) for _, first, _ in pieces]
    old_ends = [int(before[last]) for _, _, last in pieces]
    spans = []
    for span in document.spans:
        # The first piece that ends after the span begins, the last that begins before it ends: the span's own.
        after, at = bisect_right(old_ends, span.begin), bisect_left(old_begins, span.end) - 1
        begin = len(reduced)
        if after < len(pieces):
            # What began in something taken out begins with the piece; what began inside it keeps its distance.
            begin = new_begins[after] + max(0, span.begin - old_begins[after])
        end = begin
        if at >= 0:
            # If nothing of it stays, the last piece before it lies in front of `begin`: then the span is empty.
            end = max(begin, new_begins[at] + min(span.end, old_ends[at]) - old_begins[at])
        spans.append(Span(span.role, begin, end))
    return replace(document, text=reduced, spans=tuple(spans))


def _characters_before(text: bytes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How many characters begin before each byte, and in all at the end."""
    # A character begins at every byte that continues none.
    starts = (np.frombuffer(text, dtype=np.uint8) & 0xC0) != 0x80
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(starts)])


def lost_by(before: Document, after: Document) -> str | None:
    """Why a document whose text a step has changed cannot stay: ``spans_lost``, ``no_answer_left``; None if it can."""
    if before.spans is None or after.spans is None:
        return None if before.spans is after.spans else "spans_lost"
    if after.spans is before.spans:  # the step knows nothing of spans: they point into another text
        return "spans_lost"
    said = (after.text[span.begin : span.end] for span in after.spans if span.role in TRAINED_ROLES)
    return None if any(text.strip() for text in said) else "no_answer_left"
