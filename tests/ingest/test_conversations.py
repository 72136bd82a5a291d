"""Conversations keep whose words are where; broken ones are rejects with a name and a place."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepen.errors import SourceError
from deepen.ingest.conversations import Conversation, conversation_text, read_conversation

TURNS = "System: be brief\n\nUser: why?\n\nAssistant: because"
SAID = [("be brief", "system", "system"), ("why?", "user", "human"), ("because", "assistant", "gpt")]
SPOKEN = [(role, text) for text, role, _ in SAID]
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
MESSAGES = [{"role": role, "content": text} for text, role, _ in SAID]
SHARE_GPT = [{"from": name, "value": text} for text, _, name in SAID]
COLUMNS = {"from": [name for _, _, name in SAID], "value": [text for text, _, _ in SAID]}
SHAPES = [
    ({"messages": MESSAGES}, TURNS, SPOKEN),
    ({"conversations": SHARE_GPT}, TURNS, SPOKEN),
    ({"conversations": COLUMNS}, TURNS, SPOKEN),
    ({"messages": [{"role": "user", "content": PARTS}]}, "User: a\nb", "no_assistant_turn"),
    ({"instruction": "Add.", "input": "", "output": "3"}, "Add.\n\n3", [("user", "Add."), ("assistant", "3")]),
    (
        {"instruction": "Add.", "input": "1 2", "output": "3", "system": "S", "history": [["q", "a"]]},
        "Add.\n\n1 2\n\n3",
        [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "Add.\n\n1 2"), ("assistant", "3")],
    ),
    ({"source": "", "target": "All of it.", "category": "c"}, "All of it.", None),
    ({"source": "Q ", "target": "A"}, "Q A", [("prompt", "Q "), ("target", "A")]),
    ({"source": "Q ", "target": " "}, "Q  ", "empty_answer"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, None, "content_not_text"),
    ({"messages": [{"role": "narrator", "content": "x"}]}, "Narrator: x", "unknown_role"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]}, "Assistant: ", "tool_call"),
    ({"messages": [{"role": "assistant", "content": " "}]}, "Assistant: ", "empty_answer"),
    ({"messages": ["text"]}, None, "not_a_conversation"),
    ({"messages": []}, "", "no_assistant_turn"),
    ({"instruction": 5, "output": "x"}, None, "content_not_text"),
    ({"body": "x"}, None, "not_a_conversation"),
]


@pytest.mark.parametrize(("record", "text", "expected"), SHAPES)
def test_known_shapes(record, text, expected):
    assert conversation_text(record) == text
    found = read_conversation(record)
    if isinstance(expected, str):
        assert found.reason == expected
    else:
        spans = None if found.spans is None else [(s.role, found.text[s.begin : s.end]) for s in found.spans]
        assert spans == expected


OPENAI = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
WRITTEN = json.dumps([{"name": "f", "arguments": {"a": 1}, "id": "c1"}])
PLAIN = json.dumps([{"name": "f", "arguments": {"a": 1}}])


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [OPENAI]}, [("call", WRITTEN)]),
        ({"role": "assistant", "content": "so", "tool_calls": [OPENAI]}, [("assistant", "so"), ("call", WRITTEN)]),
        ({"role": "assistant", "function_call": OPENAI["function"]}, [("call", PLAIN)]),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}, [("call", PLAIN)]),
        ({"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'}, [("call", PLAIN)]),
    ],
)
def test_calls_and_results_of_tools_are_turns(turn, expected):
    turns = [{"role": "user", "content": "q"}, turn, {"role": "tool", "content": "42"}]
    found = read_conversation({"messages": [*turns, {"role": "assistant", "content": "a"}]})
    said = [(span.role, found.text[span.begin : span.end]) for span in found.spans]
    assert said == [("user", "q"), *expected, ("tool", "42"), ("assistant", "a")]


@pytest.mark.parametrize(
    "call", [{"from": "function_call", "value": "no JSON"}, {"role": "assistant", "tool_calls": [5]}]
)
def test_a_call_that_names_no_function_is_a_fault(call):
    assert read_conversation({"messages": [call, {"role": "assistant", "content": "a"}]}).reason == "tool_call"


def test_a_conversation_that_only_calls_tools_has_nothing_to_train():
    found = read_conversation({"messages": [{"role": "assistant", "tool_calls": [OPENAI]}]})
    assert found.reason == "no_assistant_turn" and "only tools are called" in found.detail


def test_empty_turns_keep_their_place_and_add_no_blank_lines():
    turns = [("system", ""), ("user", "q"), ("assistant", "a")]
    found = read_conversation({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert isinstance(found, Conversation)
    assert found.text == "q\n\na" and [span.begin for span in found.spans] == [0, 0, 3]


def test_conversations_are_recognised_and_broken_ones_named(tmp_path, run, documents, capsys):
    good = [{"messages": MESSAGES, "id": n} for n in range(20)]
    broken = [{"messages": MESSAGES[:2]}, {"messages": [{"role": "x", "content": ""}]}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in [*good, *broken]))
    manifest = run({"path": "a.jsonl"}, max_rejected=0.2)
    assert manifest.counts["sources"]["s0"]["rejected"] == {"no_assistant_turn": 1, "unknown_role": 1}
    assert documents()[3].text == "be brief\n\nwhy?\n\nbecause" and documents()[3].meta["id"] == "3"
    assert [span.role for span in documents()[0].spans] == ["system", "user", "assistant"]
    assert "answers alone are trained" in capsys.readouterr().err
    rejected = (tmp_path / "out/rejected.jsonl").read_text()
    assert '"a.jsonl:22"' in rejected and "turn 1: `x`" in rejected


def test_all_words_are_trained_when_asked_for(tmp_path, run, documents):
    lines = [{"source": "", "target": f"text {n}", "category": "law", "id": n} for n in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in [*lines, {"other": 1}]))
    manifest = run({"path": "a.jsonl", "conversations": "as_text"})
    assert [document.text for document in documents()] == [f"text {n}" for n in range(20)]
    assert documents()[0].category == "law" and documents()[0].spans is None
    assert manifest.counts["sources"]["s0"]["rejected"] == {"not_a_conversation": 1}


def test_a_text_field_goes_before_turns_and_other_records_need_a_field(tmp_path, run, texts):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": MESSAGES, "text": "written out"}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"other": "x"}))
    run({"path": "a.jsonl"})
    assert texts() == ["written out"]
    with pytest.raises(SourceError, match="`other`"):
        run({"path": "b.jsonl"}, out="other")


def test_nested_lists_of_parquet_and_arrow(tmp_path, run, documents):
    table = pa.table({"messages": [MESSAGES, MESSAGES], "n": [1, 2]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as writer:
        writer.write_table(table)
    run({"path": "a.parquet"}, {"path": "b.arrow"})
    assert len(documents()) == 4
    assert {document.text for document in documents()} == {"be brief\n\nwhy?\n\nbecause"}
    assert all(len(document.spans) == 3 for document in documents())
