"""Records of conversations and instructions as plain text, every word of which is trained on.

Known shapes: ``messages`` (role and content), ShareGPT's ``conversations`` (from and value), Alpaca's ``instruction``,
``input`` and ``output``, and Colossal-LLaMA's ``source`` and ``target``. Continued pretraining reads them as text: the
speakers of a conversation stand before what they say, the parts of an instruction are paragraphs, and source and
target follow each other as Colossal-LLaMA joins them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS = ("messages", "conversations", "instruction", "input", "output", "source", "target")
"""The fields that may hold a conversation."""
_SPEAKERS = {
    "human": "User",
    "user": "User",
    "gpt": "Assistant",
    "bot": "Assistant",
    "model": "Assistant",
    "assistant": "Assistant",
    "system": "System",
}


def looks_like_conversation(values: Mapping[str, Any]) -> bool:
    """Whether a record has the fields of a known shape."""
    return conversation_text(values) is not None


def conversation_text(values: Mapping[str, Any]) -> str | None:
    """The record as text, or None when it has none of the known shapes or a part of it is no text."""
    for name in ("messages", "conversations"):
        if isinstance(values.get(name), list):
            return _turns(values[name])
    if "instruction" in values and "output" in values:
        return _paragraphs(values.get("instruction"), values.get("input"), values.get("output"))
    source, target = values.get("source"), values.get("target")
    if isinstance(target, str) and (source is None or isinstance(source, str)):
        return (source or "") + target
    return None


def _turns(turns: list[Any]) -> str | None:
    lines = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            return None
        speaker = turn.get("role", turn.get("from"))
        text = _content(turn.get("content", turn.get("value")))
        if not isinstance(speaker, str) or text is None:
            return None
        lines.append(f"{_SPEAKERS.get(speaker.lower(), speaker.capitalize())}: {text.strip()}")
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
