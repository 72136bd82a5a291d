"""Chat templates: the marks that a model expects around the turns of a conversation.

The base's own template is used, run by transformers in its sandbox; a tokenizer without one gets a small documented
one. What a template does with a conversation is found out by ``skeletons``; here it is only chosen and run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.errors import DeepenError
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
        from transformers.utils.chat_template_utils import render_jinja_template

        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            rendered, _ = render_jinja_template(
                [messages], chat_template=self.source, add_generation_prompt=prompt, **dict(self.tokens)
            )
        except Exception as error:  # a template raises whatever it likes: it is somebody else's program
            message = (str(error).splitlines() or [type(error).__name__])[0]
            raise RefusedError("template_refuses", message[:200]) from error
        return str(rendered[0])


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
