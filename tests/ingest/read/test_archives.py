"""Archives are read member by member; what is hostile or damaged in them is refused by name."""

import gzip
import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepen.ingest.config import Extraction
from tests.ingest.made_files import pdf_of


def parquet_bytes():
    pq.write_table(pa.table({"text": ["from parquet"]}), sink := io.BytesIO())
    return sink.getvalue()


MEMBERS = {
    "b/lines.jsonl": b'{"text": "one"}\nbroken\n{"text": "two"}\n',
    "a.txt": b"plain",
    "deep/table.parquet": parquet_bytes(),
    "packed.txt.gz": gzip.compress(b"unpacked"),
    "paper.pdf": pdf_of([["from pdf"]]),
    ".hidden.txt": b"not read",
    "__MACOSX/a.txt": b"not read",
}


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


WRITERS = {"zip": write_zip, "tar.gz": write_tar, "tar.xz": lambda path, members: write_tar(path, members, "w:xz")}


@pytest.mark.parametrize("suffix", WRITERS)
def test_members_are_read_by_their_own_format(tmp_path, read, suffix):
    name = f"x.{suffix}"
    WRITERS[suffix](tmp_path / name, MEMBERS)
    records, rejects = read(name)
    found = {record.location: record.values["text"].strip() for record in records}
    expected = {"b/lines.jsonl:1": "one", "b/lines.jsonl:3": "two", "a.txt": "plain", "packed.txt.gz": "unpacked"}
    expected |= {"deep/table.parquet:1": "from parquet", "paper.pdf": "from pdf"}
    assert found == {f"{name}/{place}": text for place, text in expected.items()}
    assert rejects == [(f"{name}/b/lines.jsonl:2", "invalid_json")]


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_would_leave_the_archive_or_nest_is_refused(tmp_path, read, suffix):
    hostile = {"../../etc/cron.txt": b"x", "/abs.txt": b"x", "inner.zip": b"PK", "odd.bin": b"x", "fine.txt": b"fine"}
    WRITERS[suffix](tmp_path / f"x.{suffix}", hostile)
    records, rejects = read(f"x.{suffix}")
    assert [record.values["text"] for record in records] == ["fine"]
    reasons = sorted(reason for _, reason in rejects)
    assert reasons == ["nested_archive", "unsafe_member", "unsafe_member", "unsupported_file"]


@pytest.mark.parametrize("suffix", WRITERS)
def test_bombs_cost_a_reject_and_keep_the_lines_before(tmp_path, read, suffix):
    lines = b'{"text": "early"}\n' + b'{"text": "' + b"0" * (64 << 20) + b'"}\n'
    WRITERS[suffix](tmp_path / f"x.{suffix}", {"a.jsonl": lines})
    records, rejects = read(f"x.{suffix}", limits=Extraction(expansion_MB=1))
    assert [record.values["text"] for record in records] == ["early"]
    assert rejects[0] == (f"x.{suffix}/a.jsonl:2", "archive_bomb")


def test_links_in_a_tar_are_refused(tmp_path, read):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("passwd.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    assert read("x.tar") == ([], [("x.tar/passwd.txt", "unsupported_member")])


def test_two_members_of_one_name_do_not_share_an_id(tmp_path, read):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for data in (b"first", b"second"):
            info = tarfile.TarInfo("a.txt")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    records, rejects = read("x.tar")
    assert len(records) == 1 and rejects == [("x.tar/a.txt", "duplicate_member")]


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_damaged_archives_are_named(tmp_path, read, suffix):
    WRITERS[suffix](tmp_path / f"x.{suffix}", {f"{n}.txt": bytes([65 + n]) * 100_000 for n in range(9)})
    data = (tmp_path / f"x.{suffix}").read_bytes()
    (tmp_path / f"x.{suffix}").write_bytes(data[: len(data) // 2])
    _, rejects = read(f"x.{suffix}")
    assert {reason for _, reason in rejects} <= {"corrupt_archive", "truncated_gzip"} and rejects


def test_a_damaged_member_costs_itself_only(tmp_path, read):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in "abc":
            archive.writestr(f"{name}.txt", name * 1000)
    data = bytearray((tmp_path / "x.zip").read_bytes())
    place = data.index(b"bbbb")
    data[place + 10 : place + 20] = b"X" * 10
    (tmp_path / "x.zip").write_bytes(data)
    records, rejects = read("x.zip")
    assert [record.location for record in records] == ["x.zip/a.txt", "x.zip/c.txt"]
    assert rejects == [("x.zip/b.txt", "corrupt_archive")]


def test_an_archive_gives_the_same_in_a_run(tmp_path, run, documents, same_bytes):
    (tmp_path / "in").mkdir()
    for number in range(3):
        members = {f"{n}.jsonl": json.dumps({"body": f"{number} {n}"}).encode() for n in range(3)}
        WRITERS["zip" if number % 2 else "tar.gz"](
            tmp_path / f"in/{number}.{'zip' if number % 2 else 'tar.gz'}", members
        )
    run({"path": "in"}, out="one")
    run({"path": "in"}, out="two", workers=2)
    assert len(documents("one")) == 9 and same_bytes("one", "two")
