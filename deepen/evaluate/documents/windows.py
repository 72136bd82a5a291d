"""Likelihoods of held-out documents under a model, in overlapping windows.

Every token of a document is scored exactly once, given the tokens before it: as many as fit in the context, and never
fewer than ``context * (1 - stride)`` once the document is that long. Windows of similar length share a batch (little
padding), longest first, so that a batch that does not fit in memory fails at once. Logits are never kept.

Without a begin-of-document token nothing stands before the first token, so it cannot be scored: its bytes are left out
of the denominator. The end-of-document token is not scored: it has no bytes. Models with different tokenizers are then
scored from the first place where both begin a token.

What a tokenizer cannot spell (its unknown token) a model cannot be said to predict: to the likelihood of the unknown
token come 8 bits for each byte that it hides, as if the bytes were written out. Otherwise ignorance would look like
skill, most of all beside a vocabulary that grew to spell them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Encoding, Tokenizer

from deepen.evaluate.documents.likelihoods import table_of
from deepen.evaluate.documents.material import Material
from deepen.model.compute.copies import shared_out
from deepen.model.loss.model import LossModel, evaluating
from deepen.model.weights.load import load_tokenizer
from deepen.progress import say, track

NOTHING_TO_SCORE = "nothing_to_score"
"""Reason of a document without a scorable token: empty, or a single token with nothing before it."""

_DOCUMENTS_AT_ONCE = 256
_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 16_384}
"""Rows x longest window of one forward pass: enough work per matrix product, little memory for activations."""
_IGNORED = -100
_NATS_PER_UNKNOWN_BYTE = np.log(256)


@dataclass(frozen=True)
class Encoded:
    """One document as tokens."""

    tokens: np.ndarray
    """int32[n], with the begin-of-document token if there is one."""
    first_scored: int
    """Position of the first scored token; n when none can be scored."""
    num_bytes: int
    """UTF-8 bytes of the text that the scored tokens stand for."""
    unknown_bytes: int = 0
    """Those of them that the tokenizer cannot spell."""

    @property
    def num_scored(self) -> int:
        """Number of scored tokens."""
        return len(self.tokens) - self.first_scored


@dataclass
class Corpus:
    """All documents of a measurement, encoded."""

    ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    documents: list[Encoded] = field(default_factory=list)


@dataclass(frozen=True)
class Window:
    """Inputs ``begin`` to ``end`` (exclusive) of one document; its targets from ``first_target`` on are scored."""

    document: int
    begin: int
    end: int
    first_target: int


def prepare(material: Material, *, context: int, stride: float) -> Callable[[LossModel, str | None], pa.Table]:
    """Encode the material once; see ``Probe.prepare`` for what is returned.

    ``context`` is in tokens and bounded by the model's positions, ``stride`` a share of it.
    """
    corpus = encode(material)

    def measure(model: LossModel, what: str | None) -> pa.Table:
        nll = likelihoods(model, corpus.documents, context=context, stride=stride, what=what)
        nll += _NATS_PER_UNKNOWN_BYTE * np.array([document.unknown_bytes for document in corpus.documents])
        reasons = [None if document.num_scored else NOTHING_TO_SCORE for document in corpus.documents]
        num_bytes = np.array([document.num_bytes for document in corpus.documents], dtype=np.int64)
        num_tokens = np.array([document.num_scored for document in corpus.documents], dtype=np.int64)
        return table_of(corpus.ids, corpus.sources, nll, (num_bytes, num_tokens), reasons)

    return measure


def encode(material: Material) -> Corpus:
    """Encode every document of the material, in source and file order."""
    begin = material.begin_of_document_id
    encoder = plain_encoder(material.tokenizer)
    compared = plain_encoder(material.compared) if material.compared is not None and begin is None else None
    unknown = _unknown_id(encoder)
    corpus = Corpus()
    for source in material.sources:
        for rows in _batched(material.texts(source), _DOCUMENTS_AT_ONCE):
            texts = [text for _, text in rows]
            encodings = encoder.encode_batch(texts, add_special_tokens=False)
            others = compared.encode_batch(texts, add_special_tokens=False) if compared else [None] * len(texts)
            for (document_id, text), encoding, other in zip(rows, encodings, others, strict=True):
                corpus.ids.append(document_id)
                corpus.sources.append(source.name)
                corpus.documents.append(_with_unknown(encoded(text, encoding, begin, other), text, encoding, unknown))
    hidden = sum(document.unknown_bytes for document in corpus.documents)
    if hidden:
        say(f"held-out text: a tokenizer cannot spell {hidden:,} of its bytes; they count 8 bits each")
    return corpus


def plain_encoder(folder: Path) -> Tokenizer:
    """The tokenizer in ``folder``, reading text as nothing but text; a ``tokenizer.json`` is taken at its word.

    No special tokens are added, none are recognised in the text (a document cannot write its own end), and nothing is
    truncated; without a post-processor the offsets are those of the tokens themselves.
    """
    file = folder / "tokenizer.json"
    encoder: Tokenizer = Tokenizer.from_str(
        file.read_text() if file.is_file() else load_tokenizer(folder).backend_tokenizer.to_str()
    )
    encoder.post_processor = None
    encoder.encode_special_tokens = True
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def encoded(text: str, encoding: Encoding, begin_of_document_id: int | None, other: Encoding | None = None) -> Encoded:
    """Put the begin token in front, or find the first token that can be scored and the bytes from there on.

    Tokens that share a character with an unscored one (pieces of one multi-byte character) are not scored either: bytes
    and likelihoods then belong to the same characters exactly. ``other`` is the encoding by another tokenizer that must
    be scored on the same characters.
    """
    num_text_bytes = len(text.encode())
    if begin_of_document_id is not None:
        tokens = np.array([begin_of_document_id, *encoding.ids], dtype=np.int32)
        return Encoded(tokens, 1, num_text_bytes if len(tokens) > 1 else 0)
    tokens = np.array(encoding.ids, dtype=np.int32)
    first_scored, end_of_unscored = _first_boundary(encoding, 0)
    scored = first_scored < len(tokens)
    # Each in turn goes on to the other's boundary, until both have one at the same character.
    while scored and other is not None:
        theirs, end_of_theirs = _first_boundary(other, end_of_unscored)
        if end_of_theirs == end_of_unscored or theirs == len(other.ids):
            scored = theirs < len(other.ids)
            break
        first_scored, end_of_unscored = _first_boundary(encoding, end_of_theirs)
        scored = first_scored < len(tokens)
    if not scored:
        return Encoded(tokens, len(tokens), 0)
    return Encoded(tokens, first_scored, num_text_bytes - len(text[:end_of_unscored].encode()))


def _unknown_id(encoder: Tokenizer) -> int | None:
    """The id that a tokenizer gives to what it cannot spell, if it has one."""
    name = getattr(encoder.model, "unk_token", None)
    return None if name is None else encoder.token_to_id(name)


def _with_unknown(document: Encoded, text: str, encoding: Encoding, unknown_id: int | None) -> Encoded:
    """The document with the bytes counted that its scored unknown tokens hide."""
    scored = document.tokens[document.first_scored :]
    at = np.flatnonzero(scored == unknown_id) if unknown_id is not None else ()
    if len(at) == 0:
        return document
    spans = encoding.offsets[len(encoding.ids) - len(scored) :]
    hidden = sum(len(text[slice(*spans[index])].encode()) for index in at)
    return replace(document, unknown_bytes=hidden)


def _first_boundary(encoding: Encoding, least: int) -> tuple[int, int]:
    """The first token, not the very first one, that begins where those before it end, at character ``least`` or later;
    and where those end. The number of tokens when there is none."""
    end = 0
    for index in range(len(encoding.ids)):
        start, stop = encoding.token_to_chars(index) or (0, 0)
        if index > 0 and start >= end >= least:
            return index, end
        end = max(end, stop)
    return len(encoding.ids), end


def likelihoods(
    model: LossModel, documents: list[Encoded], *, context: int, stride: float, what: str | None = None
) -> np.ndarray:
    """Negative log-likelihood of every document's scored tokens: float64[len(documents)], in nats, 0 where none is.

    The model is put into evaluation mode and left as it was found. ``what`` titles the progress display, if any.
    """
    context = min(context, model.model.config.max_position_embeddings)
    windows = [
        window
        for index, document in enumerate(documents)
        for window in windows_of(document, index, context=context, step=max(1, int(context * stride)))
    ]
    windows.sort(key=lambda window: window.begin - window.end)
    nll = np.zeros(len(documents))
    num_tokens = sum(window.end - window.begin for window in windows)
    with evaluating(model), track(what, num_tokens, "tokens") as progress:
        device = next(model.parameters()).device
        batches = list(batches_of(windows, tokens_per_batch=_TOKENS_PER_BATCH[device.type]))
        sums = shared_out(model, lambda member, batch: _window_nll(member, documents, batch), batches)
        for batch, nll_B in zip(batches, sums, strict=True):
            # Several windows of a batch may be of one document, and `+=` by index would add one of them.
            np.add.at(nll, [window.document for window in batch], nll_B)
            progress.advance(sum(window.end - window.begin for window in batch))
    return nll


def windows_of(document: Encoded, index: int, *, context: int, step: int) -> Iterator[Window]:
    """Cut a document into windows of at most ``context`` inputs, each ``step`` after the one before.

    The input at position p predicts the token at p + 1; a window scores the targets that no earlier one has scored.
    """
    num_inputs = len(document.tokens) - 1
    begin, first_target = 0, document.first_scored
    while document.num_scored > 0 and first_target <= num_inputs:
        end = min(begin + context, num_inputs)
        # Else it would score nothing: the scored part of a long prompt begins later.
        if first_target <= end:
            yield Window(index, begin, end, first_target)
            first_target = end + 1
        begin += step


def batches_of(windows: list[Window], *, tokens_per_batch: int) -> Iterator[list[Window]]:
    """Group windows, sorted by falling length, so that rows x longest stays within ``tokens_per_batch``."""
    start = 0
    while start < len(windows):
        longest = windows[start].end - windows[start].begin
        stop = start + max(1, tokens_per_batch // longest)
        yield windows[start:stop]
        start = stop


def _window_nll(model: LossModel, documents: list[Encoded], batch: list[Window]) -> np.ndarray:
    """Sum of the scored targets' negative log-likelihoods for each window, float64[len(batch)].

    Padding stands behind the text, where causal attention never looks from; positions run on through it, so that it is
    not taken for another document.
    """
    shape = (len(batch), batch[0].end - batch[0].begin)
    tokens, labels = np.zeros(shape, dtype=np.int64), np.full(shape, _IGNORED, dtype=np.int64)
    for row, window in enumerate(batch):
        text, length = documents[window.document].tokens, window.end - window.begin
        tokens[row, :length] = text[window.begin : window.end]
        scored_from = window.first_target - 1 - window.begin
        labels[row, scored_from:length] = text[window.first_target : window.end + 1]
    device = next(model.parameters()).device
    positions_BT = torch.arange(shape[1], device=device).expand(shape)
    tokens_BT, labels_BT = torch.from_numpy(tokens).to(device), torch.from_numpy(labels).to(device)
    nll_BT = model.token_nll(tokens_BT, labels_BT, positions_BT)
    sums: np.ndarray = nll_BT.double().sum(dim=1).cpu().numpy()
    return sums


def _batched(rows: Iterator[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    while batch := list(islice(rows, size)):
        yield batch
