"""What a chat template makes of turns, found out once for each sequence of roles: fixed marks and text, and gaps.

Stand-ins are rendered instead of contents, so nothing is searched for in ids, and no content can pass for a mark. An
answer begins where the template's own prompt for it ends and includes the end-of-turn token behind it: just what the
model has to write at inference.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tokenizers import Tokenizer

from deepen.formats.documents.documents import CALL_ROLE, TRAINED_ROLES
from deepen.tokenize.conversations.templates import RefusedError, Template, read_calls
from deepen.tokenize.vocabulary.tokenizer import Vocabulary

Follows = Literal["start", "mark", "text"]
_BEFORE, _BEHIND = "\n\t", "\t\n"
"""White space that no template writes around a turn by itself, and that differs from that of the turn beside it."""


@dataclass(frozen=True)
class Run:
    """Text that is encoded in one go: fixed strings, and turns by their number."""

    parts: tuple[str | int, ...]
    trained: bool
    follows: Follows = "start"
    """What stands before it: nothing, a control token, or a run of the other kind."""


@dataclass(frozen=True)
class Mark:
    """A control token of the template."""

    id: int
    trained: bool


@dataclass(frozen=True)
class Skeleton:
    """A conversation without its contents."""

    rendered: tuple[str | int, ...]
    """All that the template writes: fixed strings (marks spelled out), and turns by their number."""
    trims: tuple[bool, ...]
    """For each turn whether the template takes white space from its ends."""
    pieces: tuple[Run | Mark, ...]
    """The same for the encoder, without what frames every document: begin token in front, end token behind."""
    ends_trained: bool
    """Whether the document ends in an answer, so that its end token is one to be learned."""

    @property
    def trained_texts(self) -> list[str]:
        """Fixed text of the template that is learned: what ends a turn where no control token does."""
        runs = (piece for piece in self.pieces if isinstance(piece, Run) and piece.trained)
        return [part for run in runs for part in run.parts if isinstance(part, str) and part.strip()]

    def filled(self, contents: Sequence[str]) -> str:
        """What the template should write for these contents."""
        return "".join(part if isinstance(part, str) else contents[part] for part in self.rendered)


@dataclass(frozen=True)
class Marks:
    """The special tokens of a tokenizer, as a template spells them."""

    ids: dict[str, int]
    strip_before: frozenset[str]
    strip_after: frozenset[str]
    """Those that swallow the white space of the template around them."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Marks:
        """All special tokens of a tokenizer."""
        special = [(number, token) for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
        return cls(
            {token.content: number for number, token in special},
            frozenset(token.content for _, token in special if token.lstrip),
            frozenset(token.content for _, token in special if token.rstrip),
        )


@dataclass(frozen=True)
class _Atom:
    """A mark (``id``), a turn (``turn``) or fixed text."""

    text: str
    id: int | None = None
    turn: int | None = None
    trained: bool = False

    @property
    def is_blank(self) -> bool:
        return self.id is None and self.turn is None and not self.text.strip()


def make_skeleton(
    template: Template, roles: Sequence[str], marks: Marks, vocabulary: Vocabulary, calls: Sequence[str] = ()
) -> Skeleton:
    """What the template makes of turns of these roles; raises ``RefusedError`` if it cannot write them.

    ``calls``: the contents of the turns that call tools. A template takes them apart, so they are no gaps but part of
    what it writes.
    """
    known = iter(calls)
    turns = [(role, next(known) if role == CALL_ROLE else _stand_in(number)) for number, role in enumerate(roles)]
    if calls:
        _check_calls(template, turns, marks)
    rendered = template.render(turns)
    found = [int(number) for number in re.findall("\ue0f0(\\d+)\ue0f1", rendered)]
    roles = tuple(roles)
    gaps = [number for number, role in enumerate(roles) if role != CALL_ROLE]
    if sorted(found) != gaps:  # a template may leave a turn out, or write it twice
        lost = next((number for number in gaps if found.count(number) != 1), 0)
        detail = f"the template does not write turn {lost + 1} (`{roles[lost]}`) once"
        raise RefusedError("turn_not_rendered", detail)
    atoms = _atoms(rendered, marks)
    for number, role in enumerate(roles):
        if role in TRAINED_ROLES:
            goes_on = roles[number + 1 : number + 2] == (CALL_ROLE,)  # calls belong to the turn: it does not end here
            tail = "" if goes_on else _tail(template, turns[: number + 1])
            atoms = _with_answer(atoms, number, _prompt(template, turns[:number]), tail)
    # For the encoder; `rendered` below is compared with what the template writes, so nothing is stripped there.
    seen = [_stripped(atoms, at, marks) for at in range(len(atoms))]
    # Rendered again with white space around each turn: where it is gone, the template trims.
    padded = template.render(
        [(role, content if role == CALL_ROLE else f"{_BEFORE}{content}{_BEHIND}") for role, content in turns]
    )
    return Skeleton(
        tuple(atom.text if atom.turn is None else atom.turn for atom in _atoms(rendered, marks)),
        tuple(role != CALL_ROLE and f"{_BEFORE}{content}{_BEHIND}" not in padded for role, content in turns),
        pieces_of(_unframed(seen, vocabulary), has_begin=vocabulary.begin_of_document_id is not None),
        bool(roles) and roles[-1] in TRAINED_ROLES,
    )


def _check_calls(template: Template, turns: Sequence[tuple[str, str]], marks: Marks) -> None:
    """Raise ``RefusedError`` where the template does not write calls of tools, or one spells a mark of it."""
    for role, content in turns:
        if role == CALL_ROLE and any(mark in content for mark in marks.ids):
            raise RefusedError("call_spells_mark", "a call of a tool spells a mark of the template")
    probes: list[str] = []
    probed = []
    for role, content in turns:
        if role == CALL_ROLE:
            new = []
            for call in read_calls(content):
                name, value = (f"\ue0f2{len(probes) + more}\ue0f3" for more in (0, 1))
                probes += [name, value]
                new.append({**call, "name": name, "arguments": {"x": value}})
            content = json.dumps(new, ensure_ascii=False)
        probed.append((role, content))
    written = template.render(probed)
    if any(probe not in written for probe in probes):
        raise RefusedError("turn_not_rendered", "the template does not write calls of tools")


def _stand_in(number: int) -> str:
    return f"\ue0f0{number}\ue0f1"  # of the private use area: no template writes these, and `strip` leaves them alone


def _prompt(template: Template, turns: Sequence[tuple[str, str]]) -> str | None:
    """What the template writes before the next answer, if it can."""
    try:
        return template.render(turns, prompt=True)
    except RefusedError:
        return None


def _tail(template: Template, turns: Sequence[tuple[str, str]]) -> str | None:
    """What the template writes after the last turn of a conversation that ends with it, if it can."""
    try:
        return template.render(turns).rpartition(turns[-1][1])[2]  # all that follows the last stand-in
    except RefusedError:
        return None


def _atoms(rendered: str, marks: Marks) -> list[_Atom]:
    """Marks, turns and fixed text, in order; together they are the rendered string."""
    # Or a mark that begins another one would be found in its place.
    spellings = sorted(marks.ids, key=len, reverse=True)
    pattern = re.compile("|".join(["\ue0f0(?P<turn>\\d+)\ue0f1", *map(re.escape, spellings)]))
    atoms: list[_Atom] = []
    end = 0
    for found in pattern.finditer(rendered):
        if found.start() > end:
            atoms.append(_Atom(rendered[end : found.start()]))
        turn = int(found["turn"]) if found["turn"] else None
        number = None if turn is not None else marks.ids[found[0]]
        atoms.append(_Atom(found[0], number, turn))
        end = found.end()
    if end < len(rendered):
        atoms.append(_Atom(rendered[end:]))
    return atoms


def _stripped(atoms: Sequence[_Atom], at: int, marks: Marks) -> _Atom:
    """The atom as the tokenizer sees it: fixed text without the white space that marks beside it swallow."""
    atom = atoms[at]
    if atom.id is not None or atom.turn is not None:
        return atom
    text = atom.text
    if at > 0 and atoms[at - 1].text in marks.strip_after:
        text = text.lstrip()
    if at + 1 < len(atoms) and atoms[at + 1].text in marks.strip_before:
        text = text.rstrip()
    return replace(atom, text=text)


def _with_answer(atoms: Sequence[_Atom], turn: int, prompt: str | None, tail: str | None) -> list[_Atom]:
    """The atoms with the answer ``turn`` marked as trained: from the end of its prompt to its end-of-turn token."""
    at = next(index for index, atom in enumerate(atoms) if atom.turn == turn)
    before, after = list(atoms[:at]), list(atoms[at + 1 :])
    whole = "".join(atom.text for atom in before)
    if before and prompt is not None and whole.startswith(prompt):
        # White space between the end of the prompt and the answer is for the model to write: it is trained, too.
        own, last = whole[len(prompt) :], before[-1]
        if own and not own.strip() and last.id is None and last.turn is None and last.text.endswith(own):
            kept = last.text.removesuffix(own)
            before[-1:] = [*([replace(last, text=kept)] if kept else []), replace(last, text=own, trained=True)]
    return [*before, replace(atoms[at], trained=True), *_with_closing(after, tail)]


def _with_closing(after: list[_Atom], tail: str | None) -> list[_Atom]:
    """What follows an answer, with its end marked as trained: a control token, or the text that stands for one.

    ``tail`` is what the template writes when the conversation ends here: what is not in it belongs to the next turn.
    """
    length = 2 if after and after[0].is_blank else 1  # some templates write a line end before the end-of-turn token
    closing = "".join(atom.text for atom in after[:length])
    if len(after) >= length and after[length - 1].id is not None:
        # Else the token opens the next turn: a conversation that ended here would not have it.
        if tail is None or tail.startswith(closing):
            after[:length] = [replace(atom, trained=True) for atom in after[:length]]
        return after
    if not after or after[0].turn is not None or tail is None:
        return after
    # What is written here both before another turn and at the end.
    end = os.path.commonprefix([after[0].text, tail]).rstrip()
    rest = after[0].text.removeprefix(end)
    if end:
        after[:1] = [replace(after[0], text=end, trained=True), *([replace(after[0], text=rest)] if rest else [])]
    return after


def _unframed(atoms: Sequence[_Atom], vocabulary: Vocabulary) -> list[_Atom]:
    """Without the begin token in front and the end token behind: every document gets these once."""
    found = list(atoms)
    if found and found[0].id is not None and found[0].id == vocabulary.begin_of_document_id:
        del found[0]
    behind = 2 if len(found) > 1 and found[-1].is_blank else 1  # a line end after the end token goes with it
    if len(found) >= behind and found[-behind].id == vocabulary.end_of_document_id:
        del found[-behind:]
    return found


def pieces_of(atoms: Iterable[_Atom], *, has_begin: bool) -> tuple[Run | Mark, ...]:
    """Marks, and runs of text that are trained alike."""
    pieces: list[Run | Mark] = []
    follows: Follows = "mark" if has_begin else "start"
    for atom in atoms:
        if atom.id is not None:
            pieces.append(Mark(atom.id, atom.trained))
            follows = "mark"
            continue
        part = atom.text if atom.turn is None else atom.turn
        last = pieces[-1] if pieces else None
        if isinstance(last, Run) and last.trained == atom.trained:
            pieces[-1] = replace(last, parts=(*last.parts, part))
        elif part != "":  # a text of which marks left nothing begins no run
            pieces.append(Run((part,), atom.trained, follows))
            follows = "text"
    return tuple(pieces)


def without_template(roles: Sequence[str], *, has_begin: bool) -> tuple[Run | Mark, ...]:
    """Pieces of a document without marks: turn 2k + 1 of the contents is span k, the even ones are what is between."""
    atoms = []
    for number, role in enumerate(roles):
        atoms += [_Atom("", turn=2 * number), _Atom("", turn=2 * number + 1, trained=role in TRAINED_ROLES)]
    return pieces_of([*atoms, _Atom("", turn=2 * len(roles))], has_begin=has_begin)
