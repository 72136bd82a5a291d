"""Settings of `tokenize`: whose vocabulary the corpus is written in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deepen.settings import Count, Settings


class TrainVocabulary(Settings):
    """A new byte-level BPE vocabulary, for a base that is trained from scratch: ``{train: 4096}``."""

    train: Count = Field(ge=257)
    """Size of the vocabulary in tokens: ``<|endoftext|>`` (id 0), the 256 bytes, and merges learned from a sample of
    the domain and replay documents."""


class TokenizeConfig(Settings):
    """How documents become tokens."""

    vocabulary: Literal["keep"] | TrainVocabulary = "keep"
    """``keep`` uses the base's own tokenizer as it is, which a pretrained base needs; ``{train: N}`` learns a new one,
    which a base with ``init: random`` needs."""
