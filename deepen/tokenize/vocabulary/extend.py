"""A base's tokenizer with more tokens: the file, the proof that nothing else changed, and ``extension.json``.

New ids follow the largest old one and new merges rank after all old ones. Added tokens (``<|endoftext|>``) that are no
pieces of the model are listed among its pieces with the ids they have, because ``tokenizers`` would else number them
anew from the number of pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from deepen.errors import DeepenError
from deepen.formats.files.atomic import FileEntry, write_bytes
from deepen.formats.tokens.extension import Extension, NewToken
from deepen.tokenize.vocabulary.base_model import BaseModel
from deepen.tokenize.vocabulary.growth import Growth

_FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Changes:
    """How many of some documents a larger vocabulary splits in another way."""

    documents: int
    changed: int
    tokens_before: int
    tokens_after: int

    def counts(self) -> dict[str, int]:
        """For a manifest."""
        return asdict(self)


def extended(base: BaseModel, growth: Growth) -> BaseModel:
    """The base with the tokens and merges of ``growth``."""
    settings = json.loads(json.dumps(base.settings))  # a deep copy: the base is still needed as it is
    model = settings["model"]
    vocabulary = model["vocab"]
    for token in settings["added_tokens"]:
        vocabulary.setdefault(token["content"], token["id"])
    for number, token in enumerate(growth.tokens, start=base.size):
        assert token not in vocabulary, f"{token!r} is a token already"
        vocabulary[token] = number
    # Older files have "a b" instead of ["a", "b"].
    as_pairs = not model["merges"] or not isinstance(model["merges"][0], str)
    model["merges"] += [list(merge) if as_pairs else " ".join(merge) for merge in growth.merges]
    return BaseModel(Tokenizer.from_str(json.dumps(settings, ensure_ascii=False)), settings)


def write_grown(folder: Path, grown: BaseModel) -> list[FileEntry]:
    """Put the grown vocabulary into a written tokenizer folder; returns the entries of the files that changed.

    The folder names the plain class, so that ``AutoTokenizer`` reads the file and rebuilds nothing.
    """
    config = json.loads((folder / _CONFIG).read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    texts = {
        _FILE: json.dumps(grown.settings, ensure_ascii=False, indent=2),
        _CONFIG: json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n",
    }
    entries = [write_bytes(folder / name, text.encode()) for name, text in texts.items()]
    return [entry.model_copy(update={"path": f"{folder.name}/{entry.path}"}) for entry in entries]


def extension_of(base: BaseModel, grown: BaseModel, tokens: Sequence[str], init: dict[str, Any]) -> Extension:
    """What ``extension.json`` says: every new token, what it reads as and what it was before."""
    # A piece that the base cannot write had no tokens before; the unknown token's row would say nothing of it.
    old_ids = [[] if base.unknown_id in ids else ids for ids in base.encode_words(tokens)]
    new = [
        NewToken(id=grown.vocabulary[token], token=token, text=base.read_token(token), old_ids=tuple(ids))
        for token, ids in zip(tokens, old_ids, strict=True)
    ]
    return Extension(base_vocabulary_size=base.size, vocabulary_size=grown.size, tokens=tuple(new), init=init)


def prove_grown(base: BaseModel, grown: BaseModel, tokens: Sequence[str]) -> None:
    """Check that no old id moved and that every new token is what the merges make of its own spelling."""
    kept = all(grown.vocabulary[token] == number for token, number in base.vocabulary.items())
    added = [token["id"] for token in base.settings["added_tokens"]]  # not by content: it may be normalized
    kept = kept and all(grown.tokenizer.id_to_token(number) == base.tokenizer.id_to_token(number) for number in added)
    unreached = [
        token for token, ids in zip(tokens, grown.encode_words(tokens), strict=True) if ids != [grown.vocabulary[token]]
    ]
    if not kept or unreached:
        what = f"the new token {unreached[0]!r} cannot be reached" if unreached else "an old id changed"
        raise DeepenError(
            f"tokenize.vocabulary: this tokenizer cannot be extended: {what}", hint="set tokenize.vocabulary: keep"
        )


def changes(base: BaseModel, grown: BaseModel, texts: Iterable[str]) -> Changes:
    """Split texts both ways; raises ``DeepenError`` for one that differs without a new token, or reads differently."""
    documents = changed = before = after = 0
    first_new = base.size
    for text in texts:
        old = base.tokenizer.encode(text, add_special_tokens=False).ids
        new = grown.tokenizer.encode(text, add_special_tokens=False).ids
        documents, before, after = documents + 1, before + len(old), after + len(new)
        if old == new:
            continue
        changed += 1
        was_readable = (
            base.unknown_id not in old
        )  # where the base could not spell a text, the new one cannot read as it did
        if max(new) < first_new or (was_readable and base.tokenizer.decode(old) != grown.tokenizer.decode(new)):
            raise DeepenError(
                f"tokenize.vocabulary: the extended tokenizer changes the text beginning {text[:40]!r} by more than "
                "new tokens",
                hint="set tokenize.vocabulary: keep",
            )
    return Changes(documents, changed, before, after)
