"""Conversations become text only when asked, and nothing of them is lost."""

import json

import pytest

from deepen.errors import SourceError
from deepen.ingest.conversations import conversation_text

TURNS = "System: be brief\n\nUser: why?\n\nAssistant: because"
SAID = [("be brief", "system", "system"), ("why?", "user", "human"), ("because", "assistant", "gpt")]
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
SHAPES = [
    ({"messages": [{"role": role, "content": text} for text, role, _ in SAID]}, TURNS),
    ({"conversations": [{"from": name, "value": text} for text, _, name in SAID]}, TURNS),
    ({"messages": [{"role": "user", "content": PARTS}]}, "User: a\nb"),
    ({"instruction": "Add.", "input": "", "output": "3"}, "Add.\n\n3"),
    ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n\n1 2\n\n3"),
    ({"source": "", "target": "All of it.", "category": "c"}, "All of it."),
    ({"source": "Q ", "target": "A"}, "Q A"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, None),
    ({"messages": ["text"]}, None),
    ({"instruction": 5, "output": "x"}, None),
    ({"body": "x"}, None),
]


@pytest.mark.parametrize(("record", "text"), SHAPES)
def test_known_shapes(record, text):
    assert conversation_text(record) == text


def test_conversations_are_refused_until_asked_for(tmp_path, run, documents):
    lines = [{"source": "", "target": f"text {n}", "category": "law", "id": n} for n in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in [*lines, {"other": 1}]))
    with pytest.raises(SourceError, match="as_text"):
        run({"path": "a.jsonl"}, out="refused")
    manifest = run({"path": "a.jsonl", "conversations": "as_text", "category": {"field": "category"}})
    assert [document.text for document in documents()] == [f"text {n}" for n in range(20)]
    assert documents()[0].category == "law" and documents()[3].meta["id"] == "3"
    assert manifest.counts["sources"]["s0"]["rejected"] == {"not_a_conversation": 1}
