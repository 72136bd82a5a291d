"""Text in other encodings is read and counted; damaged UTF-8 is not mistaken for another encoding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deepen.ingest.config import Source
from deepen.ingest.encodings import decode_text

RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. " * 3
TURKISH_XML = "<?xml version='1.0' encoding='{}'?><p>Bütün mutlu aileler birbirine benzer, şöyle İğdır</p>"


@given(st.text())
def test_valid_utf8_stays_as_it_is(text):
    data = text.encode()
    if 0 not in data and b"\x1b" not in data and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        assert decode_text(data) == (text.removeprefix("\ufeff"), "utf-8")


@pytest.mark.parametrize("codec", ["utf-16", "utf-32", "utf-8-sig", "cp1251", "koi8-r", "cp866"])
def test_marks_and_guesses(codec):
    text, name = decode_text(RUSSIAN.encode(codec))
    assert text == RUSSIAN and name == {"utf-8-sig": "utf-8"}.get(codec, name)


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_text_without_a_mark(codec):
    assert decode_text("Plain words, déjà vu.".encode(codec)) == ("Plain words, déjà vu.", codec)


def test_a_declared_charset_counts_when_the_bytes_agree():
    page = TURKISH_XML.format("iso-8859-9")
    assert decode_text(page.encode("iso-8859-9")) == (page, "iso8859-9")
    assert decode_text(TURKISH_XML.format("zlib").encode())[1] == "utf-8"


def test_damaged_utf8_is_an_error_and_no_other_encoding():
    with pytest.raises(UnicodeDecodeError):
        decode_text(RUSSIAN.encode() + b"\xff" + RUSSIAN.encode())


def test_the_setting_wins_and_must_be_a_text_encoding():
    assert decode_text(b"\xe9", "latin-1") == ("é", "iso8859-1")
    for bad in ("klingon", "zlib"):
        with pytest.raises(ValidationError):
            Source(name="s", role="domain", path="x", encoding=bad)


def test_csv_in_another_encoding_is_read_by_row(tmp_path, read):
    (tmp_path / "a.csv").write_bytes(f'id,text\n1,"{RUSSIAN}"\n2,"{RUSSIAN}"\n'.encode("cp1251"))
    records, rejects = read("a.csv")
    assert [record.values["text"] for record in records] == [RUSSIAN, RUSSIAN] and rejects == []
    assert records[0].meta["encoding"] == "cp1251"


def test_a_byte_the_named_encoding_lacks_costs_its_line_only(tmp_path, read):
    lines = ['{"text": "日本"}', '{"text": "??"}', '{"text": "語"}']
    data = "\n".join(lines).encode("shift_jis").replace(b"??", b"\x81\xff")
    (tmp_path / "a.jsonl").write_bytes(data)
    records, rejects = read("a.jsonl", encoding="shift_jis")
    assert [record.values["text"] for record in records] == ["日本", "語"] and rejects == [("a.jsonl:2", "not_utf8")]


def test_documents_that_were_not_utf8_are_counted_and_said(tmp_path, run, documents, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_bytes(RUSSIAN.encode("cp1251"))
    (tmp_path / "in/b.txt").write_text(RUSSIAN)
    manifest = run({"path": "in"})
    assert manifest.counts["sources"]["s0"]["encodings"] == {"cp1251": 1}
    assert documents()[0].meta["encoding"] == "cp1251" and "cp1251 1" in capsys.readouterr().err
