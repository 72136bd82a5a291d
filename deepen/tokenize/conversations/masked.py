"""Documents with turns to token ids and a mask of those to be learned: an answer and its end-of-turn token.

All pieces of a batch are encoded in one call and laid together by array operations. Contents are encoded as ordinary
text, so a turn that spells a mark of the template cannot end itself. Text behind a mark or another piece is encoded as
the tokenizer would there: SentencePiece tokenizers treat the beginning of a text specially, so such a piece is encoded
behind a short context whose ids are taken off again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from deepen.errors import DeepenError
from deepen.formats.documents.documents import CALL_ROLE, TRAINED_ROLES
from deepen.formats.files.arrays import Array
from deepen.tokenize.conversations.skeletons import Mark, Marks, Run, Skeleton, make_skeleton, without_template
from deepen.tokenize.conversations.templates import RefusedError, Template
from deepen.tokenize.encoder import Encoder
from deepen.tokenize.vocabulary.tokenizer import Vocabulary

Spans = Sequence[Mapping[str, Any]]
"""``role``, ``begin`` and ``end`` of each span, as parquet gives them."""

CHECKED_FIRST, CHECK_ONE_IN, CHECK_CHARACTERS = 16, 1024, 100_000
"""What is checked, ids by the reference and masks by decoding: the first documents of each part, and then one in so
many, by its id; not those that are longer."""
_MOST_SKELETONS = 4096
_CONTEXT = "a\n"
_PROBES = ("Hello", "1.", "\u4e2d", "[INST] x", "x y")
_PLAIN = (Run((0,), True),)


@dataclass(frozen=True)
class Laid:
    """Encoded documents, those that could be written; arrays as ``Encoder.encode`` gives them."""

    tokens: Array
    lengths: Array
    flags: Array
    """uint8 per token: 1 where it is to be learned."""
    ends: Array
    """uint8 per document: 1 where its end token is to be learned."""
    masked: Array
    """bool per document: whether it has turns, else everything of it is learned."""
    written: Array
    """bool per document given: whether it is among the encoded."""


@dataclass
class MaskCounts:
    """What became of documents with turns."""

    conversations: int = 0
    """Documents with turns or prompts that were encoded."""
    trimmed: int = 0
    """Of these, where the template took white space from the ends of turns."""
    refused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """The first detail of each reason."""

    def refuse(self, error: RefusedError) -> None:
        """Note a document that cannot be written in the template."""
        self.refused[error.reason] += 1
        self.examples.setdefault(error.reason, error.detail)


class TurnEncoder:
    """Encodes documents with and without turns; ``template`` None leaves the turns as they stand in the text."""

    def __init__(self, encoder: Encoder, folder: Path, vocabulary: Vocabulary, template: Template | None) -> None:
        self._encoder, self._vocabulary, self._template = encoder, vocabulary, template
        self._reader = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._marks = Marks.of(self._reader)
        # By roles (most conversations share a few) and calls of tools.
        self._skeletons: dict[tuple[tuple[str, ...], tuple[str, ...]], Skeleton | RefusedError] = {}
        self._context_ids = encoder.reference_ids(_CONTEXT)
        self._contexts = {"start": "", "mark": self._context_behind_mark(), "text": self._context_behind_text()}

    def by_reference(self) -> TurnEncoder:
        """The same with ``tokenizers`` as the encoder, to compare with."""
        other = copy(self)
        other._encoder = self._encoder.by_reference()
        return other

    def _context_behind_mark(self) -> str:
        """The context that gives the ids that the tokenizer itself gives behind a control token."""
        mark = self._reader.id_to_token(self._vocabulary.end_of_document_id) or ""
        # Without the mark's own id.
        wanted = [self._reader.encode(mark + probe, add_special_tokens=False).ids[1:] for probe in _PROBES]
        plain = [self._encoder.reference_ids(probe).tolist() for probe in _PROBES]
        behind = [self._behind_context(probe) for probe in _PROBES]
        # Only where it is needed and gives just what is wanted.
        return _CONTEXT if wanted != plain and wanted == behind else ""

    def _context_behind_text(self) -> str:
        plain = [self._encoder.reference_ids(probe).tolist() for probe in _PROBES]
        return "" if plain == [self._behind_context(probe) for probe in _PROBES] else _CONTEXT

    def _behind_context(self, text: str) -> list[int]:
        return list(self._encoder.reference_ids(_CONTEXT + text)[len(self._context_ids) :].tolist())

    def encode(self, texts: Sequence[str], spans: Sequence[Spans | None], counts: MaskCounts) -> Laid:
        """Ids and flags of the documents that can be written; the others are noted in ``counts``."""
        pieces: list[Run | Mark] = []
        runs: list[str] = []
        num_pieces: list[int] = []
        ends: list[bool] = []
        written = np.zeros(len(texts), dtype=bool)
        for at, (text, own) in enumerate(zip(texts, spans, strict=True)):
            try:
                made, contents, ends_trained = self._pieces(text, own, counts)
            except RefusedError as error:
                counts.refuse(error)
                continue
            written[at] = True
            pieces += made
            runs += [_joined(piece, contents) for piece in made if isinstance(piece, Run)]
            num_pieces.append(len(made))
            ends.append(ends_trained)
        masked = np.array([own is not None for own in spans], dtype=bool)[written]
        return Laid(*self._lay(pieces, runs, num_pieces), np.array(ends, dtype=np.uint8), masked, written)

    def _pieces(
        self, text: str, spans: Spans | None, counts: MaskCounts
    ) -> tuple[Sequence[Run | Mark], Sequence[str], bool]:
        """Pieces of one document, the contents that they name, and whether its end token is to be learned."""
        if spans is None:
            return _PLAIN, (text,), True
        roles = tuple(span["role"] for span in spans)
        contents = [text[span["begin"] : span["end"]] for span in spans]
        ends_trained = bool(roles) and roles[-1] in TRAINED_ROLES
        if self._template is None or "prompt" in roles or "target" in roles:
            counts.conversations += 1
            # What is between turns is text, too.
            edges = [0, *(place for span in spans for place in (span["begin"], span["end"])), len(text)]
            pieces = without_template(roles, has_begin=self._vocabulary.begin_of_document_id is not None)
            return pieces, [text[a:b] for a, b in zip(edges, edges[1:], strict=False)], ends_trained
        skeleton = self._skeleton(roles, tuple(_calls(roles, contents)))
        trimmed = [
            content.strip() if trims else content for content, trims in zip(contents, skeleton.trims, strict=True)
        ]
        # A template is a program and may change contents (cut out thoughts, say): each conversation is compared.
        if self._template.render(list(zip(roles, contents, strict=True))) != skeleton.filled(trimmed):
            raise RefusedError("template_alters_text", "the template writes other words than the turns have")
        counts.conversations += 1
        counts.trimmed += trimmed != contents
        return skeleton.pieces, trimmed, skeleton.ends_trained

    def _skeleton(self, roles: tuple[str, ...], calls: tuple[str, ...]) -> Skeleton:
        assert self._template is not None
        key = (roles, calls)
        if key not in self._skeletons:
            if calls and len(self._skeletons) > _MOST_SKELETONS:  # calls are seldom the same twice
                self._skeletons.clear()
            try:
                self._skeletons[key] = make_skeleton(self._template, roles, self._marks, self._vocabulary, calls)
            except RefusedError as error:
                self._skeletons[key] = error
        found = self._skeletons[key]
        if isinstance(found, RefusedError):
            raise found
        return found

    def _lay(
        self, pieces: Sequence[Run | Mark], runs: Sequence[str], num_pieces: Sequence[int]
    ) -> tuple[Array, Array, Array]:
        """Tokens, lengths of documents and flags of pieces laid end to end."""
        follows = [piece.follows for piece in pieces if isinstance(piece, Run)]
        run_tokens, run_lengths = self._encode_runs(runs, [self._contexts[kind] for kind in follows])
        is_run = np.array([isinstance(piece, Run) for piece in pieces], dtype=bool)
        marks = np.array([piece.id for piece in pieces if isinstance(piece, Mark)], dtype=np.uint32)
        lengths = np.ones(len(pieces), dtype=np.int64)
        lengths[is_run] = run_lengths
        from_run = np.repeat(is_run, lengths)  # by token: does it come from a run, or is it a mark
        tokens = np.empty(len(from_run), dtype=np.uint32)
        tokens[from_run], tokens[~from_run] = run_tokens, marks
        flags = np.repeat(np.array([piece.trained for piece in pieces], dtype=np.uint8), lengths)
        bounds = np.cumsum([0, *num_pieces])
        # From pieces per document to tokens per document.
        token_bounds = np.concatenate([[0], np.cumsum(lengths)])[bounds]
        return tokens, np.diff(token_bounds), flags

    def _encode_runs(self, runs: Sequence[str], contexts: Sequence[str]) -> tuple[Array, Array]:
        """Ids of the runs as they are behind their contexts, and how many each has."""
        if not runs:
            return np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64)
        tokens, lengths = self._encoder.encode([context + run for context, run in zip(contexts, runs, strict=True)])
        with_context = np.flatnonzero([context != "" for context in contexts])
        if len(with_context) == 0:
            return tokens, lengths
        begins = (np.cumsum(lengths) - lengths)[with_context]
        size = len(self._context_ids)
        # The last run may be shorter than the context: `lengths` says so below.
        places = np.minimum(begins[:, None] + np.arange(size), len(tokens) - 1)
        clean = (lengths[with_context] >= size) & (tokens[places] == self._context_ids).all(axis=1)
        if not clean.all():  # the context flowed into the run (it begins with a line end): encode it alone
            dirty = set(with_context[~clean].tolist())
            return self._encode_runs(runs, ["" if at in dirty else context for at, context in enumerate(contexts)])
        stays = np.ones(len(tokens), dtype=bool)
        stays[places] = False
        lengths = lengths.copy()
        lengths[with_context] -= size
        return tokens[stays], lengths

    def check(self, text: str, spans: Spans, tokens: Array, flags: Array) -> None:
        """Raise ``DeepenError`` when what is to be learned does not decode to the answers, white space aside."""
        read = self._letters(tokens[flags == 1].tolist())
        answers = [text[span["begin"] : span["end"]] for span in spans if span["role"] in TRAINED_ROLES]
        said = "".join("".join(answer.split()) for answer in answers)
        known = self._letters([number for answer in answers for number in self._encoder.reference_ids(answer).tolist()])
        roles = tuple(span["role"] for span in spans)
        calls = tuple(_calls(roles, [text[span["begin"] : span["end"]] for span in spans]))
        skeleton = self._skeletons.get((roles, calls))
        texts = skeleton.trained_texts if isinstance(skeleton, Skeleton) else []
        # Longest first, or a short one would cut a piece out of a longer.
        marks = sorted([*self._marks.ids, *texts], key=len, reverse=True)
        # The answers as written, or as the tokenizer writes them (it may change characters), with or without marks.
        if read not in (said, known) and _without(read, marks) not in (_without(said, marks), _without(known, marks)):
            raise DeepenError(
                f"the mask of target tokens does not cover exactly the answers: {read[:80]!r} instead of {said[:80]!r}",
                hint="report the chat template; `tokenize.template: none` trains the answers without its marks",
            )

    def _letters(self, tokens: Sequence[int]) -> str:
        return "".join(self._reader.decode(list(tokens), skip_special_tokens=False).split())


def _calls(roles: Sequence[str], contents: Sequence[str]) -> list[str]:
    """The contents of the turns that call tools."""
    return [content for role, content in zip(roles, contents, strict=True) if role == CALL_ROLE]


@lru_cache(maxsize=2)
def _turn_encoder(encoder: Encoder, folder: Path, vocabulary: Vocabulary, template: Template | None) -> TurnEncoder:
    """Opened once in a process, however many parts it encodes."""
    return TurnEncoder(encoder, folder, vocabulary, template)


class PartTurns:
    """The turns of one part: encodes batches of its documents, checks a sample, and counts; opened when first used."""

    def __init__(self, encoder: Encoder, folder: Path, vocabulary: Vocabulary, template: Template | None) -> None:
        self._open = partial(_turn_encoder, encoder, folder, vocabulary, template)
        self._turns: TurnEncoder | None = None
        self._has_begin = vocabulary.begin_of_document_id is not None
        self._counts = MaskCounts()
        self._reference: TurnEncoder | None = None
        self._checked = 0
        self._differs: str | None = None
        self._target_bytes = 0

    def encode(
        self, halves: Array, texts: Sequence[str], spans: Sequence[Spans | None]
    ) -> tuple[Array, Array, Array, Array]:
        """Ids, lengths, flags of the framed documents and which were written (bool).

        Raises ``DeepenError`` when a mask does not decode to the answers.
        """
        self._turns = self._turns or self._open()
        laid = self._turns.encode(texts, spans, self._counts)
        ends = np.cumsum(laid.lengths)
        for place, at in enumerate(np.flatnonzero(laid.written).tolist()):
            self._target_bytes += _target_bytes(texts[at], spans[at])
            # By the id: the same documents, whatever the workers.
            is_sampled = self._checked < CHECKED_FIRST or int(halves[at, 1]) % CHECK_ONE_IN == 0
            if is_sampled and len(texts[at]) <= CHECK_CHARACTERS:
                piece = slice(int(ends[place] - laid.lengths[place]), int(ends[place]))
                if not self._check(self._turns, texts[at], spans[at], (laid.tokens[piece], laid.flags[piece])):
                    self._differs = self._differs or f"{int(halves[at, 0]):016x}{int(halves[at, 1]):016x}"
        return laid.tokens, laid.lengths, frame_flags(laid, has_begin=self._has_begin), laid.written

    def _check(self, turns: TurnEncoder, text: str, spans: Spans | None, laid: tuple[Array, Array]) -> bool:
        """Whether ``tokenizers`` gives the same ids; raises when it does and the mask is wrong."""
        self._checked += 1
        tokens, flags = laid
        self._reference = self._reference or turns.by_reference()
        if not np.array_equal(self._reference.encode([text], [spans], MaskCounts()).tokens, tokens):
            return False
        if spans is not None:
            turns.check(text, spans, tokens, flags)
        return True

    def add_to(self, counts: dict[str, Any]) -> None:
        """Put what was counted into a part's counts."""
        counts["target_bytes"] += self._target_bytes
        counts["checked"] += self._checked
        counts["differs"] = counts["differs"] or self._differs
        found = self._counts
        counts |= {"conversations": found.conversations, "trimmed": found.trimmed}
        counts |= {"refused": dict(sorted(found.refused.items())), "refused_because": found.examples}


def _target_bytes(text: str, spans: Spans | None) -> int:
    if spans is None:
        return len(text.encode())
    return sum(len(text[span["begin"] : span["end"]].encode()) for span in spans if span["role"] in TRAINED_ROLES)


def _without(text: str, marks: Sequence[str]) -> str:
    for mark in marks:
        text = text.replace("".join(mark.split()), "")
    return text


def _joined(run: Run, contents: Sequence[str]) -> str:
    return "".join(part if isinstance(part, str) else contents[part] for part in run.parts)


def frame_flags(laid: Laid, *, has_begin: bool) -> Array:
    """Flags (uint8) of documents with begin and end token around them, as ``frame`` lays them."""
    # The begin token is marked like the text behind it: 1 in plain text, 0 where only answers are learned.
    return with_ends(laid.flags, laid.lengths, ~laid.masked if has_begin else None, laid.ends, np.uint8)[0]


def with_ends(values: Array, lengths: Array, begin: Any, end: Any, dtype: Any) -> tuple[Array, Array]:
    """The values of documents with ``begin`` (None: nothing) and ``end`` around each, which are one value for all or
    one for each document; and their lengths."""
    lengths = lengths + (1 if begin is None else 2)
    laid = np.empty(int(lengths.sum()), dtype=dtype)
    ends = np.cumsum(lengths) - 1
    # Begin and end take their places; what is left over are the places of the document, in order.
    is_inside = np.ones(len(laid), dtype=bool)
    is_inside[ends] = False
    laid[ends] = end
    if begin is not None:
        is_inside[ends + 1 - lengths] = False
        laid[ends + 1 - lengths] = begin
    laid[is_inside] = values
    return laid, lengths
