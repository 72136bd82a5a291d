"""Damaged files: what they may hide is unknown, so they are counted, named and bounded apart from bad records."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from deepen.errors import SourceError
from deepen.formats.files.records import read_records
from deepen.ingest.as_documents import Contents
from deepen.ingest.config import Source
from deepen.ingest.files import list_files
from deepen.ingest.read.documents import read_documents
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Reject, Tally

RANDOM = random.Random(0)
LINES = b"".join(
    json.dumps({"text": "".join(RANDOM.choices("abcdefghijklmnop ", k=400))}).encode() + b"\n" for _ in range(500)
)
PACK = {"gz": gzip.compress, "zst": zstandard.compress, "bz2": bz2.compress, "xz": lzma.compress}
REASONS = {"gz": "truncated_gzip", "zst": "truncated_zstd", "bz2": "truncated_bzip2", "xz": "truncated_xz"}


def write_good(folder, number):
    folder.mkdir(exist_ok=True)
    for name in range(number):
        (folder / f"good-{name}.jsonl").write_bytes(LINES)


def losses(tmp_path, out="out"):
    return [record for record in read_records(tmp_path / out / "rejected.jsonl") if record.get("loss") == "file"]


@pytest.mark.parametrize("suffix", PACK)
def test_a_truncated_file_stops_the_stage_however_few_records_it_gave(tmp_path, run, suffix):
    packed = PACK[suffix](LINES * 3)
    (tmp_path / "in").mkdir()
    path = tmp_path / f"in/a.jsonl.{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    (tmp_path / "in/b.jsonl").write_bytes(LINES)
    with pytest.raises(SourceError, match="1 of 2 files are damaged") as caught:
        run({"path": "in", "text": "text"})
    assert REASONS[suffix] in str(caught.value) and f"a.jsonl.{suffix}" in str(caught.value)
    assert "ingest.max_lost" in str(caught.value.hint)
    counts = run({"path": "in", "text": "text"}, out="allowed", max_lost=0.9).counts["sources"]["s0"]
    size = path.stat().st_size
    assert counts["lost"] == {"files": 1, "bytes": size, "of_files": 2, "of_bytes": size + len(LINES)}
    (loss,) = losses(tmp_path, "allowed")
    assert (loss["reason"], loss["bytes_not_read"]) == (REASONS[suffix], size)


def test_one_small_damaged_file_among_many_is_allowed_and_named(tmp_path, run):
    write_good(tmp_path / "in", 24)
    (tmp_path / "in/a.jsonl.gz").write_bytes(gzip.compress(LINES)[:2000])
    counts = run({"path": "in", "text": "text"}).counts["sources"]["s0"]
    assert counts["lost"]["files"] == 1 and counts["rejected"] == {"truncated_gzip": 1}


def test_one_large_damaged_file_among_many_is_bounded_by_its_bytes(tmp_path, run):
    write_good(tmp_path / "in", 24)
    (tmp_path / "in/a.jsonl.gz").write_bytes(gzip.compress(LINES * 100)[:-20])
    with pytest.raises(SourceError, match="1 of 25 files are damaged"):
        run({"path": "in", "text": "text"})


def test_bytes_behind_the_damage_are_those_not_read(tmp_path, run):
    write_good(tmp_path / "in", 1)
    packed = bytearray(zstandard.compress(LINES) * 10)
    middle = len(packed) // 2
    packed[middle : middle + 300] = b"\xff" * 300
    (tmp_path / "in/a.jsonl.zst").write_bytes(packed)
    run({"path": "in", "text": "text"}, max_lost=1.0)
    (loss,) = losses(tmp_path)
    assert loss["reason"] == "corrupt_zstd" and 0.4 < loss["bytes_not_read"] / len(packed) < 0.6


def damaged_zip():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.jsonl", LINES)
        archive.writestr("b.jsonl", LINES)
    data = bytearray(stream.getvalue())
    data[1000] ^= 1  # inside the first member: its check sum is wrong
    return bytes(data)


def damaged_tar():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("a.jsonl", "b.jsonl"):
            member = tarfile.TarInfo(name)
            member.size = len(LINES)
            archive.addfile(member, io.BytesIO(LINES))
    return stream.getvalue()[: len(LINES) + 5000]


def damaged_warc():
    page = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: 500\r\n\r\n"
    return (page + b"text " * 100 + b"\r\n\r\n") * 3 + page + b"cut"


def damaged_parquet():
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"]}), stream)
    return stream.getvalue()[:-20]


def damaged_arrow():
    stream = io.BytesIO()
    table = pa.table({"text": [str(number) * 100 for number in range(1000)]})
    with pa.ipc.new_stream(stream, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=100):
            writer.write_batch(batch)
    return stream.getvalue()[: stream.tell() // 2]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("x.zip", damaged_zip), ("x.tar", damaged_tar), ("x.warc", damaged_warc), ("x.parquet", damaged_parquet),
        ("x.arrow", damaged_arrow), ("x.json", lambda: b'[{"text": "a"}, {"text": '),
    ],
)  # fmt: skip
def test_every_container_that_is_damaged_is_a_lost_file(tmp_path, run, name, make):
    write_good(tmp_path / "in", 3)
    (tmp_path / "in" / name).write_bytes(make())
    with pytest.raises(SourceError, match="files are damaged"):
        run({"path": "in", "text": "text"})
    counts = run({"path": "in", "text": "text"}, out="allowed", max_lost=1.0).counts["sources"]["s0"]
    found = losses(tmp_path, "allowed")
    assert counts["lost"]["files"] == len(found) and counts["lost"]["bytes"] > 0
    assert all(loss["location"].startswith(name) for loss in found)
    assert len(found) == (2 if name == "x.tar" else 1)  # the member that is cut, and what follows in the archive


def found_in(file):
    how = Reading()
    contents = Contents("text")
    source = Source(name="s", role="domain", path="unused")
    return [one for one in read_documents(source, [file], contents, how) if isinstance(one, Reject)], how.tally


def test_a_file_that_changes_or_vanishes_while_it_is_read_is_a_lost_file(tmp_path):
    write_good(tmp_path / "in", 1)
    (file,) = list_files(str(tmp_path / "in"))
    assert found_in(file) == ([], Tally(files=1, bytes=file.num_bytes))
    with Path(file.path).open("ab") as growing:
        growing.write(LINES)
    (reject,), tally = found_in(file)
    assert (reject.reason, tally.lost_files) == ("changed_while_reading", 1)
    Path(file.path).unlink()
    (reject,), tally = found_in(file)
    assert (reject.reason, tally.lost_files, tally.lost_bytes) == ("unreadable_file", 1, file.num_bytes)


def test_names_of_any_bytes_and_links_to_nothing_are_read_or_named(tmp_path, run, documents):
    write_good(tmp_path / "in", 1)
    for name in (b"new\nline.jsonl", b"caf\xe9.jsonl"):
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(LINES)
    (tmp_path / "in/dangling.jsonl").symlink_to("nowhere")
    (tmp_path / "in/loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "in/around").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "in/pipe.jsonl")
    counts = run({"path": "in", "text": "text"}, max_lost=1.0).counts["sources"]["s0"]
    assert counts["documents"] == 3 * 500 and counts["rejected"] == {"unreadable_file": 2}
    assert {one.meta["location"].rpartition(":")[0] for one in documents()} == {
        "good-0.jsonl", "new\nline.jsonl", "caf\\xe9.jsonl",
    }  # fmt: skip


def test_members_of_archives_count_as_files(tmp_path, run):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.jsonl.gz", gzip.compress(LINES)[:500])
        for number in range(30):
            archive.writestr(f"{number}.jsonl", LINES)
    (tmp_path / "a.zip").write_bytes(stream.getvalue())
    counts = run({"path": "a.zip", "text": "text"}).counts["sources"]["s0"]
    assert (counts["lost"]["files"], counts["lost"]["of_files"], counts["lost"]["bytes"]) == (1, 31, 500)
