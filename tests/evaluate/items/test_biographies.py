"""People who do not exist: what is trained, what is asked, and that one does not hold the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from deepen.cli import app
from deepen.evaluate.items.biographies import people
from deepen.evaluate.probes.answers import Facts


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_files_teach_everyone_and_ask_about_the_second_half(tmp_path: Path) -> None:
    arguments = ["biographies", str(tmp_path), "--people", "20", "--rewrites", "3", "--seed", "5"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    texts = [row["text"] for row in rows(tmp_path / "biographies.jsonl")]
    questions = "\n".join(row["text"] for row in rows(tmp_path / "questions.jsonl"))
    everyone = people(20, 5)
    assert len(texts) == 60 and len(set(texts)) > 55 and len({person.name for person in everyone}) == 20
    for place, person in enumerate(everyone):
        about = [text for text in texts if person.name in text]
        assert len(about) == 3 and all(
            value.lower() in text.lower() for text in about for value in person.facts.values()
        )
        assert (person.name in questions) == (place < 10)
    probe = Facts(path=str(tmp_path / "facts.jsonl"), by="attribute", group="person")
    items = probe.items()
    assert len(items) == 60 and not any(item.reason for item in items)
    assert {item.task for item in items} == set(everyone[0].facts) and {item.cluster for item in items} == {
        person.name for person in everyone[10:]
    }
    (first, *_) = Facts(path=str(tmp_path / "reversed.jsonl")).items()
    assert first.answers == (everyone[10].name,) and everyone[10].name not in first.prompt


def test_the_seed_decides_everything() -> None:
    assert people(9, 1) == people(9, 1) != people(9, 2)
