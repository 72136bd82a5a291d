"""In which language a document is, by py3langid, whose model comes with the package."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field

from deepen.curate.step import DocumentStep, Drop
from deepen.formats.documents.documents import Document
from deepen.settings import Many, Share

UNKNOWN = "unknown"
_NUM_PLACES, _LARGEST_SAMPLE = 3, 999


class Language(DocumentStep):
    """Recognise the language of each document, note it in the document, and keep the languages that are wanted."""

    use: Literal["language"] = "language"
    keep: Many[Annotated[str, Field(pattern=r"^([a-z]{2,3}|unknown)$")]] = ()
    """Languages that stay, as ISO 639 codes such as ``en``; ``unknown`` keeps what cannot be told. None given: all
    stay. The reason of a drop is ``language_`` with the code."""
    min_score: Share = 0.5
    """Below this probability a document's language is what its source says, or else ``unknown``. Our choice."""

    def apply(self, document: Document) -> Document | Drop:
        """The document with its language and the score of the recognition, or why it goes."""
        code, score = recognise(document.text)
        language = code if score >= self.min_score else document.language
        if self.keep and (language or UNKNOWN) not in self.keep:
            return Drop(f"language_{language or UNKNOWN}", score)
        return replace(document, language=language, scores=document.scores | {"language.score": score})


def recognise(text: str) -> tuple[str, float]:
    """The most probable language of a text and its probability, from at most 1,000 characters out of three places."""
    sample = text
    if len(text) > _LARGEST_SAMPLE:
        size = _LARGEST_SAMPLE // _NUM_PLACES
        starts = [(2 * place + 1) * len(text) // (2 * _NUM_PLACES) - size // 2 for place in range(_NUM_PLACES)]
        sample = "\n".join(text[start : start + size] for start in starts)
    code, score = _identifier().classify(sample)
    return str(code), round(float(score), 6)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second to load

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
