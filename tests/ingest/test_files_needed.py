"""How many files a limit takes: counted exactly, without asking for one more."""

import json

import pytest

from deepen.ingest.config import Extraction, Source
from deepen.ingest.files import list_files
from deepen.ingest.read.documents import files_needed


@pytest.fixture
def count(tmp_path):
    """Counts over files of the given records; returns (files asked for, what was found)."""

    def counting(files, **settings):
        for name, records in files.items():
            (tmp_path / name).write_text("".join(f"{json.dumps(record)}\n" for record in records))
        asked = []
        listed = (asked.append(file.location) or file for file in list_files(str(tmp_path)))
        source = Source.model_validate({"name": "s", "role": "domain", "path": str(tmp_path), **settings})
        return asked, files_needed(source, Extraction(), listed)

    return counting


THREE = {f"{name}.jsonl": [{"text": f"{name} {i}"} for i in range(4)] for name in "abc"}


@pytest.mark.parametrize(
    ("limit", "number"), [("4 documents", 1), ("5 documents", 2), ("13 bytes", 2), ("3 tokens", 1)]
)
def test_no_file_after_the_limit_is_asked_for(count, limit, number):
    asked, needed = count(THREE, limit=limit)
    assert len(asked) == len(needed.files) == number
    assert needed.is_enough


def test_all_files_may_be_too_few(count):
    _, needed = count(THREE, limit="13 documents")
    assert (len(needed.files), needed.reached.documents, needed.is_enough) == (3, 12, False)


def test_what_is_rejected_does_not_count(count):
    asked, _ = count({"a.jsonl": [{"text": " "}, {"text": "one"}], "b.jsonl": [{"text": "two"}]}, limit=2)
    assert asked == ["a.jsonl", "b.jsonl"]


def test_a_later_file_may_show_where_the_text_is(count):
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    files = {"a.jsonl": [{"messages": said}], "b.jsonl": [{"text": "one"}], "c.jsonl": [{"text": "two"}]}
    asked, needed = count(files, limit=2)
    assert asked == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert needed.reached.documents == 2
