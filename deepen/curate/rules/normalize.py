"""Normalisation that repairs and never rewrites: NFC, mojibake, line ends, control characters.

Quotes, dashes, ligatures, full-width forms, spaces, joiners and every script stay as they are: what a text means or
how code runs must not change. Most texts are plain; cheap tests let them pass untouched.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from deepen.curate.batch.columns import Batch
from deepen.curate.batch.spans import edited_within
from deepen.curate.batch.texts import texts_of_bytes
from deepen.curate.step import BatchStep, Drop, Judgement, judged
from deepen.formats.documents.documents import Document

_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_REMOVED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
# UTF-8 read as Windows-1252 or Latin-1 gives a lead byte's character followed by a continuation byte's.
_CONTINUATION = (
    "\x80-\xbf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d"
    "\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178"
)
_SEGMENT_BYTES = 1_000_000
_MOJIBAKE = re.compile(f"[\xc2-\xf4][{_CONTINUATION}]")


class Normalize(BatchStep):
    """Bring text into one form without changing what it says; what is left empty is dropped (``nothing_left``)."""

    edits: ClassVar[bool] = True

    use: Literal["normalize"] = "normalize"
    mojibake: bool = True
    """Repair lines of UTF-8 that were read in another encoding (``cafÃ©``), with ftfy."""

    def apply(self, document: Document) -> Document | Drop:
        """The document in normal form."""
        if not (document.text.isascii() and document.text.isprintable()):
            document = edited_within(document, self._edited)
        return document if document.text.strip() else Drop("nothing_left", 0.0)

    def judge(self, batch: Batch) -> Judgement:
        """Nothing to do for texts of common characters in their normal form; ``apply`` is for the others."""
        from deepen.curate.kernels.normalize import BLANK, UNUSUAL, look_at  # loads numba

        found = look_at(batch.texts.buffer, batch.texts.starts, batch.texts.ends)
        judgement = judged("normalize", [("nothing_left", "left", np.zeros(len(batch)), found == BLANK)])
        unusual = found == UNUSUAL
        large = unusual & (batch.texts.sizes > _SEGMENT_BYTES) & ~batch.has_spans & batch.alive
        if not large.any():
            return replace(judgement, scores={}, undecided=unusual)
        pieces = [
            batch.texts.data(row) if not large[row] else self._large(batch.texts.data(row)) for row in range(len(large))
        ]
        blank = np.array([bool(large[row]) and not bytes(pieces[row]).strip() for row in range(len(large))])
        rules = [("nothing_left", "left", np.zeros(len(batch)), (found == BLANK) | blank)]
        texts = texts_of_bytes(pieces)
        return replace(judged("normalize", rules), scores={}, undecided=unusual & ~large, texts=texts)

    def _edited(self, text: str) -> str:
        data = text.encode()
        if len(data) > _SEGMENT_BYTES:
            return self._large(np.frombuffer(data, dtype=np.uint8)).decode()
        return normalized(text, mojibake=self.mojibake)

    def _large(self, data: npt.NDArray[np.uint8]) -> bytes:
        """A large text in normal form; as a string it would take several times the memory."""
        return b"".join(normalized(piece, mojibake=self.mojibake).encode() for piece in _segments(data))


def _segments(data: npt.NDArray[np.uint8]) -> Iterator[str]:
    """A text in pieces of about a megabyte: of whole lines, or where a line is longer cut before a space, where
    nothing joins."""
    begin = 0
    while begin < len(data):
        end = min(begin + _SEGMENT_BYTES, len(data))
        while end < len(data):
            window = data[begin + 1 : end]
            (after_lines,), (spaces,) = np.nonzero(data[begin : end - 1] == 0x0A), np.nonzero(window == 0x20)
            cuts = after_lines if len(after_lines) else spaces
            if len(cuts):
                end = begin + 1 + int(cuts[-1])
                break
            end = min(end + _SEGMENT_BYTES, len(data))
        yield data[begin:end].tobytes().decode()
        begin = end


def normalized(text: str, *, mojibake: bool = True) -> str:
    r"""Repaired mojibake, only ``\n`` as line end, no control characters but ``\n`` and ``\t``, Unicode NFC."""
    if mojibake and not text.isascii() and _MOJIBAKE.search(text):
        text = "\n".join(_repaired(line) for line in text.split("\n"))
    if _UNWANTED.search(text):
        text = _REMOVED.sub("", _LINE_END.sub("\n", text))
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _repaired(line: str) -> str:
    """The line with its encoding mended; ftfy leaves alone what makes sense as it is."""
    if not _MOJIBAKE.search(line):
        return line
    import ftfy  # here because it takes a while to load and few texts need it

    return str(ftfy.fix_encoding(line))
