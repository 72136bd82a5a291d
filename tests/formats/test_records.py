import pytest

from deepen.formats.documents.documents import Document, num_documents_in, read_documents, write_documents
from deepen.formats.files.records import append_record, keep_records, read_records, write_records
from deepen.formats.training.decisions import Decision, Ledger


def test_a_half_written_last_line_is_ignored(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_record(path, {"step": 1})
    append_record(path, {"step": 2}, sync=True)
    with path.open("a") as file:
        file.write('{"step": 3')
    assert [record["step"] for record in read_records(path)] == [1, 2]


def test_keeping_records_drops_the_others(tmp_path):
    write_records(tmp_path / "m.jsonl", ({"step": step} for step in range(5)), tmp_path)
    keep_records(tmp_path / "m.jsonl", lambda record: record["step"] < 2)
    assert [record["step"] for record in read_records(tmp_path / "m.jsonl")] == [0, 1]
    assert list(read_records(tmp_path / "missing.jsonl")) == []


def test_documents_survive_parquet_and_give_the_same_bytes(tmp_path):
    documents = [
        Document(
            id=str(n),
            text=f"naïve\u2028{n}",
            source="s",
            scores={"a.b": n / 3},
            content_hash="h",
            meta={"location": "x:1"},
        )
        for n in range(2_500)
    ]
    first, count = write_documents(tmp_path / "a.parquet", iter(documents), tmp_path)
    second, _ = write_documents(tmp_path / "b.parquet", documents, tmp_path)
    assert count == num_documents_in(tmp_path / "a.parquet") == 2_500
    assert first.hash == second.hash
    assert list(read_documents(tmp_path / "a.parquet")) == documents


@pytest.mark.parametrize("torn", [b'{"a": 2', b"{", b'{"text": "' + b"x" * 200_000, b'{"a": "\xc3'])
def test_what_is_appended_after_a_torn_line_is_a_line_of_its_own(tmp_path, torn):
    path = tmp_path / "records.jsonl"
    for before in (b"", b'{"a": 1}\n'):
        path.write_bytes(before + torn)
        append_record(path, {"a": 3}, sync=True)
        assert [record["a"] for record in read_records(path)] == [1, 3][len(before) == 0 :]
        assert path.read_bytes() == before + b'{"a": 3}\n'


def test_decisions_after_a_torn_line_are_read(tmp_path):
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(b'{"step": 2, "acti')
    decision = Decision(step=3, action="stop", batch=3, by="user", reason="enough")
    Ledger(path).write([decision])
    assert [record["step"] for record in read_records(path)] == [3]
