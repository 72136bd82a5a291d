"""Text to token ids: fast where that is proven equal, else as the tokenizer itself does it.

``tokenizers`` is the reference. ``gigatoken`` gives the same ids many times faster for byte-level and SentencePiece
BPE; it is used when it supports the tokenizer and agrees with the reference on documents of this corpus. Text that
spells out a special token (``<|endoftext|>`` in a web page) stays ordinary text in both: a document cannot end itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from deepen.errors import DeepenError
from deepen.formats.files.arrays import Array
from deepen.tokenize.pieces import CONTEXTS, Boundary, cut

EncoderName = Literal["gigatoken", "tokenizers"]

LONG_CHARACTERS = 1 << 20
PIECE_CHARACTERS = 1 << 18
_PIECES_TOGETHER = 16  # so that the pieces of a long text are encoded in one call


class Encoder:
    """Encodes texts with the tokenizer in a folder; ``control`` are the ids that no text may become."""

    def __init__(self, folder: Path, *, name: EncoderName, control: Iterable[int], boundary: Boundary) -> None:
        self.boundary: Boundary = boundary
        self._reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._reference.no_truncation()
        self._reference.no_padding()
        self._reference.encode_special_tokens = True  # their text is text
        added = self._reference.get_added_tokens_decoder()
        self._control = frozenset(control)
        names = [token.content for token in added.values() if token.special]
        names += [self._reference.id_to_token(number) or "" for number in self._control]
        self._special_text = re.compile(
            "|".join(map(re.escape, sorted(filter(None, names), key=len, reverse=True))) or r"(?!)"
        )
        self._fast = _open_gigatoken(folder) if name == "gigatoken" else None
        suspects = self._control | {number for number, token in added.items() if token.special}
        self._is_suspect = np.zeros(max(suspects, default=0) + 1, dtype=bool)
        self._is_suspect[list(suspects)] = True
        self._suspect_range = (min(suspects, default=1), max(suspects, default=0))  # without any, an empty range
        self._context_ids = {context: self.reference_ids(context) for context in CONTEXTS}

    def by_reference(self) -> Encoder:
        """The same encoder with nothing but ``tokenizers`` in it, to compare with."""
        other = copy(self)
        other._fast = None
        return other

    def reference_ids(self, text: str) -> Array:
        """Ids of one text from ``tokenizers``; raises ``DeepenError`` when text becomes a control token."""
        ids = self._plain_ids(text)
        if self._control.isdisjoint(ids.tolist()):
            return ids
        # The vocabulary holds the spelling of a control token as an ordinary word: cut it behind its first character.
        cuts = [0, *(found.start() + 1 for found in self._special_text.finditer(text)), len(text)]
        ids = np.concatenate([self._plain_ids(text[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)])
        if not self._control.isdisjoint(ids.tolist()):
            raise DeepenError(
                f"the tokenizer turns ordinary text into a control token (id {self._control & set(ids.tolist())})",
                hint="its unknown token must differ from its end-of-document token: change tokenizer_config.json",
            )
        return ids

    def _plain_ids(self, text: str) -> Array:
        return np.array(self._reference.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def encode(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Ids of several texts, back to back (uint32), and how many each text has (int64)."""
        if all(len(text) <= LONG_CHARACTERS for text in texts):
            return self._encode_short(texts)
        encoded = [self.encode_long(text) if len(text) > LONG_CHARACTERS else None for text in texts]
        flat, lengths = self._encode_short(
            [text if ids is None else "" for text, ids in zip(texts, encoded, strict=True)]
        )
        return _replaced(flat, lengths, {at: ids for at, ids in enumerate(encoded) if ids is not None})

    def encode_long(self, text: str, piece_characters: int = PIECE_CHARACTERS) -> Array:
        """Ids of one text, encoded piece by piece."""
        parts = []
        cuts = cut(text, piece_characters, self.boundary)
        while group := list(islice(cuts, _PIECES_TOGETHER)):
            ids, lengths = self._encode_short([context + piece for context, piece in group])
            ends = np.cumsum(lengths)
            for (context, _), begin, end in zip(group, ends - lengths, ends, strict=True):
                skipped = self._context_ids[context]
                if not np.array_equal(ids[begin:end][: len(skipped)], skipped):
                    return self._encode_short([text])[0]  # the context flowed into the piece: no clean cut
                parts.append(ids[begin + len(skipped) : end])
        return np.concatenate(parts)

    def _encode_short(self, texts: Sequence[str]) -> tuple[Array, Array]:
        if self._fast is None:
            encoded = [self.reference_ids(text) for text in texts]
            lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
            return np.concatenate([np.empty(0, np.uint32), *encoded]), lengths
        return self._checked(self._fast.encode_batch(list(texts), parallel=False), texts.__getitem__)

    def encode_column(self, texts: pa.LargeStringArray) -> tuple[Array, Array]:
        """``encode`` for an Arrow column without nulls, whose bytes the fast encoder reads where they are."""
        offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
        if self._fast is None or texts.buffers()[2] is None:
            return self.encode(texts.to_pylist())
        long = {int(at): str(texts[int(at)]) for at in np.flatnonzero(np.diff(offsets) > LONG_CHARACTERS)}
        long = {at: text for at, text in long.items() if len(text) > LONG_CHARACTERS}  # so far it was bytes
        if long:
            is_long = np.isin(np.arange(len(texts)), list(long))
            flat, lengths = self.encode_column(pc.if_else(pa.array(is_long), pa.scalar("", texts.type), texts))
            return _replaced(flat, lengths, {at: self.encode_long(text) for at, text in long.items()})
        import awkward

        data = np.frombuffer(texts.buffers()[2], dtype=np.uint8)
        characters = awkward.contents.NumpyArray(data, parameters={"__array__": "char"})
        column = awkward.contents.ListOffsetArray(
            awkward.index.Index64(offsets), characters, parameters={"__array__": "string"}
        )
        encoded = self._fast.encode_batch(awkward.Array(column), parallel=False)
        return self._checked(encoded, lambda at: str(texts[at]))

    def _checked(self, encoded: Any, text_of: Callable[[int], str]) -> tuple[Array, Array]:
        """The fast encoder's ids and lengths, with the texts that spell a control token encoded by the reference."""
        offsets = np.asarray(encoded.layout.offsets.data, dtype=np.int64)
        flat = np.asarray(encoded.layout.content.data)[offsets[0] : offsets[-1]]
        offsets = offsets - offsets[0]  # they may begin anywhere in a larger buffer
        if len(flat) and self._reference.id_to_token(int(flat.max())) is None:
            raise DeepenError(
                f"gigatoken gave the id {flat.max()}, which is not in the vocabulary",
                hint="report the tokenizer; ids outside the vocabulary would be read as other tokens",
            )
        suspects = self._suspects(flat)
        touched = np.unique(np.searchsorted(offsets, suspects, side="right") - 1)  # the texts in which they stand
        corrected = {int(at): self.reference_ids(text_of(int(at))) for at in touched}
        return _replaced(flat, np.diff(offsets), corrected)

    def _suspects(self, flat: Array) -> Array:
        """Where ids stand that text may not become; they lie close together, so that a range finds nearly all."""
        low, high = self._suspect_range
        if len(flat) == 0 or flat.max() < low or flat.min() > high:  # two passes without a new array
            return np.empty(0, dtype=np.int64)
        candidates = np.flatnonzero((flat >= low) & (flat <= high))
        found: Array = candidates[self._is_suspect[flat[candidates]]]
        return found


def _replaced(flat: Array, lengths: Array, replacements: dict[int, Array]) -> tuple[Array, Array]:
    """``flat`` with the ids of some texts replaced."""
    if not replacements:
        return flat, lengths
    ends = np.cumsum(lengths)
    parts, begin = [], 0
    for at, ids in sorted(replacements.items()):
        parts += [flat[begin : ends[at] - lengths[at]], ids]
        begin = int(ends[at])
    lengths = lengths.copy()
    lengths[list(replacements)] = [len(ids) for ids in replacements.values()]
    return np.concatenate([*parts, flat[begin:]]), lengths


def _open_gigatoken(folder: Path) -> Any:
    import gigatoken  # it loads awkward: not before it is needed

    return gigatoken.Tokenizer(str(folder / "tokenizer.json"))


def choose_encoder(folder: Path, control: Sequence[int], texts: Sequence[str]) -> tuple[EncoderName, str]:
    """The fastest encoder that agrees with ``tokenizers`` on every text, and why it is not ``gigatoken`` (or "")."""
    reference = Encoder(folder, name="tokenizers", control=control, boundary="none")
    try:
        fast = Encoder(folder, name="gigatoken", control=control, boundary="none")
        flat, lengths = fast.encode(texts)
    except Exception as error:  # its Rust core raises whatever it likes, and the reference always works
        return "tokenizers", f"gigatoken does not support this tokenizer ({str(error).splitlines()[0]})"
    begins = np.cumsum(lengths) - lengths
    for text, begin, length in zip(texts, begins, lengths, strict=True):
        if not np.array_equal(flat[begin : begin + length], reference.reference_ids(text)):
            return "tokenizers", f"gigatoken gives other ids for the text beginning {text[:40]!r}"
    return "gigatoken", ""


def choose_boundary(folder: Path, control: Sequence[int], texts: Sequence[str], name: EncoderName) -> Boundary:
    """Where texts may be cut without changing an id, tried by cutting ``texts`` very often."""
    choices: tuple[Boundary, ...] = ("word", "line")
    for boundary in choices:  # the finest first; what is not proven clean is not used
        encoder = Encoder(folder, name=name, control=control, boundary=boundary)
        whole, lengths = encoder.encode(texts)
        pieces = [encoder.encode_long(text, piece_characters=200) for text in texts]
        if [len(ids) for ids in pieces] == lengths.tolist() and np.array_equal(np.concatenate(pieces), whole):
            return boundary
    return "none"
