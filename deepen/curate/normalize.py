"""Normalisation that repairs and never rewrites: NFC, mojibake, line ends, control characters.

Quotes, dashes, ligatures, full-width forms, spaces, joiners and every script stay as they are: what a text means or
how code runs must not change. Most texts are plain; cheap tests let them pass untouched.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from deepen.curate.batch import Batch
from deepen.curate.spans import edited_within
from deepen.curate.step import BatchStep, Drop, Judgement, judged
from deepen.formats.documents import Document

_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_REMOVED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
# UTF-8 read as Windows-1252 or Latin-1 gives a lead byte's character followed by a continuation byte's.
_CONTINUATION = (
    "\x80-\xbf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d"
    "\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178"
)
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
            document = edited_within(document, lambda text: normalized(text, mojibake=self.mojibake))
        return document if document.text.strip() else Drop("nothing_left", 0.0)

    def judge(self, batch: Batch) -> Judgement:
        """Nothing to do for texts of common characters in their normal form; ``apply`` is for the others."""
        from deepen.curate.normalize_kernel import BLANK, UNUSUAL, look_at  # loads numba

        found = look_at(batch.texts.buffer, batch.texts.starts, batch.texts.ends)
        judgement = judged("normalize", [("nothing_left", "left", np.zeros(len(batch)), found == BLANK)])
        return replace(judgement, scores={}, undecided=found == UNUSUAL)


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
