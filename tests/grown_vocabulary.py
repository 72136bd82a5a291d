"""A tokenizer grown by hand, for tests of everything that comes after: whole words become tokens."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from deepen.formats.tokens.extension import Extension, NewToken, write_extension


def grow_tokenizer(base: Path, out: Path, words: list[str]) -> Extension:
    """Make every word one token of the byte-level BPE tokenizer in ``base``; writes ``tokenizer/`` and
    ``extension.json`` into ``out``."""
    old = Tokenizer.from_file(str(base / "tokenizer.json"))
    state = json.loads(old.to_str())
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    size = max(old.get_vocab().values()) + 1
    tokens = []
    for word in words:
        pieces = Tokenizer.from_str(json.dumps(state)).encode(word, add_special_tokens=False).tokens
        while len(pieces) > 1:
            merges.append(pieces[:2])
            pieces[:2] = ["".join(pieces[:2])]
            vocabulary[pieces[0]] = size + len(tokens)
            text = old.decoder.decode([pieces[0]])
            old_ids = tuple(old.encode(text, add_special_tokens=False).ids)
            tokens.append(NewToken(id=size + len(tokens), token=pieces[0], text=text, old_ids=old_ids))
    named = PreTrainedTokenizerFast.from_pretrained(base)
    grown = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token=named.bos_token, eos_token=named.eos_token
    )
    grown.save_pretrained(out / "tokenizer")
    extension = Extension(base_vocabulary_size=size, vocabulary_size=size + len(tokens), tokens=tuple(tokens))
    write_extension(out, extension)
    return extension
