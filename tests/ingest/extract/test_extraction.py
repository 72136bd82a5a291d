"""Pages, books and office files give their running text and nothing of what stands around it."""

import io
import zipfile
from random import Random

import docx
import openpyxl
import pptx
import pytest

from deepen.ingest.extract.pdf import join_pages
from tests.ingest.made_files import hanging_pdf, pdf_of

ARTICLE = "".join(f"<p>This is paragraph {n} of the story, and it has quite a few words in it.</p>" for n in range(8))
PAGE = (
    "<html><head><title>A  story</title>{meta}</head><body><nav><a href='/'>Home</a><a href='/a'>About us</a></nav>"
    f"<article><h1>The story</h1>{ARTICLE}"
    + "<p>{more}</p></article><footer>All rights reserved</footer></body></html>"
)


@pytest.mark.parametrize("extractor", ["trafilatura", "resiliparse"])
def test_html_gives_its_main_text(tmp_path, read, extractor):
    (tmp_path / "a.html").write_text(PAGE.format(meta="", more=""))
    (record,), _ = read("a.html", extractor=extractor)
    assert "paragraph 7 of the story" in record.values["text"]
    assert "About us" not in record.values["text"] and "rights" not in record.values["text"]
    assert record.meta["title"] == "A story"


def test_html_is_read_in_the_charset_it_declares(tmp_path, read):
    page = PAGE.format(meta='<meta charset="koi8-r">', more="Привет, это русский текст")
    (tmp_path / "a.html").write_bytes(page.encode("koi8-r"))
    (record,), _ = read("a.html")
    assert "это русский текст" in record.values["text"] and record.meta["encoding"] == "koi8-r"


def test_html_without_text_is_named(tmp_path, read):
    (tmp_path / "a.html").write_text("<html><body><img src='x.png'></body></html>")
    assert read("a.html")[1] == [("a.html", "no_main_text")]


def test_pdf_loses_what_the_pages_added(tmp_path, text_of):
    pages = [
        ["Journal of Tests 3", f"Page text {word} begins here and", "goes on."] for word in ("one", "two", "three")
    ]
    for number, page in enumerate(pages, start=7):
        page.append(str(number))
    (tmp_path / "a.pdf").write_bytes(pdf_of(pages))
    text = text_of("a.pdf")
    assert "Journal" not in text and "7" not in text
    assert [word in text for word in ("one", "two", "three")] == [True] * 3


def test_pdf_without_text_layer_is_named(tmp_path, read):
    (tmp_path / "a.pdf").write_bytes(pdf_of([[], []]))
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4 and then nothing of use")
    assert read("a.pdf")[1] == [("a.pdf", "no_text_layer")]
    assert read("b.pdf")[1] == [("b.pdf", "corrupt_pdf")]


def test_a_born_digital_pdf_gives_its_text_back(tmp_path, text_of):
    random = Random(1)
    words = ["".join(random.choices("aeinorst", k=random.randint(2, 9))) for _ in range(2000)]
    lines = [" ".join(words[start : start + 10]) for start in range(0, len(words), 10)]
    pages = [
        [f"A paper {number + 1}", *lines[start : start + 40], f"- {number + 1} -"]
        for number, start in enumerate(range(0, len(lines), 40))
    ]
    (tmp_path / "a.pdf").write_bytes(pdf_of(pages))
    assert text_of("a.pdf").split() == words


def test_many_formats_give_the_same_bytes_on_any_number_of_workers(tmp_path, run, documents, same_bytes, monkeypatch):
    monkeypatch.setattr("deepen.ingest.stage._PART_BYTES", 1000)
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / f"in/{number}.html").write_text(PAGE.format(meta="", more=f"page {number}"))
        (tmp_path / f"in/{number}.pdf").write_bytes(pdf_of([[f"paper {number}"]]))
    (tmp_path / "in/hang.pdf").write_bytes(hanging_pdf())
    limits = {"extraction": {"seconds": 600, "memory_MB": 300}, "max_rejected": 0.2}  # memory alone can run out
    run({"path": "in"}, out="one", **limits)
    manifest = run({"path": "in"}, out="two", workers=2, **limits)
    assert same_bytes("one", "two") and len(documents("two")) == 8
    assert manifest.counts["sources"]["s0"]["rejected"] == {"extraction_memory": 1}


def test_hyphens_at_line_ends_are_joined_unless_the_word_has_one():
    page = [
        "a well-known word, and the knowl-",
        "edge of a well-",
        "known thing in 1990-",
        "1995, from Alsace-",
        "Lorraine",
    ]
    text = join_pages([page])
    assert "knowledge\n" in text and "well-known\n" in text
    assert "1990-\n1995" in text and "Alsace-\nLorraine" in text


def test_a_joined_word_makes_no_paragraph():
    assert join_pages([["some knowl-", "edge-based", "method-", "ology (new), and", "more"]]) == (
        "some knowledge-based\nmethodology\n(new), and\nmore"
    )
    assert join_pages([["soft\ufffe", "ware, and", "    code"]]) == "software,\nand\n    code"


def test_a_sentence_runs_over_the_page_break_and_a_paragraph_does_not():
    assert join_pages([["The end of"], ["the page."], ["Next one."]]) == "The end of\nthe page.\n\nNext one."
    assert join_pages([["an exam-"], ["ple."]]) == "an example."


def test_headers_that_change_with_the_chapter_are_running_lines_and_text_is_not():
    pages = [[f"{number} Chapter {number // 4}: Words", f"text {'abcdefghijkl'[number]}"] for number in range(12)]
    assert join_pages(pages).split() == [word for letter in "abcdefghijkl" for word in ("text", letter)]
    assert join_pages([["Title", "same"], ["same"]]) == "Title\nsame\nsame"


def test_docx_keeps_tables_in_their_place(tmp_path, text_of):
    document = docx.Document()
    document.add_heading("Results", level=2)
    document.add_paragraph("before")
    table = document.add_table(rows=2, cols=2)
    for row, values in zip(table.rows, [("drug", "dose"), ("aspirin", "5 mg")], strict=True):
        for cell, value in zip(row.cells, values, strict=True):
            cell.text = value
    document.add_paragraph("after")
    document.add_paragraph("item", style="List Bullet")
    document.sections[0].header.paragraphs[0].text = "running header"
    document.save(str(tmp_path / "a.docx"))
    assert text_of("a.docx") == "## Results\n\nbefore\n\ndrug | dose\naspirin | 5 mg\n\nafter\n\n- item"


def test_slides_give_title_text_table_and_notes(tmp_path, text_of):
    slides = pptx.Presentation()
    slide = slides.slides.add_slide(slides.slide_layouts[1])
    slide.shapes.title.text = "Plan"
    slide.placeholders[1].text = "first\nsecond"
    table = slide.shapes.add_table(1, 2, 0, 0, 100, 100).table
    table.cell(0, 0).text, table.cell(0, 1).text = "a", "b"
    slide.notes_slide.notes_text_frame.text = "say it slowly"
    slides.save(str(tmp_path / "a.pptx"))
    assert text_of("a.pptx") == "# Plan\nfirst\nsecond\na | b\nsay it slowly"


def test_sheets_give_values_by_row(tmp_path, text_of):
    book = openpyxl.Workbook()
    book.active.title = "Doses"
    for row in (["drug", "mg", None], [None, None, None], ["aspirin", 5.0, None]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert text_of("a.xlsx") == "# Doses\ndrug | mg\naspirin | 5"


def zipped(path, parts):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def test_epub_chapters_follow_the_spine(tmp_path, text_of):
    items = "".join(f"<item id='c{n}' href='c%20{n}.xhtml' media-type='application/xhtml+xml'/>" for n in (1, 2))
    package = f"<package><metadata><title>Book</title></metadata><manifest>{items}</manifest><spine>"
    parts = {
        "META-INF/container.xml": "<container><rootfile full-path='OPS/book.opf'/></container>",
        "OPS/book.opf": package + "<itemref idref='c2'/><itemref idref='c1'/></spine></package>",
        "OPS/c 1.xhtml": "<html><body><p>Chapter one.</p></body></html>",
        "OPS/c 2.xhtml": "<html><body><p>Preface.</p></body></html>",
    }
    zipped(tmp_path / "a.epub", parts)
    assert text_of("a.epub") == "Preface.\n\nChapter one."


def test_office_files_that_are_bombs_damaged_or_locked_are_named(tmp_path, read):
    with zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", bytes(80 << 20))
    (tmp_path / "cut.docx").write_bytes((tmp_path / "bomb.docx").read_bytes()[:500])
    (tmp_path / "locked.xlsx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    zipped(tmp_path / "other.pptx", {"a.txt": "no slides"})
    reasons = [read(name)[1][0][1] for name in ("bomb.docx", "cut.docx", "locked.xlsx", "other.pptx")]
    assert reasons == ["archive_bomb", "corrupt_archive", "encrypted_or_old_office", "corrupt_office"]


def test_an_extracted_file_may_be_packed(tmp_path, text_of):
    import bz2

    book = openpyxl.Workbook()
    book.active["A1"] = "packed"
    book.save(data := io.BytesIO())
    (tmp_path / "a.xlsx.bz2").write_bytes(bz2.compress(data.getvalue()))
    assert "packed" in text_of("a.xlsx.bz2")
