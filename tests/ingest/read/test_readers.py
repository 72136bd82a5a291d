"""Each reader gives every good record and names every bad one."""

import gzip
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deepen.ingest.files import InputFile, format_of, list_files
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Record, lines_of
from deepen.ingest.read.table import READERS


def read(path, fields=None):
    file = InputFile(str(path), path.name, format_of(path.name), path.stat().st_size)
    found = list(READERS[file.format](file, Reading(fields=fields)))
    records = [record for record in found if isinstance(record, Record)]
    rejects = [(reject.location, reject.reason) for reject in found if not isinstance(reject, Record)]
    return records, rejects


def texts(records):
    return [record.values["text"] for record in records]


LINES = b"".join(json.dumps({"text": f"line {number}" * 50}).encode() + b"\n" for number in range(200))


@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_a_text_file_is_one_record_as_it_is(tmp_path, name):
    (tmp_path / name).write_bytes("\ufeffone\r\ntwo\u2028three\n".encode())
    assert texts(read(tmp_path / name)[0]) == ["one\r\ntwo\u2028three\n"]


def test_damaged_utf8_is_rejected_with_the_position(tmp_path):
    (tmp_path / "a.txt").write_bytes("déjà vu, caf".encode() + b"\xe9")
    file = InputFile(str(tmp_path / "a.txt"), "a.txt", "text", 4)
    (reject,) = READERS["text"](file, Reading())
    assert (reject.reason, reject.detail) == ("not_utf8", "byte 0xe9 at position 14")


def test_jsonl_splits_at_newlines_only(tmp_path):
    text = "a\u2028b\x85c\x0bd\x1ce"
    line = json.dumps({"text": text}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(f"\ufeff{line}\r\n\n  \n{line}".encode())
    records, rejects = read(tmp_path / "a.jsonl")
    assert texts(records) == [text, text] and rejects == []
    assert [record.location for record in records] == ["a.jsonl:1", "a.jsonl:4"]


@given(st.lists(st.binary(max_size=20)))
def test_lines_are_what_split_gives(pieces):
    data = b"x" + b"\n".join(pieces)
    expected = [
        line.removesuffix(b"\r") for line in (data.split(b"\n") if not data.endswith(b"\n") else data.split(b"\n")[:-1])
    ]
    assert [line for _, line in lines_of(io.BytesIO(data))] == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "half', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'["text"]', "not_an_object"),
        (b'{"text": "\xff"}', "not_utf8"),
    ],
)
def test_a_bad_json_line_costs_itself_only(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    records, rejects = read(tmp_path / "a.jsonl")
    assert texts(records) == ["before", "after"]
    assert rejects == [("a.jsonl:2", reason)]


def test_a_line_of_absurd_length_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("deepen.ingest.read.records.MAX_RECORD_BYTES", 50)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "' + "x" * 170 + '"}\n{"text": "b"}\n')
    records, rejects = read(tmp_path / "a.jsonl")
    assert texts(records) == ["a", "b"] and rejects == [("a.jsonl:2", "record_too_long")]


def pack(data, suffix):
    return gzip.compress(data) if suffix == "gz" else zstandard.compress(data)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_packed_files_of_several_streams_are_read_whole(tmp_path, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(pack(LINES, suffix) + pack(LINES, suffix))
    assert len(read(path)[0]) == 400


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_packed_file_may_have_been_unpacked_already(tmp_path, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(LINES)
    assert len(read(path)[0]) == 200


@pytest.mark.parametrize(("suffix", "reason"), [("gz", "truncated_gzip"), ("zst", "truncated_zstd")])
def test_a_truncated_stream_keeps_the_lines_before(tmp_path, suffix, reason):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(pack(LINES, suffix) + pack(LINES, suffix)[:-30])
    records, rejects = read(path)
    assert 200 <= len(records) < 400
    assert rejects == [(f"a.jsonl.{suffix}:{len(records) + 1}", reason)]


@pytest.mark.parametrize(("suffix", "reason"), [("gz", "corrupt_gzip"), ("zst", "corrupt_zstd")])
def test_a_corrupt_stream_is_rejected(tmp_path, suffix, reason):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(pack(LINES, suffix) + pack(LINES, suffix)[:4] + b"\xff" * 300)
    records, rejects = read(path)
    assert len(records) == 200 and rejects[0][1] == reason


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_with_quotes_newlines_and_long_cells(tmp_path, delimiter):
    rows = [["id", "text"], ["1", 'say "hi"' + delimiter + "\nnew line"], ["2", "x" * 300_000]]
    quoted = ['"' + cell.replace('"', '""') + '"' for row in rows for cell in row]
    lines = [delimiter.join(quoted[number : number + 2]) for number in (0, 2, 4)]
    (tmp_path / "a.csv").write_text("\ufeff" + "\r\n".join(lines))
    records, rejects = read(tmp_path / "a.csv")
    assert texts(records) == [rows[1][1], rows[2][1]] and rejects == []
    assert [record.location for record in records] == ["a.csv:2", "a.csv:4"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('"id, of row, in db, x";"text"\n"1";"a, b"\n2;c\n', ["a, b", "c"]),
        ('"id\n, in, two, lines, ";text\n1;a\n', ["a"]),
        ("id|text\n1|a, b, c\n", ["a, b, c"]),
        ("a,b;text\n1,2;x\n1;y\n,;z, z\n", ["x", "y", "z, z"]),
        ("text\nwell, yes\nno; maybe\nplain\n", ["well, yes", "no; maybe", "plain"]),
        ('id,text\n1,"a;b|c\td"\n2,"a;b\n;c"\n', ["a;b|c\td", "a;b\n;c"]),
        ("id,text\n" + "1,x;y;z\n" * 300, ["x;y;z"] * 300),
    ],
)
def test_the_delimiter_is_what_cuts_rows_like_the_header(tmp_path, lines, expected):
    (tmp_path / "a.csv").write_text(lines)
    assert texts(read(tmp_path / "a.csv")[0]) == expected


def test_the_delimiter_can_be_named(tmp_path, run):
    (tmp_path / "a.csv").write_text("id:text\n1:a, b; c\n")
    assert run({"path": "a.csv", "delimiter": ":"}).counts["sources"]["s0"]["documents"] == 1
    for wrong in ('"', "ab", ""):
        with pytest.raises(ValidationError, match="delimiter"):
            run({"path": "a.csv", "delimiter": wrong}, out=f"wrong{len(wrong)}")


def test_damage_behind_the_first_rows_of_a_csv_is_found_there(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"id,text\n" + b"1,abc\n" * 20) + gzip.compress(b"2,def\n" * 20)[:12])
    records, rejects = read(path)
    assert texts(records)[:20] == ["abc"] * 20 and rejects[0][1] == "truncated_gzip"


def test_an_open_quote_does_not_swallow_the_rest(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,one\n2,"open\n3,three\n4,"a ""quoted"" word"\n5,five\n')
    records, rejects = read(tmp_path / "a.csv")
    assert texts(records) == ["one", "three", 'a "quoted" word', "five"]
    assert rejects == [("a.csv:3", "invalid_csv")]


def test_a_ragged_or_undecodable_row_costs_itself_only(tmp_path):
    (tmp_path / "a.csv").write_bytes("id,text\n1,a,b\n2\n3,caf\xe9\n\n4,thé\n".encode().replace(b"caf\xc3", b"caf"))
    records, rejects = read(tmp_path / "a.csv")
    assert texts(records) == ["thé"]
    assert rejects == [("a.csv:2", "ragged_row"), ("a.csv:3", "ragged_row"), ("a.csv:4", "not_utf8")]


def test_a_csv_full_of_open_quotes_ends_with_a_reject(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + '"open ""\n' * 300)
    records, rejects = read(tmp_path / "a.csv")
    assert len(records) + len(rejects) >= 100 and rejects[-1][1] == "invalid_csv"


def test_a_tsv_may_hold_commas(tmp_path):
    (tmp_path / "a.tsv").write_text("text\nwell, yes\n")
    assert texts(read(tmp_path / "a.tsv")[0]) == ["well, yes"]


def write_parquet(path, rows=300, group=100):
    pq.write_table(
        pa.table({"text": [f"row {row}" for row in range(rows)], "n": range(rows)}), path, row_group_size=group
    )


def test_parquet_rows_are_numbered_and_columns_selected(tmp_path):
    write_parquet(tmp_path / "a.parquet")
    records, rejects = read(tmp_path / "a.parquet", ["text", "absent"])
    assert len(records) == 300 and rejects == []
    assert (records[120].location, records[120].values) == ("a.parquet:121", {"text": "row 120"})


def test_a_damaged_row_group_costs_itself_only(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path)
    offset = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    path.write_bytes(data)
    records, rejects = read(path, ["text"])
    assert [record.values["text"] for record in records] == [f"row {row}" for row in [*range(100), *range(200, 300)]]
    assert rejects == [("a.parquet:101", "corrupt_row_group")]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv", "a.txt"])
def test_a_file_that_cannot_be_opened_is_rejected(tmp_path, name):
    if name == "a.parquet":
        (tmp_path / name).write_bytes(b"PAR1 but no more")
    else:
        (tmp_path / name).mkdir()
    assert [reason for _, reason in read(tmp_path / name)[1]] == ["unreadable_file"]


def test_bytes_that_are_no_utf8_in_parquet_cost_their_row(tmp_path):
    data = pa.array([b"good", b"caf\xe9", b"also good"])
    column = pa.Array.from_buffers(pa.string(), 3, data.buffers())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    records, rejects = read(tmp_path / "a.parquet")
    assert texts(records) == ["good", "also good"] and rejects == [("a.parquet:2", "not_utf8")]


def test_a_text_file_of_absurd_size_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("deepen.ingest.streams.MAX_RECORD_BYTES", 10)
    (tmp_path / "a.txt").write_text("x" * 11)
    assert read(tmp_path / "a.txt") == ([], [("a.txt", "record_too_long")])


@pytest.mark.skipif("DEEPEN_TEST_DATA" not in os.environ, reason="needs real messy files")
@pytest.mark.parametrize(("folder", "file_format"), [("csv", "auto"), ("jsonl", "auto"), ("text", "text")])
def test_real_messy_files_give_records_or_reasons(folder, file_format):
    files = list_files(f"{os.environ['DEEPEN_TEST_DATA']}/messy_inputs/{folder}", file_format)
    found = [list(READERS[file.format](file, Reading())) for file in files]
    assert len(files) > 3 and sum(map(len, found)) >= len(files)
    assert all(
        item.location.startswith(file.location) for file, items in zip(files, found, strict=True) for item in items
    )
