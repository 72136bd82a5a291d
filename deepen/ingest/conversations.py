"""Conversations, instructions and prompts with answers: whose words are where, or all of it as plain text.

Known shapes: ``messages`` (role and content), ShareGPT's ``conversations`` (from and value), Alpaca's ``instruction``,
``input`` and ``output``, and Colossal-LLaMA's ``source`` and ``target``. The text of a document is what was said, blank
lines between the turns; spans say who said it, so that only answers are trained and a chat template can be put around
the turns when the tokenizer is known. ``conversation_text`` is the other way: speakers written into the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepen.formats.documents.documents import CALL_ROLE, TRAINED_ROLES, Span

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
    "function_call": CALL_ROLE,
    "tool_call": CALL_ROLE,
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
        said += found
    return _of_turns(said)


def _turn(turn: Any) -> list[tuple[str, str]] | Fault:
    """Roles and contents of one turn: what is said, then the calls of tools."""
    if not isinstance(turn, Mapping):
        return Fault("not_a_conversation", f"a {type(turn).__name__}, not an object")
    speaker = turn.get("role", turn.get("from"))
    role = _ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        return Fault("unknown_role", f"`{str(speaker)[:40]}`")
    content = turn.get("content", turn.get("value"))
    given = content if role == CALL_ROLE else next((turn[name] for name in _CALLS if turn.get(name)), None)
    if given is None:
        text = _content(content)
        return Fault("content_not_text", f"the content of `{speaker}`") if text is None else [(role, text)]
    calls = _calls(given)
    text = "" if role == CALL_ROLE or content is None else _content(content)
    if text is None:
        return Fault("content_not_text", f"the content of `{speaker}`")
    if calls is None:
        return Fault("tool_call", "a call of a tool that names no function")
    return [*([(role, text)] if text else []), (CALL_ROLE, json.dumps(calls, ensure_ascii=False))]


def _calls(given: Any) -> list[dict[str, Any]] | None:
    """Calls of tools in one form, whatever they are written in; None where one does not say what it calls."""
    given = _parsed(given)
    calls = []
    for call in given if isinstance(given, list) else [given]:
        if not isinstance(call, Mapping):
            return None
        function = call.get("function") or call
        name = function.get("name") if isinstance(function, Mapping) else function
        if not isinstance(name, str):
            return None
        arguments = function.get("arguments") if isinstance(function, Mapping) else call.get("arguments")
        known = {} if arguments is None else _parsed(arguments)
        own = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        calls.append({"name": name, "arguments": known, **own})
    return calls or None


def _parsed(value: Any) -> Any:
    """What a text of JSON says; anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


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
        roles = {role for role, _ in said}
        if roles & set(TRAINED_ROLES):
            return Fault("empty_answer", "the answer is empty")
        calls_only = "only tools are called, which is not trained" if CALL_ROLE in roles else "nobody answers"
        return Fault("no_assistant_turn", calls_only if said else "no turns")
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
        return Fault("empty_answer", "`target` is empty")
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
