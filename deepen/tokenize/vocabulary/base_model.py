"""The BPE model inside a tokenizer: its pieces, the words it works on, and how it would split them.

Text is written in one of two ways: byte-level (GPT-2, Llama 3, Qwen: every byte is a letter of an alphabet of 256), or
as SentencePiece does (Llama 2, Mistral: characters, with bytes for those that the vocabulary lacks).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from deepen.errors import DeepenError

SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Without a splitter a text is one word; but no piece of SentencePiece has a space mark behind a letter: cut there.
_WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
_LONGEST_WORD = 512
"""Longer words (base64, lines without spaces) are cut: what they repeat is found in the pieces as well."""
_WORDS_AT_ONCE = 100_000


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the rest for 256 and up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # 173 is the soft hyphen, which is invisible
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES_OF = byte_alphabet()
_LETTER_OF = {byte: letter for letter, byte in _BYTES_OF.items()}


@dataclass(frozen=True)
class BaseModel:
    """A tokenizer and what is inside its ``tokenizer.json``."""

    tokenizer: Tokenizer
    settings: dict[str, Any]

    @classmethod
    def read(cls, file: Path) -> BaseModel:
        """Read a ``tokenizer.json``; raises ``DeepenError`` when it holds no BPE that can be extended."""
        text = file.read_text()
        settings = json.loads(text)
        model = settings["model"]
        kind = model.get("type", "BPE" if "merges" in model else "of no stated kind")
        if kind != "BPE":
            raise DeepenError(
                f"tokenize.vocabulary: a {kind} vocabulary cannot be extended, only a BPE can: it has no merges, and "
                "new pieces would change how old text is split",
                hint="set tokenize.vocabulary: keep",
            )
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise DeepenError(
                "tokenize.vocabulary: this BPE marks the pieces inside a word or at its end, which is not supported",
                hint="set tokenize.vocabulary: keep",
            )
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, settings)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Pieces of the model by name, without added tokens that are no pieces."""
        return dict(self.settings["model"]["vocab"])

    @cached_property
    def size(self) -> int:
        """One more than the largest id, added tokens included."""
        return 1 + max([*self.vocabulary.values(), *(int(token["id"]) for token in self.settings["added_tokens"])])

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether pieces are written in the alphabet of bytes."""
        return "ByteLevel" in _kinds(self.settings["pre_tokenizer"]) + _kinds(self.settings["normalizer"])

    @cached_property
    def byte_fallback(self) -> bool:
        """Whether characters that the vocabulary lacks become ``<0x..>`` pieces."""
        return bool(self.settings["model"].get("byte_fallback")) and "<0x80>" in self.vocabulary

    @cached_property
    def unknown_id(self) -> int | None:
        """Id of the token that stands for characters that the vocabulary cannot write, if there is one."""
        return self.vocabulary.get(self.settings["model"].get("unk_token") or "")

    @cached_property
    def model_only(self) -> Tokenizer:
        """The bare BPE: no normalizer, no splitting, no added tokens."""
        return Tokenizer(self.tokenizer.model)

    def count_words(self, texts: Iterable[str]) -> Counter[str]:
        """What the model splits ``texts`` into before it merges, in its own spelling, with counts."""
        found: Counter[str] = Counter()
        for text in texts:
            for word, count in self._words(text).items():
                found[word] += count
        return found

    def _words(self, text: str) -> Counter[str]:
        normalizer, splitter = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        split = [text] if splitter is None else list(map(itemgetter(0), splitter.pre_tokenize_str(text)))
        if self.is_byte_level:
            counted = Counter(split)
        else:
            counted = Counter(word for part in split for word in _WORD.findall(part))
        for word in [word for word in counted if len(word) > _LONGEST_WORD]:  # a list, because the counter is changed
            count = counted.pop(word)
            for begin in range(0, len(word), _LONGEST_WORD):
                counted[word[begin : begin + _LONGEST_WORD]] += count
        return counted

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word (in the model's spelling), by the merges alone."""
        ids: list[list[int]] = []
        for begin in range(0, len(words), _WORDS_AT_ONCE):
            encoded = self.model_only.encode_batch(
                list(words[begin : begin + _WORDS_AT_ONCE]), add_special_tokens=False
            )
            ids += [item.ids for item in encoded]
        return ids

    def spell(self, text: str) -> str:
        """A text in the model's spelling, as it stands inside a text; not split."""
        if self.is_byte_level:
            return "".join(_LETTER_OF[byte] for byte in text.encode())
        return text.replace(" ", SPACE)

    def read_token(self, token: str) -> str | None:
        """What a piece reads as; None when it is part of a character only."""
        if not self.is_byte_level:
            return None if _BYTE.fullmatch(token) else token.replace(SPACE, " ")
        try:
            return bytes(_BYTES_OF[letter] for letter in token).decode()
        except (UnicodeDecodeError, KeyError):
            return None

    def is_part_of_character(self, token: str) -> bool:
        """Whether a piece holds bytes that are no characters by themselves."""
        if self.is_byte_level:
            return all(letter in _BYTES_OF for letter in token) and self.read_token(token) is None
        return bool(_BYTE.fullmatch(token))

    def class_of(self, token: str) -> int:
        """The class that decides what a piece may be merged with, see ``growth_kernel``."""
        if self.is_byte_level:
            return 3
        body = token.removeprefix(SPACE)
        if not body:
            return 0 if token == SPACE else 4
        if _BYTE.fullmatch(token):
            return 4
        kinds = {_kind_of(character) for character in body}
        # Mixed pieces of the base stay as they are: nothing is joined to them.
        return kinds.pop() if len(kinds) == 1 else 4


def _kind_of(character: str) -> int:
    """1 for letters, their marks and joiners, 2 for signs, 4 for the rest; SentencePiece splits between these too."""
    category = unicodedata.category(character)
    if category[0] in "LM" or category == "Cf":
        return 1
    return 2 if category[0] in "PS" and character != SPACE else 4


def _kinds(part: dict[str, Any] | None) -> list[str]:
    """Types of a normalizer or pre-tokenizer and of all its parts."""
    if part is None:
        return []
    inner = [*part.get("pretokenizers", ()), *part.get("normalizers", ())]
    return [str(part.get("type")), *(kind for item in inner for kind in _kinds(item))]
