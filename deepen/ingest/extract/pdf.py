"""PDF with a text layer to running text, by pdfium: what the pages add is taken away again.

Lines that repeat at the top or bottom of pages (running headers, footers, page numbers) are left out, words that were
hyphenated at the end of a line are joined, and a sentence that runs over a page break is one again. Line breaks inside
paragraphs stay: pdfium does not tell paragraphs from lines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pypdfium2 as pdfium

from deepen.ingest.extract.result import Extracted, Refused

_EDGE_LINES = 3
"""How far from the top or bottom of a page a header or footer may stand."""
_MIN_PAGES = 3
_REPEATED_SHARE = 0.4
"""Of the pages; less than half, because left and right pages often differ."""
_MIN_LENGTH = 4
_DIGITS = re.compile(r"\d+")
_PAGE_NUMBER = re.compile(
    r"[-–—|\s]*(?:(?:page|p\.|seite|página|стр\.)\s*)?\d{1,4}"
    r"(?:\s*(?:/|of|von|de|из)\s*\d{1,4})?[-–—|\s]*",
    re.IGNORECASE,
)
_END_OF_SENTENCE = re.compile(r"""[.!?:;。！？।۔…]["'”’»)\]]*$""")
_BROKEN_WORD = re.compile(r"(?<!\w)(\w+)[-\u00ad\u2010\ufffe\x02]\n(\w+)(\S*)[^\S\n]*\n?")
"""A word cut at the end of a line, with what stands behind it up to the next word. It is looked for at the beginnings
of words alone: from each letter of a long word it would take quadratic time."""
_END_CHARACTERS = 200
_SOFT = "\u00ad\ufffe\x02"
"""What stands for a hyphen that only the end of the line asked for; pdfium writes U+FFFE or U+0002."""


def extract(data: bytes, options: dict[str, Any]) -> Extracted:
    """The text of all pages; ``pages``, ``pages_without_text`` and ``title`` in its meta."""
    document = _open(data, options["passwords"])
    pages = [_page_text(document, number) for number in range(len(document))]
    empty = sum(not page.strip() for page in pages)
    if empty == len(pages):
        raise Refused("no_text_layer", f"{len(pages)} pages without text: scans need text recognition first")
    text = join_pages([page.splitlines() for page in pages])
    if not text.strip():
        raise Refused("no_text_layer", f"{len(pages)} pages hold nothing but repeated lines and page numbers")
    meta = {"pages": str(len(pages))}
    if empty:
        meta["pages_without_text"] = str(empty)
    title = " ".join(document.get_metadata_value("Title").replace("\x00", " ").split())
    return Extracted(text, {**meta, "title": title} if title else meta)


def _open(data: bytes, passwords: Sequence[str]) -> pdfium.PdfDocument:
    for password in (None, *passwords):
        try:
            return pdfium.PdfDocument(data, password=password)
        except pdfium.PdfiumError as error:
            if "password" not in str(error).lower():  # pdfium tells only by its message
                raise Refused("corrupt_pdf", str(error)) from error
    tried = f"none of {len(passwords)} passwords opens it" if passwords else "give `passwords` for the source"
    raise Refused("encrypted", tried)


def _page_text(document: pdfium.PdfDocument, number: int) -> str:
    """Text of one page with ``\\n`` line ends; a page that cannot be loaded has none."""
    try:
        page = document[number]
    except pdfium.PdfiumError:
        return ""
    text_page = page.get_textpage()
    text = str(text_page.get_text_bounded())
    text_page.close()
    page.close()
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")


def join_pages(pages: Sequence[Sequence[str]]) -> str:
    """One text of the lines of all pages, without what the pages added to it."""
    pages = _without_running_lines([[line.rstrip() for line in page] for page in pages])
    text = ""
    for page in pages:
        lines = "\n".join(page).strip("\n")
        if lines:
            text += _seam(text, lines) + lines
    return _join_hyphenated(text)


def _seam(before: str, after: str) -> str:
    """What goes between two pages: a line break when the sentence runs on, else a blank line."""
    if not before:
        return ""
    runs_on = not _END_OF_SENTENCE.search(before[-_END_CHARACTERS:]) and not after.lstrip()[:1].isupper()
    return "\n" if runs_on or before[-1] in "-" + _SOFT else "\n\n"


def _without_running_lines(pages: list[list[str]]) -> list[list[str]]:
    """The pages without the lines that repeat, digits aside, at the tops or at the bottoms of many of them."""
    numbered = len(pages) > 1
    for _ in ("tops", "bottoms"):  # pages are turned over after each pass, so the second one sees the bottoms as tops
        running = _running(pages)
        pages = [_trim(page, running, numbered)[::-1] for page in pages]
    return pages


def _running(pages: list[list[str]]) -> set[tuple[bool, str]]:
    """Shapes of the running lines at the top of pages, each with whether it must be the very first line.

    A first line runs from ``_MIN_PAGES`` pages on, because headers change with the chapter; the lines below it must
    repeat on a large share of the pages.
    """
    first: Counter[str] = Counter()
    near: Counter[str] = Counter()
    for page in pages:
        lines = [_shape(line) for line in page if line.strip()][:_EDGE_LINES]
        first.update(lines[:1])
        near.update(set(lines))
    needed = max(_MIN_PAGES, _REPEATED_SHARE * len(pages))
    at_edge = {(True, shape) for shape, number in first.items() if number >= _MIN_PAGES and len(shape) >= _MIN_LENGTH}
    return at_edge | {(False, shape) for shape, number in near.items() if number >= needed}


def _shape(line: str) -> str:
    return _DIGITS.sub("#", " ".join(line.split()))


def _trim(lines: list[str], running: set[tuple[bool, str]], numbered: bool) -> list[str]:
    """Lines without the running ones among the first; of page numbers only one at the very edge."""
    kept: list[str] = []
    looked_at = 0
    for place, line in enumerate(lines):
        if not line.strip():
            kept.append(line)
            continue
        if looked_at == _EDGE_LINES:  # what is further inside is text, even if it repeats
            return kept + lines[place:]
        shape, is_first = _shape(line), looked_at == 0
        is_number = is_first and numbered and _PAGE_NUMBER.fullmatch(line) is not None
        if not is_number and (False, shape) not in running and not (is_first and (True, shape) in running):
            kept.append(line)
        looked_at += 1
    return kept


def _join_hyphenated(text: str) -> str:
    """Words cut at the end of a line made whole; a hyphen stays where the text elsewhere writes the word with it."""
    words = Counter(re.findall(r"\w+(?:-\w+)*", text))

    def whole(match: re.Match[str]) -> str:
        first, second, behind = match.groups()
        is_soft = match[0][len(first)] in _SOFT  # the character behind the first part: what the word was cut with
        if not is_soft and (not second[:1].islower() or first.isdigit()):
            return match[0]
        keeps = not is_soft and words[f"{first}-{second}"] > words[first + second]
        return f"{first}{'-' if keeps else ''}{second}{behind}\n"

    joined = _BROKEN_WORD.sub(whole, text).rstrip("\n")
    return re.sub(f"[{_SOFT}]", "", joined)
