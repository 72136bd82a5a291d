"""Where the text of a record is: guessed, named, inside objects; and tables that have none."""

import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepen.errors import SourceError
from deepen.formats.files.records import read_records

LONG = "A sentence of a note that is long enough to weigh more than a small table. " * 10


def write_lines(path, *records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_table_without_text_among_texts_is_left_out_by_name(tmp_path, run, texts, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text(LONG)
    (tmp_path / "in/b.md").write_text(LONG)
    (tmp_path / "in/numbers.csv").write_text("year,count\n1990,2\n1991,3\n")
    counts = run({"path": "in"}).counts["sources"]["s0"]
    assert texts() == [LONG, LONG]
    size = (tmp_path / "in/numbers.csv").stat().st_size
    assert counts["left_out"] == {"files": 1, "bytes": size, "of_files": 3, "of_bytes": 2 * len(LONG) + size}
    (reject,) = read_records(tmp_path / "out/rejected.jsonl")
    assert (reject["location"], reject["reason"], reject["records"]) == ("numbers.csv", "no_text_field", 0)
    assert "`count`, `year`" in reject["detail"]
    assert "1 tables without a text were left out" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "zip"])
def test_any_table_without_text_is_left_out_beside_tables_with_text(tmp_path, run, texts, suffix):
    write_lines(tmp_path / "in/b.jsonl", *({"text": LONG} for _ in range(5)))
    write_lines(tmp_path / "in/c.jsonl", {"text": LONG})
    numbers = [{"number": number} for number in range(150)]  # more than are looked at to guess
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(numbers), tmp_path / "in/a.parquet")
    else:
        write_lines(tmp_path / "in/a.jsonl", *numbers)
    if suffix == "zip":
        with zipfile.ZipFile(tmp_path / "in/a.zip", "w") as archive:
            archive.write(tmp_path / "in/a.jsonl", "x.jsonl")
            archive.writestr("y.txt", "text")
        (tmp_path / "in/a.jsonl").unlink()
    counts = run({"path": "in"}).counts["sources"]["s0"]
    assert len(texts()) == (7 if suffix == "zip" else 6) and counts["left_out"]["files"] == 1


def test_most_of_a_source_is_not_left_out(tmp_path, run):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/readme.txt").write_text("about the table")
    (tmp_path / "in/numbers.csv").write_text("comment,count\n" + "a real text,2\n" * 100)
    with pytest.raises(SourceError, match="tables without a text") as caught:
        run({"path": "in"})
    assert "numbers.csv" in str(caught.value)


def test_records_before_the_first_with_text_are_counted(tmp_path, run):
    write_lines(tmp_path / "in/a.jsonl", {"text": "first"})
    write_lines(tmp_path / "in/b.jsonl", {"n": 1}, {"n": 2}, {"text": "third"}, {"n": 4})
    counts = run({"path": "in"}, max_rejected=0.7).counts["sources"]["s0"]
    assert counts["documents"] == 2 and counts["rejected"] == {"no_text_field": 3} and "left_out" not in counts


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (["a", "b"], r"`text` is a list of texts \(`text_from: \[list\]` takes it\)"),
        ([1], "`text` is a list"),
        ({"en": "a"}, r"`text` is an object with `text\.en`"),
        (5, "`text` is a int"),
    ],
)
def test_a_text_field_of_another_kind_is_called_what_it_is(tmp_path, run, value, told):
    write_lines(tmp_path / "a.jsonl", {"text": value})
    with pytest.raises(SourceError, match=told):
        run({"path": "a.jsonl"})
    with pytest.raises(SourceError, match=f"(?s)text_not_string.*{told}"):
        run({"path": "a.jsonl", "text": "text"}, out="named")


@pytest.mark.parametrize("text", [None, "text"])
def test_lists_and_bytes_are_texts_by_consent(tmp_path, run, texts, text):
    write_lines(tmp_path / "a.jsonl", {"text": ["one", "two"]})
    table = pa.table({"text": pa.array(["gr\u00fcn".encode(), b"caf\xe9", b"x"], pa.binary())})
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(SourceError, match=r"is bytes \(`text_from: \[bytes\]`"):
        run({"path": "b.parquet", "text": text}, out="refused")
    sources = [{"path": "a.jsonl", "text_from": ["list"]}, {"path": "b.parquet", "text_from": ["bytes"]}]
    counts = run(*({**source, "text": text} for source in sources), max_rejected=0.5).counts["sources"]
    assert texts() == ["one\ntwo", "gr\u00fcn", "x"] and counts["s1"]["rejected"] == {"not_utf8": 1}


def test_text_inside_objects_is_found_by_its_path(tmp_path, run, texts):
    rows = [{"data": {"text": "one"}, "n": 1}, {"data": None, "n": 2}]
    write_lines(tmp_path / "in/a.jsonl", *rows, {"data.text": "two"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/b.parquet")
    counts = run({"path": "in", "text": "data.text"}, max_rejected=0.5).counts["sources"]["s0"]
    assert texts() == ["one", "two", "one"] and counts["rejected"] == {"no_text_field": 2}
