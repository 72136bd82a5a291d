"""The stage: parts, counts, limits, errors that name the source, reruns."""

import gzip
import json

import pytest

from deepen.errors import SourceError
from deepen.formats.documents.documents import document_id
from deepen.formats.files.atomic import damage
from deepen.formats.files.records import read_records
from deepen.formats.manifest import InputEntry, open_artifact


def write_jsonl(path, number, prefix="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": f"{prefix} {i}", "kind": f"k{i % 2}"}) + "\n" for i in range(number)))


def test_documents_carry_their_origin(tmp_path, run, documents):
    write_jsonl(tmp_path / "in/a/b.jsonl", 2)
    run({"path": "in", "text": "text", "category": {"field": "kind"}, "licence": "CC0", "language": "en"})
    second = documents()[1]
    assert second.meta["location"] == "a/b.jsonl:2"
    assert second.id == document_id("s0", "a/b.jsonl:2")
    assert (second.category, second.licence, second.language, second.source) == ("k1", "CC0", "en", "s0")


def test_counts_and_manifest_describe_the_files(tmp_path, run):
    write_jsonl(tmp_path / "in/a.jsonl", 3, prefix="é")
    manifest = run({"path": "in", "text": "text"})
    assert manifest.counts["sources"]["s0"] == {
        "role": "domain", "licence": None, "files": 1, "documents": 3, "bytes": 12, "rejected": {},
    }  # fmt: skip
    assert [entry.path for entry in manifest.files] == ["documents/s0-00000.parquet", "rejected.jsonl"]
    assert [damage(entry, tmp_path / "out") for entry in manifest.files] == [None, None]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "documents",
        "manifest.json",
        "rejected.jsonl",
    ]


@pytest.mark.parametrize("damaged", [None, "documents/s0-00000.parquet", "rejected.jsonl"])
def test_an_unchanged_source_is_taken_over_unless_a_file_of_it_is_damaged(tmp_path, run, capsys, same_bytes, damaged):
    write_jsonl(tmp_path / "in/a.jsonl", 3)
    with (tmp_path / "in/a.jsonl").open("a") as file:
        file.write("no json\n")
    source = {"path": "in", "text": "text"}
    raw = {"source:s0": InputEntry(path="in", fingerprint="one")}
    settings = {"job": {"raw_inputs": raw}, "max_rejected": 0.5}
    run(source, **settings)
    run(source, out="fresh", **settings)
    if damaged is not None:
        path = tmp_path / "out" / damaged
        path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    capsys.readouterr()
    run(source, out="again", **settings | {"job": {"raw_inputs": raw, "previous": open_artifact(tmp_path / "out")}})
    assert ("is as it was" in capsys.readouterr().err) == (damaged is None)
    assert same_bytes("again", "fresh")


@pytest.mark.parametrize("pattern", ["in", "in/**/*.jsonl", "in/**/*.*"])
def test_folder_and_glob_name_documents_alike(tmp_path, run, documents, pattern):
    write_jsonl(tmp_path / "in/x.jsonl", 1)
    write_jsonl(tmp_path / "in/deep/er/y.jsonl", 1)
    write_jsonl(tmp_path / "in/.hidden/z.jsonl", 1)
    run({"path": pattern, "text": "text"})
    assert [document.meta["location"] for document in documents()] == ["deep/er/y.jsonl:1", "x.jsonl:1"]


def test_the_text_field_is_guessed_and_said(tmp_path, run, texts, capsys):
    (tmp_path / "a.jsonl").write_text('{"title": "t", "body": "the body"}\n')
    run({"path": "a.jsonl"})
    assert texts() == ["the body"]
    assert "field `body`" in capsys.readouterr().err


def test_a_text_field_that_cannot_be_guessed_is_an_error_with_the_names(tmp_path, run):
    (tmp_path / "a.jsonl").write_text('{"title": "t", "inhalt": "x"}\n')
    with pytest.raises(SourceError, match="`s0`.*`inhalt`"):
        run({"path": "a.jsonl"})
    assert list((tmp_path / "out").iterdir()) == []  # nothing was made, so nothing has to be redone


@pytest.mark.parametrize("workers", [1, 2])
def test_limit_counts_through_files_in_order(tmp_path, run, texts, workers):
    for name in "abc":
        write_jsonl(tmp_path / f"in/{name}.jsonl", 4, prefix=name)
    run({"path": "in", "limit": "6 documents"}, {"path": "in/c.jsonl"}, workers=workers)
    assert texts(source="s0") == ["a 0", "a 1", "a 2", "a 3", "b 0", "b 1"]


def test_rejects_are_counted_and_written_in_order(tmp_path, run, texts):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.jsonl").write_bytes(b'{"text": "one"}\nnot json\n{"text": "two"}\n\n{"text": "caf\xe9"}\n')
    (tmp_path / "in/a.txt").write_text("   \n")
    manifest = run({"path": "in"}, max_rejected=0.9)
    assert texts() == ["one", "two"]
    assert manifest.counts["sources"]["s0"]["rejected"] == {"invalid_json": 1, "not_utf8": 1}
    assert manifest.counts["sources"]["s0"]["empty_files"] == 1
    rejects = [(r["location"], r["reason"]) for r in read_records(tmp_path / "out/rejected.jsonl")]
    assert rejects == [("b.jsonl:2", "invalid_json"), ("b.jsonl:5", "not_utf8")]


def test_too_many_rejects_stop_with_a_table_of_reasons(tmp_path, run):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nbroken\n{"text": ""}\n')
    with pytest.raises(SourceError, match=r"`s0`: 2 of 3 records") as caught:
        run({"path": "a.jsonl"})
    assert "invalid_json" in str(caught.value) and "a.jsonl:2" in str(caught.value)
    assert not (tmp_path / "out/manifest.json").exists()


def test_every_unusable_source_is_named_at_once(tmp_path, run):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "good.txt").write_text("good")
    with pytest.raises(SourceError) as caught:
        run({"path": "missing"}, {"path": "good.txt"}, {"path": "empty.txt"})
    assert "`s0` has no files" in str(caught.value) and "`s2` has no text" in str(caught.value)
    assert "`s1`" not in str(caught.value)


def test_files_that_no_reader_knows_are_rejects(tmp_path, run):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("text")
    (tmp_path / "in/b.tiff").write_bytes(b"II*")
    manifest = run({"path": "in"}, max_rejected=0.5)
    assert manifest.counts["sources"]["s0"]["rejected"] == {"unsupported_file": 1}
    assert run({"path": "in", "format": "text"}, out="forced").counts["sources"]["s0"]["documents"] == 2


@pytest.fixture
def many_files(tmp_path, monkeypatch):
    """Five files that make five parts."""
    monkeypatch.setattr("deepen.ingest.stage._PART_BYTES", 100)
    for number in range(5):
        write_jsonl(tmp_path / f"in/{number}.jsonl", 5)
    (tmp_path / "in/0.jsonl").write_text('{"text": "fine"}\nbroken\n')
    return {"path": "in", "text": "text"}


def test_any_number_of_workers_gives_the_same_bytes(run, many_files, same_bytes):
    run(many_files, out="one")
    run(many_files, out="two", workers=2)
    assert same_bytes("one", "two")


def test_a_rerun_after_a_kill_gives_the_same_bytes(tmp_path, run, many_files, same_bytes, monkeypatch):
    run(many_files, out="whole")
    with monkeypatch.context() as patch:
        patch.setattr("deepen.ingest.stage.write_records", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(many_files, out="killed")
    (tmp_path / "killed/ledger/00002.json").unlink()
    (tmp_path / "killed/documents/s0-00002.parquet.tmp").write_bytes(b"half")
    (tmp_path / "killed/documents/s0-00002.parquet").unlink()
    run(many_files, out="killed")
    assert same_bytes("whole", "killed")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ('{"body": "x"}', "no_text_field"),
        ('{"text": null}', "empty_text"),
        ('{"text": 5}', "text_not_string"),
        ('{"text": "\\ud800"}', "invalid_unicode"),
    ],
)
def test_records_without_usable_text_are_named(tmp_path, run, record, reason):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine", "id": "\\ud800"}}\n{record}\n')
    manifest = run({"path": "a.jsonl", "text": "text"}, max_rejected=0.5)
    assert manifest.counts["sources"]["s0"]["rejected"] == {reason: 1}


def test_files_without_records_and_marks_of_other_programs_lose_nothing(tmp_path, run):
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in/a.jsonl", 5)
    (tmp_path / "in/b.jsonl").write_text("\n")
    (tmp_path / "in/c.csv").write_text("id,text\n")
    for name in ("_SUCCESS", "part-0.jsonl", "empty.parquet", "empty.pdf", "empty.zip", "a.jsonl.crc", "_metadata"):
        (tmp_path / "in" / name).write_bytes(b"")
    (tmp_path / "in/x.csv.crc").write_bytes(b"crc\0\0")
    (tmp_path / "in/none.jsonl.gz").write_bytes(gzip.compress(b""))
    counts = run({"path": "in"}, max_rejected=0, max_lost=0).counts["sources"]["s0"]
    assert (counts["documents"], counts["rejected"], counts["empty_files"]) == (5, {}, 11)


def test_a_source_of_empty_files_alone_has_no_text(tmp_path, run):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text("")
    with pytest.raises(SourceError, match="has no text: 1 files.*1 files empty"):
        run({"path": "in"})


@pytest.mark.parametrize(("limit", "number"), [("12 bytes", 2), ("13 bytes", 3), ("4 tokens", 3), ("3 tokens", 2)])
def test_the_document_that_reaches_a_limit_is_the_last(tmp_path, run, texts, limit, number):
    write_jsonl(tmp_path / "a.jsonl", 5)  # of six bytes each
    run({"path": "a.jsonl", "limit": limit})
    assert len(texts()) == number
