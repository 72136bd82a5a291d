"""Chat templates: the marks that a model expects around the turns of a conversation.

The base's own template is used, run by transformers in its sandbox; a tokenizer without one gets a small documented
one. What a template does with a conversation is found out by ``skeletons``; here it is only chosen and run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.errors import DeepenError
from deepen.formats.documents.documents import CALL_ROLE
from deepen.formats.files.atomic import FileEntry, write_bytes

Turns = Sequence[tuple[str, str]]
"""Role and content of each turn."""

BUILT_IN = (
    "{%- for message in messages -%}\n"
    "{{ '\\n\\n' if not loop.first }}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' }}\n"
    "{%- endfor -%}\n"
    "{{ '\\n\\nAssistant:' if add_generation_prompt }}"
)
"""``User: why?``, blank line, ``Assistant: because`` and the end token. Our choice: words that every base has read, and
the one control token that every tokenizer has."""
_FILE = "chat_template.jinja"
_DATE = (
    "{%- macro strftime_now(format) -%}"
    "{{ '2024-07-26' if '-' in format else '26 Jul 2024' }}"
    "{%- endmacro -%}"
)  # fmt: skip
"""A template may write today's date; the same corpus must give the same tokens tomorrow. The date is Llama 3's own."""


class RefusedError(Exception):
    """A document cannot be written in the template: a short ``reason`` to count, and what the template said."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Template:
    """A Jinja template with the special tokens that it may name."""

    source: str
    tokens: tuple[tuple[str, str], ...]
    """Names and spellings: ``("eos_token", "</s>")``."""

    def render(self, turns: Turns, *, prompt: bool = False) -> str:
        """The conversation as one string; ``prompt`` adds what stands before the next answer.

        Raises ``RefusedError`` when the template does.
        """
        try:
            return self._rendered(_messages(turns, arguments_as_text=False), prompt=prompt)
        except RefusedError:
            if not any(role == CALL_ROLE for role, _ in turns):
                raise
        # Some templates want the arguments of a call as an object, some as the JSON that the model wrote.
        return self._rendered(_messages(turns, arguments_as_text=True), prompt=prompt)

    def _rendered(self, messages: list[dict[str, Any]], *, prompt: bool) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, _ = render_jinja_template(
                [messages], chat_template=self.source, add_generation_prompt=prompt, **dict(self.tokens)
            )
        except Exception as error:  # a template raises whatever it likes: it is somebody else's program
            message = (str(error).splitlines() or [type(error).__name__])[0]
            raise RefusedError("template_refuses", message[:200]) from error
        return str(rendered[0])


def _messages(turns: Turns, *, arguments_as_text: bool) -> list[dict[str, Any]]:
    """Turns in the form that templates read; results of tools get the names and ids of the calls before them."""
    messages: list[dict[str, Any]] = []
    waiting: list[Mapping[str, Any]] = []
    for role, content in turns:
        if role == CALL_ROLE:
            waiting = read_calls(content)
            if not messages or messages[-1]["role"] != "assistant" or "tool_calls" in messages[-1]:
                messages.append({"role": "assistant", "content": ""})
            messages[-1]["tool_calls"] = [_call(call, arguments_as_text) for call in waiting]
        elif role == "tool" and waiting:
            call, *waiting = waiting
            own = {"tool_call_id": call["id"]} if "id" in call else {}
            messages.append({"role": role, "content": content, "name": call["name"], **own})
        else:
            messages.append({"role": role, "content": content})
    return messages


def read_calls(content: str) -> list[Mapping[str, Any]]:
    """The calls of a turn; raises ``RefusedError`` where curation has changed its words."""
    try:
        calls = json.loads(content)
    except ValueError as error:
        raise RefusedError("call_damaged", "a call of a tool is no JSON any more") from error
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise RefusedError("call_damaged", "a call of a tool names no function")
    return calls


def _call(call: Mapping[str, Any], arguments_as_text: bool) -> dict[str, Any]:
    arguments = call.get("arguments", {})
    if arguments_as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    own = {"id": call["id"]} if "id" in call else {}
    return {**own, "type": "function", "function": {"name": call["name"], "arguments": arguments}}


def choose_template(setting: str, folder: Path) -> tuple[Template, list[FileEntry], str]:
    """The template for the tokenizer in ``folder``: its own, that of the file ``setting``, or the built-in one.

    A template that is not the tokenizer's own is written beside it, so that the exported model is asked the way it was
    trained. Returns the template, entries of what was written (named relative to the folder's parent), and a remark.
    Raises ``DeepenError`` when the template cannot write a question with its answer.
    """
    from deepen.model.weights.load import load_tokenizer

    tokenizer: Any = load_tokenizer(folder)
    own = tokenizer.chat_template
    source = own.get("default") if isinstance(own, dict) else own  # some have templates by name, for tools and the like
    remarks, entries = [], []
    if setting != "auto" or not source:
        source = BUILT_IN
        if setting != "auto":
            source = Path(setting).expanduser().read_text(encoding="utf-8")
        else:
            remarks.append("the base has no chat template: conversations are written `User: ...`, `Assistant: ...`")
        entry = write_bytes(folder / _FILE, source.encode())
        entries.append(entry.model_copy(update={"path": f"{folder.name}/{_FILE}"}))
    if "strftime_now" in source:
        remarks.append("the chat template writes today's date: trained with 26 Jul 2024 on every day")
        source = _DATE + source  # a macro hides the function of the same name
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    template = Template(source, tuple(sorted(names.items())))
    try:
        template.render([("user", "question"), ("assistant", "answer")])
    except RefusedError as error:
        raise DeepenError(
            f"the chat template cannot write a question and its answer: {error.detail}",
            hint="give another one with tokenize.template: FILE, or `none` for turns without marks",
        ) from error
    return template, entries, "; ".join(remarks)
