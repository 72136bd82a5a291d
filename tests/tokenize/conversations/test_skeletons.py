"""What a template makes of roles: which characters are learned, found without looking at any id."""

import pytest

from deepen.tokenize.conversations.skeletons import Mark, Marks, Run, make_skeleton, without_template
from deepen.tokenize.conversations.templates import BUILT_IN, RefusedError, Template
from deepen.tokenize.vocabulary.tokenizer import Vocabulary

MARKS = Marks({"<s>": 1, "</s>": 2, "<|u|>": 3, "<|a|>": 4, "<|e|>": 5}, frozenset(), frozenset({"<|e|>"}))
TOKENS = (("bos_token", "<s>"), ("eos_token", "</s>"))
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)
GLM = (
    "{{ bos_token }}{% for m in messages %}{{ ('<|u|>' if m['role'] == 'user' else '<|a|>') + '\n' + m['content'] }}"
    "{% endfor %}{{ '<|a|>' if add_generation_prompt }}"
)
ENDS = "{% for m in messages %}{{ '<|u|>' if m['role'] == 'user' else '<|a|>' }}{{ m['content'] }}<|e|>\n\n{% endfor %}"
ROLES = ("user", "assistant", "user", "assistant")
CONTENTS = ("q", "a", "r", "b")
SPELLED = {number: mark for mark, number in MARKS.ids.items()}


def learned(source, roles=ROLES, begin=1):
    """What the template writes, what is not learned in brackets."""
    found = make_skeleton(Template(source, TOKENS), roles, MARKS, Vocabulary(9, 2, begin))
    text, trained = "", True
    for piece in found.pieces:
        if piece.trained != trained:
            text += "]" if piece.trained else "["
        trained = piece.trained
        if isinstance(piece, Mark):
            text += SPELLED[piece.id]
        else:
            text += "".join(part if isinstance(part, str) else CONTENTS[part] for part in piece.parts)
    return text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (BUILT_IN, "[User: q\n\nAssistant:] a</s>[\n\nUser: r\n\nAssistant:] b"),
        # the end of a turn is no control token of this tokenizer: its text is learned
        (CHATML, "[<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n]a<|im_end|>"
                 "[\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n]b<|im_end|>[\n"),
        # nothing ends a turn but the next one: the next header is not learned
        (GLM, "[<|u|>\nq<|a|>]\na[<|u|>\nr<|a|>]\nb"),
        # no prompt for an answer, and a mark that swallows the white space behind it
        (ENDS, "[<|u|>q<|e|><|a|>]a<|e|>[<|u|>r<|e|><|a|>]b<|e|>"),
    ],
)  # fmt: skip
def test_an_answer_is_learned_from_its_prompt_to_its_end(source, expected):
    assert learned(source) == expected


def test_the_begin_token_stays_where_the_tokenizer_sets_none():
    assert learned(GLM, begin=None).startswith("[<s><|u|>")


def test_white_space_behind_the_end_of_the_document_goes_with_it():
    ends = ENDS.replace("<|e|>", "</s>")
    assert learned(ends) == "[<|u|>q</s>\n\n<|a|>]a</s>[\n\n<|u|>r</s>\n\n<|a|>]b"


def test_a_turn_that_is_not_written_is_refused():
    with pytest.raises(RefusedError, match="turn_not_rendered") as caught:
        learned(
            "{% for m in messages %}{{ m['content'] if m['role'] != 'tool' }}{% endfor %}",
            ("user", "tool", "assistant"),
        )
    assert "turn 2 (`tool`)" in caught.value.detail


TOOLS = (
    "{% for m in messages %}{{ '<|u|>' if m['role'] != 'assistant' else '<|a|>' }}{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c['function']['name'] }} "
    "{{ c['function']['arguments'] ARGUMENTS }}</call>{% endfor %}<|e|>{% endfor %}"
    "{{ '<|a|>' if add_generation_prompt }}"
)
CALL = '[{"name": "add", "arguments": {"a": 1}}]'
CALLED = [("user", "q"), ("assistant", "so:"), ("call", CALL), ("tool", "2"), ("call", CALL), ("tool", "3"),
          ("assistant", "two")]  # fmt: skip


def with_calls(source, turns=CALLED):
    roles, contents = [role for role, _ in turns], [content for _, content in turns]
    calls = [content for role, content in turns if role == "call"]
    found = make_skeleton(Template(source, TOKENS), roles, MARKS, Vocabulary(9, 2, 1), calls)
    pieces = []
    for piece in found.pieces:
        whole = SPELLED[piece.id] if isinstance(piece, Mark) else "".join(
            part if isinstance(part, str) else contents[part] for part in piece.parts
        )  # fmt: skip
        pieces.append(whole if piece.trained else f"[{whole}]")
    assert found.filled(contents) == Template(source, TOKENS).render(turns)
    return "".join(pieces).replace("][", "")


@pytest.mark.parametrize(("arguments", "written"), [("| tojson", '{"a": 1}'), ("+ ''", '{"a": 1}')])
def test_calls_of_tools_are_written_by_the_template_and_not_learned(arguments, written):
    call = f"<call>add {written}</call>"
    assert with_calls(TOOLS.replace("ARGUMENTS", arguments)) == (
        f"[<|u|>q<|e|><|a|>]so:[{call}<|e|><|u|>2<|e|><|a|>{call}<|e|><|u|>3<|e|><|a|>]two<|e|>"
    )


def test_results_of_tools_get_the_names_and_ids_of_their_calls():
    source = "{% for m in messages %}{{ m['content'] }}{% for c in m['tool_calls'] or [] %}{{ c | tojson }}{% endfor %}"
    source += "{{ m['name'] }}{{ m['tool_call_id'] }};{% endfor %}"
    calls = '[{"name": "f", "arguments": {}, "id": "1"}, {"name": "g", "arguments": {}, "id": "2"}]'
    turns = [("user", "q"), ("call", calls), ("tool", "x"), ("tool", "y")]
    assert Template(source, TOKENS).render(turns).endswith("xf1;yg2;")


@pytest.mark.parametrize(
    ("source", "call", "reason"),
    [
        (CHATML, CALL, "turn_not_rendered"),
        (TOOLS.replace("ARGUMENTS", "| tojson"), CALL.replace("add", "<|e|>"), "call_spells_mark"),
        (TOOLS.replace("ARGUMENTS", "| tojson"), "[{", "call_damaged"),
        (TOOLS.replace("ARGUMENTS", "| tojson"), "[1]", "call_damaged"),
        (TOOLS.replace("{{ c['function']['arguments'] ARGUMENTS }}", ""), CALL, "turn_not_rendered"),
    ],
)
def test_calls_that_cannot_be_written_are_refused(source, call, reason):
    with pytest.raises(RefusedError, match=reason):
        with_calls(source, [("user", "q"), ("call", call), ("assistant", "a")])


def test_trimming_is_noticed_by_turn():
    source = "{% for m in messages %}{{ m['content'] if m['role'] == 'user' else m['content'] | trim }}{% endfor %}"
    found = make_skeleton(Template(source, TOKENS), ROLES, MARKS, Vocabulary(9, 2, None))
    assert found.trims == (False, True, False, True)


def test_without_a_template_spans_and_what_is_between_them_alternate():
    pieces = without_template(("prompt", "target"), has_begin=True)
    assert pieces == (Run((0, 1, 2), False, "mark"), Run((3,), True, "text"), Run((4,), False, "text"))
