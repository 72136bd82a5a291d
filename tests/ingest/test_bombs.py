"""Files that expand far beyond their size cost a reject, and neither memory nor time."""

import bz2
import gzip
import io
import lzma
import subprocess
import sys
import zipfile

import docx
import openpyxl
import pptx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from deepen.ingest.config import Extraction
from deepen.ingest.extract.pdf import join_pages

EARLY = b'{"text": "early"}\n'
ZEROS = b"0" * (16 << 20)
PACK = {"gz": gzip.compress, "zst": zstandard.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_packed_file_may_not_expand_without_bound(tmp_path, run, suffix, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.jsonl").write_bytes(EARLY * 50)
    (tmp_path / f"in/{name}.{suffix}").write_bytes(PACK[suffix](EARLY) + PACK[suffix](ZEROS))
    settings = {"extraction": {"expansion_MB": 1}, "max_lost": 1.0}
    counts = run({"path": "in", "text": "text"}, **settings).counts["sources"]["s0"]
    assert counts["rejected"]["archive_bomb"] == 1 and counts["lost"]["files"] == 1
    allowed = {"extraction": {"expansion_MB": 1, "expansion": 1_000_000}, "max_rejected": 0.9}
    assert "lost" not in run({"path": "in", "text": "text"}, out="allowed", **allowed).counts["sources"]["s0"]


def test_a_packed_member_of_an_archive_is_bounded_as_well(tmp_path, read):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl.gz", gzip.compress(EARLY + ZEROS))
    records, rejects = read("a.zip", limits=Extraction(expansion_MB=1))
    assert len(records) == 1 and rejects == [("a.zip/a.jsonl.gz:2", "archive_bomb")]


def test_a_row_group_that_expands_too_far_is_not_read(tmp_path, read):
    table = pa.table({"text": ["0" * (2 << 20)], "n": [1]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    limits = Extraction(expansion_MB=1)
    assert read("a.parquet", limits=limits, fields=["text"]) == ([], [("a.parquet:1", "archive_bomb")])
    assert len(read("a.parquet", limits=limits, fields=["n"])[0]) == 1  # what is not read cannot harm


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_gigabyte_of_zeros_takes_little_memory(tmp_path, suffix):
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(PACK[suffix](ZEROS) * 64)
    code = (
        "import resource, sys\n"
        "from deepen.ingest.files import list_files\n"
        "from deepen.ingest.read.options import Reading\n"
        "from deepen.ingest.read.table import READERS\n"
        "(file,) = list_files(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(*[found.reason for found in READERS['jsonl'](file, Reading())])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / f"a.jsonl.{suffix}")]
    reasons, grown_kB = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert reasons == "archive_bomb" and int(grown_kB) < 300_000


def saved(save):
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


def office_files():
    document = docx.Document()
    document.add_paragraph("hello")
    slides = pptx.Presentation()
    slides.slides.add_slide(slides.slide_layouts[0]).shapes.title.text = "hello"
    book = openpyxl.Workbook()
    book.active["A1"] = "hello"
    return {"docx": saved(document.save), "pptx": saved(slides.save), "xlsx": saved(book.save), "epub": epub()}


def epub():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as book:
        for name, content in {
            "META-INF/container.xml": '<container><rootfiles><rootfile full-path="c.opf"/></rootfiles></container>',
            "c.opf": '<package><metadata><title>hello</title></metadata><manifest><item id="a" href="a.html"'
            ' media-type="text/html"/></manifest><spine><itemref idref="a"/></spine></package>',
            "a.html": "<html><body>hello</body></html>",
        }.items():
            book.writestr(name, content)
    return stream.getvalue()


COMMENT = b"<!-- x --><?y z?>"


def with_comments(data):
    """The file with comments and instructions between all elements of its text parts, and inside the text."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(stream, "w") as after:
        for name in before.namelist():
            text = before.read(name)
            if b"hello" in text:
                head, mark, rest = text.rpartition(b"?>")
                rest = rest.replace(b"><", b">" + COMMENT + b"<").replace(b"hello", b"hel" + COMMENT + b"lo")
                text = head + mark + rest
            after.writestr(name, text)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", ["docx", "pptx", "xlsx", "epub"])
def test_comments_and_instructions_between_elements_cost_nothing(tmp_path, read, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(with_comments(office_files()[suffix]))
    records, rejects = read(f"a.{suffix}")
    assert rejects == [] and records[0].values["text"].split()[-1] == "hello"


def test_long_words_and_long_lines_of_a_pdf_take_linear_time():
    pages = [["a" * 300_000, " " * 300_000 + "x", "cut-", "ting"], ["b" * 300_000]]
    assert "cutting" in join_pages(pages)  # quadratic it would take minutes


def with_entities(data):
    """The file with a text of a billion letters in the place of `hello`."""
    entities = [f'<!ENTITY a0 "{"l" * 1000}">', *(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 7))]
    stream = io.BytesIO()
    changed = 0
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            text = before.read(name)
            if b"hello" in text:
                head, mark, rest = text.rpartition(b"?>")
                doctype = f"<!DOCTYPE x [{''.join(entities)}]>".encode()
                text = head + mark + doctype + rest.replace(b"hello", b"&a6;")
                changed += 1
            after.writestr(name, text)
    assert changed
    return stream.getvalue()


@pytest.mark.parametrize("suffix", ["docx", "pptx", "xlsx", "epub"])
def test_entities_that_multiply_are_not_expanded(tmp_path, read, suffix):
    (tmp_path / f"lol.{suffix}").write_bytes(with_entities(office_files()[suffix]))
    limits = Extraction(seconds=10, memory_MB=300)
    records, rejects = read(f"lol.{suffix}", limits=limits)
    assert len(records) + len(rejects) == 1
    assert all(len(record.values["text"]) < 10_000 for record in records)
    assert all(reason in ("corrupt_office", "corrupt_archive", "no_text") for _, reason in rejects), rejects
