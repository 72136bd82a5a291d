"""Conversations, instructions and prompts with answers: whose words are where, or all of it as plain text.

Known shapes: ``messages`` (role and content), ShareGPT's ``conversations`` (from and value), Alpaca's ``instruction``,
``input`` and ``output``, and Colossal-LLaMA's ``source`` and ``target``. The text of a document is what was said, blank
lines between the turns; spans say who said it, so that only answers are trained and a chat template can be put around
the turns when the tokenizer is known. ``conversation_text`` is the other way: speakers written into the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepen.formats.documents.documents import TRAINED_ROLES, Span

FIELDS = ("messages", "conversations", "instruction", "input", "output", "system", "history", "source", "target")
"""The fields that may hold a conversation."""
CATEGORY_FIELD = "category"
"""Beside ``source`` and ``target``: the document's category."""
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_CALLS = ("tool_calls", "function_call")
_BETWEEN_TURNS = "\n\n"


@dataclass(frozen=True)
class Conversation:
    """What was said, and by whom; ``spans`` is None where nothing is masked."""

    text: str
    spans: tuple[Span, ...] | None
    category: str | None = None


@dataclass(frozen=True)
class Fault:
    """Why a record that has the fields of a conversation is none."""

    reason: str
    detail: str


def looks_like_conversation(values: Mapping[str, Any]) -> bool:
    """Whether a record has the fields of a known shape."""
    if any(isinstance(_listed(values.get(name)), list) for name in ("messages", "conversations")):
        return True
    target = values.get("target")
    return ("instruction" in values and "output" in values) or ("source" in values and isinstance(target, str))


def read_conversation(values: Mapping[str, Any]) -> Conversation | Fault:
    """The record as a conversation, or what is wrong with it."""
    for name in ("messages", "conversations"):
        turns = _listed(values.get(name))
        if isinstance(turns, list):
            return _conversation(turns)
    if "instruction" in values and "output" in values:
        return _instruction(values)
    if "target" in values:
        return _prompt_and_target(values)
    return Fault("not_a_conversation", "no `messages`, `conversations`, `instruction` and `output`, or `target`")


def _listed(turns: Any) -> Any:
    """Turns as a list; Hugging Face data sets may store a list of records as a record of lists."""
    if not isinstance(turns, Mapping) or not turns or not all(isinstance(column, list) for column in turns.values()):
        return turns
    if len({len(column) for column in turns.values()}) != 1:
        return turns
    return [dict(zip(turns, row, strict=True)) for row in zip(*turns.values(), strict=True)]


def _conversation(turns: Sequence[Any]) -> Conversation | Fault:
    said = []
    for number, turn in enumerate(turns, start=1):
        found = _turn(turn)
        if isinstance(found, Fault):
            return Fault(found.reason, f"turn {number}: {found.detail}")
        said.append(found)
    return _of_turns(said)


def _turn(turn: Any) -> tuple[str, str] | Fault:
    """Role and content of one turn."""
    if not isinstance(turn, Mapping):
        return Fault("not_a_conversation", f"a {type(turn).__name__}, not an object")
    speaker = turn.get("role", turn.get("from"))
    role = _ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        return Fault("unknown_role", f"`{str(speaker)[:40]}`")
    # Without the call the turns behind it make no sense.
    if any(turn.get(name) for name in _CALLS):
        return Fault("tool_call", "a call of a tool, which is no text")
    content = _content(turn.get("content", turn.get("value")))
    return Fault("content_not_text", f"the content of `{speaker}`") if content is None else (role, content)


def _instruction(values: Mapping[str, Any]) -> Conversation | Fault:
    """Alpaca: the instruction and its input are asked together; earlier rounds may stand in ``history``."""
    system, history = values.get("system"), values.get("history") or []
    question, answer = _paragraphs(values.get("instruction"), values.get("input")), values.get("output")
    if question is None or not isinstance(answer, str) or not isinstance(system, str | None):
        return Fault("content_not_text", "`instruction`, `input`, `output` or `system`")
    said = [("system", system)] if system else []
    for pair in history if isinstance(history, list) else [history]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            return Fault("content_not_text", "`history` is no list of pairs of texts")
        said += [("user", pair[0]), ("assistant", pair[1])]
    return _of_turns([*said, ("user", question), ("assistant", answer)])


def _of_turns(said: Sequence[tuple[str, str]]) -> Conversation | Fault:
    if not any(role in TRAINED_ROLES and content.strip() for role, content in said):
        return Fault("no_assistant_turn", "nobody answers" if said else "no turns")
    text, spans = [], []
    end = 0
    for role, content in said:
        if content and end:  # an empty turn has a span of its own and no blank lines
            text.append(_BETWEEN_TURNS)
            end += len(_BETWEEN_TURNS)
        spans.append(Span(role, end, end + len(content)))
        text.append(content)
        end += len(content)
    return Conversation("".join(text), tuple(spans))


def _prompt_and_target(values: Mapping[str, Any]) -> Conversation | Fault:
    """Colossal-LLaMA: the target goes on where the source ends; without a source it is plain text."""
    source, target, category = values.get("source"), values.get("target"), values.get(CATEGORY_FIELD)
    if not isinstance(target, str) or not isinstance(source, str | None):
        return Fault("content_not_text", "`source` or `target`")
    if not target.strip():
        return Fault("no_assistant_turn", "`target` is empty")
    category = None if category is None else str(category)
    if not source:
        return Conversation(target, None, category)
    end = len(source) + len(target)
    spans = (Span("prompt", 0, len(source)), Span("target", len(source), end))
    return Conversation(source + target, spans, category)


def conversation_text(values: Mapping[str, Any]) -> str | None:
    """The record as plain text: speakers before what they say, an instruction's parts as paragraphs, source and target
    one after the other. None when it has none of the known shapes or a part of it is no text."""
    for name in ("messages", "conversations"):
        turns = _listed(values.get(name))
        if isinstance(turns, list):
            return _spoken(turns)
    if "instruction" in values and "output" in values:
        return _paragraphs(values.get("instruction"), values.get("input"), values.get("output"))
    source, target = values.get("source"), values.get("target")
    if isinstance(target, str) and (source is None or isinstance(source, str)):
        return (source or "") + target
    return None


def _spoken(turns: list[Any]) -> str | None:
    lines = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            return None
        speaker = turn.get("role", turn.get("from"))
        text = _content(turn.get("content", turn.get("value")))
        if not isinstance(speaker, str) or text is None:
            return None
        lines.append(f"{_ROLES.get(speaker.lower(), speaker).capitalize()}: {text.strip()}")
    return "\n\n".join(lines)


def _content(content: Any) -> str | None:
    """A text, or the texts of a list of parts; pictures and calls of tools are none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    given = [text for text in texts if isinstance(text, str)]
    return "\n".join(given) if len(given) == len(texts) else None


def _paragraphs(*parts: Any) -> str | None:
    given = [part for part in parts if part is not None]
    if not all(isinstance(part, str) for part in given):
        return None
    return "\n\n".join(part.strip() for part in given if part.strip())
