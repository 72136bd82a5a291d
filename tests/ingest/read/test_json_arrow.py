"""JSON in its shapes, Arrow files and streams, bzip2 and xz."""

import bz2
import json
import lzma

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.ingest.read.json import _values
from tests.ingest.read.test_readers import LINES

ROWS = [{"text": f"row {number}", "n": number} for number in range(5)]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\ufeff" + "\n".join(json.dumps(row) for row in ROWS),
        json.dumps({"version": "1.1", "data": ROWS}),
    ],
)
def test_json_arrays_objects_and_lines(tmp_path, read, content):
    (tmp_path / "a.json").write_text(content)
    records, rejects = read("a.json")
    assert [record.values["text"] for record in records] == [f"row {n}" for n in range(5)] and rejects == []
    assert records[4].location == "a.json:5"


def test_one_object_is_one_record(tmp_path, read):
    (tmp_path / "a.json").write_text(json.dumps({"text": "x" * 300, "parts": ROWS}))
    assert [record.values["text"] for record in read("a.json")[0]] == ["x" * 300]


@pytest.mark.parametrize(
    ("tail", "reason"), [(', {"text": ', "invalid_json"), (" 5]", "invalid_json"), ("] x", "invalid_json")]
)
def test_damage_costs_the_rest_of_a_json_file(tmp_path, read, tail, reason):
    (tmp_path / "a.json").write_text(json.dumps(ROWS)[:-1] + tail)
    records, rejects = read("a.json")
    assert len(records) == 5 and rejects == [("a.json:6", reason)]


def test_values_that_are_no_objects_are_named(tmp_path, read):
    (tmp_path / "a.json").write_text('[{"text": "a"}, null, 12]')
    assert read("a.json")[1] == [("a.json:2", "not_an_object"), ("a.json:3", "not_an_object")]


class _Drip:
    """A stream that gives a few bytes at a time, so that every cut happens."""

    def __init__(self, data, size):
        self._data, self._size = data, size

    def read(self, _):
        piece, self._data = self._data[: self._size], self._data[self._size :]
        return piece


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.lists(VALUES), st.integers(1, 9))
def test_a_streamed_array_is_what_json_reads(values, size):
    data = json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert list(_values(_Drip(data, size))) == values


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_files_and_streams(tmp_path, read, kind):
    table = pa.Table.from_pylist(ROWS)
    if kind == "file":
        pyarrow.feather.write_feather(table, str(tmp_path / "a.arrow"), compression="zstd")
    else:
        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    records, rejects = read("a.arrow", fields=["text", "absent"])
    assert [dict(record.values) for record in records] == [{"text": f"row {n}"} for n in range(5)] and rejects == []


def test_a_cut_arrow_stream_keeps_the_rows_before(tmp_path, read):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for _ in range(3):
            writer.write_table(table)
    data = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(data[: len(data) - 100])
    records, rejects = read("a.arrow")
    assert len(records) == 10 and rejects == [("a.arrow:11", "corrupt_batch")]


def test_damaged_arrow_cannot_end_the_process(tmp_path, read):
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema({"text": pa.string()})) as writer,
    ):
        for _ in range(3):
            writer.write_batch(pa.record_batch({"text": ["some", "text", "caf?"]}))
    data = bytearray((tmp_path / "a.arrow").read_bytes())
    offsets = np.array([0, 4, 8, 12], np.int32).tobytes()
    first, second = data.index(offsets), data.index(offsets, data.index(offsets) + 1)
    data[second + 4 : second + 8] = (1 << 30).to_bytes(4, "little")
    data[data.index(b"caf?", first) + 3] = 0xE9
    (tmp_path / "a.arrow").write_bytes(data)
    records, rejects = read("a.arrow")
    assert [record.location for record in records] == [f"a.arrow:{n}" for n in (1, 2, 7, 8, 9)]
    assert rejects == [("a.arrow:3", "not_utf8"), ("a.arrow:4", "corrupt_batch")]


PACK = {"bz2": bz2.compress, "xz": lzma.compress}
NAMES = {"bz2": "bzip2", "xz": "xz"}


@pytest.mark.parametrize("suffix", PACK)
def test_bzip2_and_xz_of_several_streams(tmp_path, read, suffix):
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(PACK[suffix](LINES) * 2)
    assert len(read(f"a.jsonl.{suffix}")[0]) == 400


@pytest.mark.parametrize("suffix", PACK)
def test_damaged_bzip2_and_xz_are_named(tmp_path, read, suffix):
    whole = PACK[suffix](LINES)
    (tmp_path / f"cut.jsonl.{suffix}").write_bytes(whole + whole[:-30])
    (tmp_path / f"bad.jsonl.{suffix}").write_bytes(whole + whole[:20] + bytes(300))
    records, rejects = read(f"cut.jsonl.{suffix}")
    assert len(records) >= 200 and rejects[0][1] == f"truncated_{NAMES[suffix]}"
    assert read(f"bad.jsonl.{suffix}")[1][0][1] == f"corrupt_{NAMES[suffix]}"
