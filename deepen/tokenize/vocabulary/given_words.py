"""Words that the user wants as single tokens: read from a file, and the merges that make each of them one token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from deepen.errors import DeepenError
from deepen.tokenize.vocabulary.base_model import SPACE, BaseModel
from deepen.tokenize.vocabulary.growth import Growth, Merge, cut_around


def read_words(file: Path) -> list[str]:
    """The words of a file, one per line, or one JSON object with a ``piece`` per line; a leading space is kept.

    A plain line means the word both at the beginning of a line and after a space; a ``piece`` is taken as it is
    written, with SentencePiece's mark for a space. Raises ``DeepenError`` naming the line that cannot be read.
    """
    words: list[str] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        line = line.rstrip("\r")
        if not line.strip():
            continue
        if not line.lstrip().startswith("{"):
            words += [line.strip(), " " + line.strip()]
            continue
        try:
            words.append(str(json.loads(line)["piece"]).replace(SPACE, " "))
        except (ValueError, KeyError, TypeError) as error:
            raise DeepenError(
                f"tokenize.vocabulary.words: line {number} of `{file}` is no JSON object with a `piece`",
                hint='write one word per line, or one {"piece": "word"} per line',
            ) from error
    return words


def grow_by_words(base: BaseModel, words: Sequence[str]) -> tuple[Growth, dict[str, int]]:
    """Tokens and merges that make every word one token, and how many words were refused, by reason."""
    maker, refused = _Maker(base), Counter[str]()
    for word in words:
        reason = _refusal(base, word) or maker.add(base.spell(word))
        refused.update([reason] if reason else [])
    return Growth(tuple(maker.tokens), tuple(maker.merges)), dict(sorted(refused.items()))


def _refusal(base: BaseModel, word: str) -> str:
    """Why a word cannot be one token whatever the merges; "" when it can."""
    if not word.strip():
        return "empty"
    if any(token["content"] in word for token in base.settings["added_tokens"]):
        return "spells a special token"
    parts = list(base.count_words([word]).elements())
    if len(parts) != 1 or parts[0].lstrip(SPACE) != base.spell(word).lstrip(SPACE):
        return "split by the tokenizer before it merges"
    return ""


class _Maker:
    """Merges so far; each word is split by the base's merges and then by these, in the order of their ranks."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._by_id = {number: token for token, number in base.vocabulary.items()}
        self.tokens: dict[str, None] = {}
        self.merges: dict[Merge, int] = {}

    def add(self, word: str) -> str:
        """Make ``word`` (in the model's spelling) one token; returns why it cannot be, or ""."""
        pieces = self._split(word)
        if len(pieces) == 1 and (pieces[0] in self.tokens or pieces[0] in self._base.vocabulary):
            return "one token already"
        if any(len(piece) > 1 and self._is_unknown(piece) for piece in pieces):
            return "holds a character that the vocabulary cannot write"
        tokens, merges = dict(self.tokens), dict(self.merges)  # to go back to, if the word turns out to be out of reach
        self.tokens.update(dict.fromkeys(piece for piece in pieces if piece not in self._base.vocabulary))
        while len(pieces) > 1:
            pairs = zip(pieces, pieces[1:], strict=False)
            # A pair that spells an old piece is passed over: its merge would change texts that hold no new token.
            pair = next((pair for pair in pairs if "".join(pair) not in self._base.vocabulary), None)
            if pair is None:
                self.tokens, self.merges = tokens, merges
                return "made of a token that merges do not reach"
            self.tokens["".join(pair)] = None
            self.merges.setdefault(pair, len(self.merges))  # the rank: after all before it
            pieces = self._split(word)  # the merge may apply in more than one place
        return ""

    def _is_unknown(self, piece: str) -> bool:
        return bool(piece == self._base.settings["model"].get("unk_token"))

    def _split(self, word: str) -> list[str]:
        """The word's pieces by all merges so far; a character that the base has only as bytes is one piece."""
        pieces: list[str] = []
        for part in cut_around(word, lambda character: character not in self._base.vocabulary):
            whole = len(part) == 1 and part not in self._base.vocabulary and not part.isascii()
            ids = self._base.encode_words([part])[0]
            pieces += [part] if whole and not self._base.is_byte_level else [self._by_id[number] for number in ids]
        while True:
            ranks = [self.merges.get(pair, len(self.merges)) for pair in zip(pieces, pieces[1:], strict=False)]
            best = min(ranks, default=len(self.merges))  # the lowest rank is merged first, as BPE does
            if best == len(self.merges):
                return pieces
            at = ranks.index(best)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
