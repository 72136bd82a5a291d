"""Prompts and answers as tokens, for probes whose items are questions.

A continuation is what is left of the whole text's tokens behind those of its prompt, with spaces at the prompt's end
moved to the continuation: many vocabularies join a space to the word after it, and a prompt that ends in one would ask
for a token that the model has never seen there. The prompt keeps the tokens that it has by itself, also where a
vocabulary would join its end with what follows. Both are conventions of the lm-evaluation-harness, so results compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from deepen.evaluate.documents.material import Material
from deepen.evaluate.documents.windows import Encoded, plain_encoder
from deepen.evaluate.items.files import Item
from deepen.model.weights.load import load_tokenizer


@dataclass(frozen=True)
class Texts:
    """The tokenizer of the model that is measured, reading text as nothing but text."""

    encoder: Tokenizer
    begin_ids: tuple[int, ...]
    """The begin-of-document token, if the base's tokenizer puts one before a text."""
    end_ids: frozenset[int]
    """Tokens that end an answer."""
    folder: Path

    @property
    def num_tokens(self) -> int:
        """Ids of the tokenizer; rows of the model beyond are padding."""
        return int(max(self.encoder.get_vocab(with_added_tokens=True).values()) + 1)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text with the begin token before it."""
        return [*self.begin_ids, *self.encoder.encode(text, add_special_tokens=False).ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self.encoder.decode(list(tokens), skip_special_tokens=True))

    def split(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of the prompt and of its continuation."""
        spaces = len(prompt) - len(prompt.rstrip())
        if spaces:
            continuation, prompt = prompt[-spaces:] + continuation, prompt[:-spaces]
        before, whole = self.encode(prompt), self.encode(prompt + continuation)
        # By number of tokens, not by text: also where the vocabulary joins the prompt's end with what follows.
        return before, whole[len(before) :]


def texts_of(material: Material) -> Texts:
    """Texts as the model of ``material`` reads them."""
    begin = material.begin_of_document_id
    tokenizer = load_tokenizer(material.tokenizer)
    ends = frozenset(token for token in (tokenizer.eos_token_id,) if token is not None)
    return Texts(plain_encoder(material.tokenizer), () if begin is None else (begin,), ends, material.tokenizer)


def continuation_of(texts: Texts, prompt: str, continuation: str) -> Encoded:
    """A prompt with its continuation as a document of which only the continuation is scored.

    Without a begin token nothing stands before an empty prompt's first token: that token is then not scored.
    """
    before, after = texts.split(prompt, continuation)
    tokens = np.array([*before, *after], dtype=np.int32)
    first = min(max(len(before), 1), len(tokens))
    return Encoded(tokens, first, len(continuation.encode()))


def cut_left(document: Encoded, context: int) -> Encoded | None:
    """The last ``context`` + 1 tokens of a document, as many as one window takes; None when scored ones would go."""
    surplus = len(document.tokens) - (context + 1)
    if surplus <= 0:
        return document
    if document.first_scored - surplus < 1:
        return None
    return Encoded(document.tokens[surplus:], document.first_scored - surplus, document.num_bytes)


def shown(item: Item, between: str) -> str:
    """A solved item as text."""
    answer = item.choices[item.gold] if item.choices else item.answers[0]
    return item.prompt.rstrip() + between + answer + item.rest


def with_shots(items: Sequence[Item], examples: Sequence[str]) -> list[Item]:
    """The items with the examples before their prompts."""
    before = "".join(f"{example}\n\n" for example in examples)
    return [replace(item, prompt=before + item.prompt) for item in items]
