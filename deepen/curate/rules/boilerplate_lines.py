"""Taking out the lines that the documents of a source have in common: menus, footers, notices."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from deepen.curate.batch.columns import Batch
from deepen.curate.batch.spans import Piece, of_pieces
from deepen.curate.batch.texts import Texts, texts_of, texts_of_bytes
from deepen.curate.passes.corpus import Positions
from deepen.curate.passes.surveys import BatchSurveyStep, Keys
from deepen.curate.step import Drop, Judgement
from deepen.formats.documents.documents import Document
from deepen.settings import Count, Share


class BoilerplateLines(BatchSurveyStep):
    """Remove lines that recur in many documents of a source, where they stand at the beginning or end of a document,
    beside another such line, or are sentences; a lone recurring heading inside a text stays. Leave it out for code,
    whose files begin alike."""

    use: Literal["boilerplate_lines"] = "boilerplate_lines"
    min_documents: Annotated[Count, Field(ge=2)] = 10
    """A line recurs when at least so many documents of its source have it. Our choice."""
    min_share: Share = 0.001
    """And at least this share of them, so that a large source does not lose its common phrases. Our choice."""
    min_words: Annotated[int, Field(ge=1)] = 6
    """A lone recurring line inside a text goes if it has so many words: it is a notice then and no heading."""

    def keys(self, document: Document) -> Keys:
        """Hashes of the document's lines, white space aside."""
        _, keys, words, _ = _lines(texts_of([document.text]))
        return np.unique(keys[words > 0])

    def batch_keys(self, batch: Batch) -> Keys:
        """The same for all living documents of a batch."""
        from deepen.curate.kernels.boilerplate import distinct_keys  # loads numba

        _, keys, words, offsets = _lines(batch.texts.only(batch.alive))
        return np.asarray(distinct_keys(keys, words, offsets))

    def fewest_documents(self, num_documents: int) -> int:
        """The larger of the two limits."""
        return max(self.min_documents, math.ceil(self.min_share * num_documents))

    def apply_found(self, document: Document, found: Keys) -> Document | Drop:
        """The document without its boilerplate; one of nothing but recurring lines stays whole, for it is a copy of
        others and a matter for the steps on duplicates."""
        from deepen.curate.kernels.boilerplate import find_boilerplate  # loads numba

        text = document.text.encode()
        ends, keys, words, _ = _lines(texts_of_bytes([text]))
        removed = find_boilerplate(keys, words, found, self.min_words)
        scores = document.scores | {"boilerplate_lines.removed": float(removed.sum())}
        if not removed.any() or (removed | (words == 0)).all():
            return replace(document, scores=document.scores | {"boilerplate_lines.removed": 0.0})
        pieces = _without(text, ends.tolist(), removed.tolist(), words.tolist())
        return of_pieces(replace(document, scores=scores), text, pieces)

    def judge_found(self, batch: Batch, found: Keys) -> Judgement:
        """The same for documents of which nothing is to be removed; ``apply_found`` is for the others."""
        from deepen.curate.kernels.boilerplate import count_removed  # loads numba

        _, keys, words, offsets = _lines(batch.texts.only(batch.alive))
        removed = count_removed(keys, words, offsets, found, self.min_words)
        return Judgement({"boilerplate_lines.removed": np.zeros(len(batch))}, undecided=removed > 0)


def _lines(texts: Texts) -> tuple[Positions, Keys, Positions, Positions]:
    """Ends, keys and numbers of words of the lines of texts, end to end, and where those of each begin [n + 1]."""
    from deepen.curate.kernels.boilerplate import all_line_keys
    from deepen.curate.kernels.text import room_for_lines

    most = int(room_for_lines(texts.buffer, texts.starts, texts.ends))
    ends, keys = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.uint64)
    words, offsets = np.empty(most, dtype=np.int64), np.zeros(len(texts) + 1, dtype=np.int64)
    all_line_keys(texts.buffer, texts.starts, texts.ends, ends, keys, words, offsets)
    used = offsets[-1]
    return ends[:used], keys[:used], words[:used], offsets


def _without(text: bytes, ends: list[int], removed: list[bool], words: list[int]) -> list[Piece]:
    """The lines that stay; where some were removed, the blank lines around become one side's."""
    lines: list[tuple[int, int]] = []
    start, after_gap = 0, False
    for end, gone, num_words in zip(ends, removed, words, strict=True):
        if gone:
            after_gap = True
        elif num_words or not after_gap or (lines and text[slice(*lines[-1])].strip()):
            lines.append((start, end))
            after_gap = after_gap and num_words == 0
        start = end + 1
    while lines and lines[0][0] == lines[0][1]:  # no empty lines at the ends
        del lines[0]
    while lines and lines[-1][0] == lines[-1][1]:
        del lines[-1]
    return [("\n" if number else "", first, last) for number, (first, last) in enumerate(lines)]
