"""Crawls: pages of known types are read, everything else in the archive is named or no page."""

import gzip
import zlib

import pytest

from tests.ingest.extract.test_extraction import PAGE
from tests.ingest.made_files import pdf_of

HTML = PAGE.format(meta="", more="caf\u00e9")


def record(kind, block, **header):
    names = {name.replace("_", "-"): value for name, value in header.items()}
    fields = {"WARC-Type": kind, "Content-Type": "application/http; msgtype=response", **names}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"WARC/1.0\r\n{lines}Content-Length: {len(block)}\r\n\r\n".encode() + block + b"\r\n\r\n"


def answer(body, media="text/html", status="200 OK", **header):
    names = {name.replace("_", "-"): value for name, value in header.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Content-Type": media, **names}.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def chunked(body):
    pieces = [body[start : start + 100] for start in range(0, len(body), 100)]
    return b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in [*pieces, b""])


CRAWL = [
    record("warcinfo", b"software: test", Content_Type="application/warc-fields"),
    record("request", b"GET / HTTP/1.1\r\n\r\n"),
    record("response", answer(HTML.encode()), WARC_Target_URI="http://a.org/", WARC_Date="2026-01-02T03:04:05Z"),
    record("response", answer(b"gone", status="404 Not Found")),
    record(
        "response", answer(chunked(gzip.compress(HTML.encode())), Content_Encoding="gzip", Transfer_Encoding="chunked")
    ),
    record("response", answer(HTML.encode("latin-1"), "text/html; charset=ISO-8859-1")),
    record("response", answer(pdf_of([["from pdf"]]), "application/pdf")),
    record("response", answer(b"\x89PNG", "image/png")),
    record("conversion", b"plain text", Content_Type="text/plain"),
]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_pages_are_read_by_their_type(tmp_path, read, name):
    data = [gzip.compress(one) if name.endswith(".gz") else one for one in CRAWL]
    (tmp_path / name).write_bytes(b"".join(data))
    records, rejects = read(name)
    assert [record.location for record in records] == [f"{name}:{number}" for number in (3, 5, 6, 7, 9)]
    assert ["caf\u00e9" in record.values["text"] for record in records] == [True] * 3 + [False] * 2
    assert (records[0].meta["url"], records[0].meta["date"]) == ("http://a.org/", "2026-01-02T03:04:05Z")
    assert rejects == [(f"{name}:8", "unsupported_file")]


def test_a_cut_crawl_keeps_the_pages_before(tmp_path, read):
    data = b"".join(CRAWL[:5])
    (tmp_path / "a.warc").write_bytes(data[:-50])
    (tmp_path / "b.warc").write_bytes(data + b"noise\n")
    assert (len(read("a.warc")[0]), read("a.warc")[1]) == (1, [("a.warc:5", "truncated_warc")])
    assert (len(read("b.warc")[0]), read("b.warc")[1]) == (2, [("b.warc:6", "corrupt_archive")])


def test_a_page_that_is_a_bomb_costs_itself_only(tmp_path, read, monkeypatch):
    monkeypatch.setattr("deepen.ingest.read.warc._MAX_PAGE_BYTES", 10_000)
    bomb = answer(zlib.compress(bytes(1_000_000)), Content_Encoding="deflate")
    (tmp_path / "a.warc").write_bytes(record("response", bomb) + record("response", answer(HTML.encode())))
    records, rejects = read("a.warc")
    assert len(records) == 1 and rejects == [("a.warc:1", "archive_bomb")]
