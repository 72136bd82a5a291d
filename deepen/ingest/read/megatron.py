"""Megatron pairs (``NAME.idx`` beside ``NAME.bin``) as a source: token ids of a named tokenizer, decoded to text.

The pair itself does not say which tokenizer made it, so what can be checked is: ids lie in its vocabulary, and
documents end with its end-of-text token. Text is decoded so that the documents can be held out, compared and encoded
again like all others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deepen.errors import DeepenError
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.ingest.files import InputFile
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Record, Reject
from deepen.ingest.streams import Input

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOOKED_AT = 100
"""Documents whose ends are looked at before a pair is believed to be of its tokenizer."""


@dataclass(frozen=True)
class _Decoder:
    tokenizer: Tokenizer
    vocabulary_size: int
    begin: int | None
    end: int | None


def read_megatron(file: Input, reading: Reading) -> Iterator[Record | Reject]:
    """One record per document of the pair, at ``location:NUMBER`` (from 0)."""
    assert isinstance(file, InputFile), "pairs are read from the disk"
    assert reading.tokenizer is not None, "the settings demand a tokenizer for pairs"
    decoder = open_decoder(reading.tokenizer)
    try:
        dataset = IndexedDataset.open(Path(file.path).with_suffix(""))
    except (DeepenError, OSError, ValueError) as error:
        yield Reject(file.location, "unreadable_pair", str(getattr(error, "message", error)), loss="file")
        return
    documents = [(int(a), int(b)) for a, b in zip(dataset.boundaries[:-1], dataset.boundaries[1:], strict=True)]
    fault = _fault_of_ends(dataset, documents, decoder)
    if fault is not None:
        reason, detail = fault
        yield Reject(file.location, reason, f"{detail} (`{reading.tokenizer}`)", num_records=max(1, len(documents)))
        return
    for number, (first, last) in enumerate(documents):
        yield _decoded(f"{file.location}:{number}", _tokens(dataset, first, last), decoder)


@lru_cache(maxsize=4)
def open_decoder(folder: str) -> _Decoder:
    """The tokenizer in ``folder`` (``tokenizer.json``) with the ids that it puts at the ends of a text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    config = Path(folder) / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(config.read_text()) if config.is_file() else {}
    begin, end = (_id_of(tokenizer, settings.get(name)) for name in ("bos_token", "eos_token"))
    return _Decoder(tokenizer, max(tokenizer.get_vocab().values()) + 1, begin, end)


def _id_of(tokenizer: Tokenizer, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    found: int | None = tokenizer.token_to_id(text) if isinstance(text, str) else None
    return found


def _tokens(dataset: IndexedDataset, first: int, last: int) -> npt.NDArray[Any]:
    """All tokens of a document: sequences ``first`` to ``last`` (exclusive)."""
    if last - first == 1:
        return dataset[first]
    return np.concatenate([dataset[sequence] for sequence in range(first, last)]) if last > first else np.empty(0, int)


def _fault_of_ends(
    dataset: IndexedDataset, documents: list[tuple[int, int]], decoder: _Decoder
) -> tuple[str, str] | None:
    """Reason and detail if no document ends with the tokenizer's end token.

    When all end with one other id it is another tokenizer's end token; when they end with this and that there is none.
    """
    lasts = (dataset[last - 1] for first, last in islice(documents, _LOOKED_AT) if last > first)
    ends = [int(tokens[-1]) for tokens in lasts if len(tokens)]
    if decoder.end is None or not ends or decoder.end in ends:  # one is enough: some documents may have been cut
        return None
    if len(set(ends)) == 1:
        detail = f"documents end with id {ends[0]}, the end-of-text token is {decoder.end}: name the pair's tokenizer"
        return "wrong_tokenizer", detail
    detail = f"no document ends with the end-of-text token {decoder.end}: make the pair anew with --append-eod"
    return "end_of_document_missing", detail


def _decoded(location: str, tokens: npt.NDArray[Any], decoder: _Decoder) -> Record | Reject:
    """The document's text without the tokens that only mark its ends."""
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < decoder.vocabulary_size:
        wrong = int(tokens.max()) if int(tokens.min()) >= 0 else int(tokens.min())
        detail = f"id {wrong}, the tokenizer has {decoder.vocabulary_size}"
        return Reject(location, "id_outside_vocabulary", detail)
    start = 1 if len(tokens) and decoder.begin is not None and tokens[0] == decoder.begin else 0
    stop = len(tokens) - 1 if len(tokens) > start and tokens[-1] == decoder.end else len(tokens)
    text = decoder.tokenizer.decode(tokens[start:stop].tolist(), skip_special_tokens=False)
    return Record(location, {"text": text}, whole_file=True)
