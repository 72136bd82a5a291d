"""Generation and conversation with an exported model."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen.errors import DeepenError
from deepen.export.chat import Conversation, Sampling, chat, generate, open_speaker
from tests.export.conftest import Run

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[me]{% endif %}"
)
SHORT = Sampling(max_new_tokens=8, temperature=0)


@pytest.fixture
def folder(run: Run) -> Path:
    run.export()
    return run.out


def said(folder: Path, typed: str, sampling: Sampling = SHORT) -> list[str]:
    sink = io.StringIO()
    chat(folder, sampling, source=io.StringIO(typed), sink=sink)
    return sink.getvalue().splitlines()


def give_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def test_greedy_text_is_what_transformers_generates(folder: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokens = tokenizer("the heart", return_tensors="pt").input_ids
    expected = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(expected[0, tokens.shape[1] :], skip_special_tokens=True)
    pieces = list(generate(folder, "the heart", max_new_tokens=12, temperature=0))
    assert "".join(pieces) == text and len(pieces) > 1


def test_the_seed_decides_the_sample(folder: Path) -> None:
    texts = ["".join(generate(folder, "a", max_new_tokens=20, temperature=1, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_generation_stops_when_the_positions_are_used_up(folder: Path) -> None:
    speaker = open_speaker(folder)
    prompt_length = len(speaker.tokenizer("the heart").input_ids)
    speaker.end_ids = frozenset()
    from deepen.export.chat import _next_tokens

    tokens = speaker.tokenizer("the heart").input_ids
    assert len(list(_next_tokens(speaker, tokens, Sampling(1000, 0)))) == speaker.max_length - prompt_length


def test_a_prompt_without_room_is_an_error_with_a_hint(folder: Path) -> None:
    with pytest.raises(DeepenError, match="64 positions"):
        next(generate(folder, "the heart " * 60))


def test_piped_lines_are_answered_until_the_end(folder: Path) -> None:
    first, second = ("".join(generate(folder, text, max_new_tokens=8, temperature=0)) for text in ("the", "a"))
    assert "\n".join(said(folder, "the\na\n")) == f"{first}\n{second}".rstrip("\n")


def test_quit_leaves_and_unknown_commands_are_named(folder: Path) -> None:
    assert said(folder, "/quit\nthe\n") == []
    assert said(folder, "/help\n")[0].startswith("no command `/help`")


def test_without_a_template_an_empty_line_goes_on_with_the_text(folder: Path) -> None:
    conversation = Conversation(open_speaker(folder), SHORT)
    answer = "".join(conversation.answer("the"))
    "".join(conversation.answer(""))
    assert conversation.text.startswith(f"the{answer}") and len(conversation.text) > len(f"the{answer}")


def test_with_a_template_the_conversation_is_remembered_until_reset(folder: Path) -> None:
    give_template(folder)
    conversation = Conversation(open_speaker(folder), SHORT)
    assert conversation.has_template
    answer = "".join(conversation.answer("hi"))
    assert conversation.messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}]
    conversation.reset()
    assert conversation.messages == []


def test_a_prompt_that_is_too_long_does_not_end_the_conversation(folder: Path) -> None:
    lines = said(folder, "the heart " * 60 + "\nthe\n")
    assert "64 positions" in lines[0] and len(lines) > 2


def test_what_was_read_before_stopping_is_remembered(folder: Path) -> None:
    conversation = Conversation(open_speaker(folder), Sampling(20, 0))
    answer = conversation.answer("the")
    pieces = list(islice(answer, 2))
    answer.close()  # type: ignore[attr-defined]
    assert conversation.text == "the" + "".join(pieces)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeepenError):
        open_speaker(tmp_path)
