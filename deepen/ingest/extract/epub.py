"""EPUB books to text: the chapters in the order of the book's spine."""

from __future__ import annotations

import posixpath
import zipfile
from typing import Any
from urllib.parse import unquote

from lxml import etree

from deepen.ingest.encodings import decode_text
from deepen.ingest.extract.result import Extracted, Refused, open_zipped, part_of

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_PAGES = ("application/xhtml+xml", "text/html")


def extract(data: bytes, options: dict[str, Any]) -> Extracted:
    """The text of a book; ``title`` in its meta."""
    from resiliparse.extract.html2text import extract_plain_text

    with open_zipped(data) as book:
        package_name = _package_name(book)
        package = _parse(part_of(book, package_name))
        chapters = []
        for name in _spine(package, posixpath.dirname(package_name)):
            html, _ = decode_text(part_of(book, name))
            chapters.append(extract_plain_text(html, main_content=False, alt_texts=False).strip())
        locked = _ENCRYPTION in book.namelist()
    text = "\n\n".join(chapter for chapter in chapters if chapter)
    if not text:
        detail = "parts of the book are encrypted" if locked else "the chapters of the book have no text"
        raise Refused("encrypted" if locked else "no_text", detail)
    title = " ".join("".join(package.xpath("string(//*[local-name()='metadata']/*[local-name()='title'])")).split())
    return Extracted(text, {"title": title} if title else {})


def _package_name(book: zipfile.ZipFile) -> str:
    names = _parse(part_of(book, _CONTAINER)).xpath("//*[local-name()='rootfile']/@full-path")
    if not names:
        raise Refused("corrupt_archive", "the book does not name its package")
    return str(names[0])


def _spine(package: Any, folder: str) -> list[str]:
    """Names of the parts that are the chapters, in reading order."""
    items = {item.get("id"): item for item in package.xpath("//*[local-name()='manifest']/*[local-name()='item']")}
    order = package.xpath("//*[local-name()='spine']/*[local-name()='itemref']/@idref")
    chapters = [items[name] for name in order if name in items and items[name].get("media-type") in _PAGES]
    return [posixpath.normpath(posixpath.join(folder, unquote(item.get("href")))) for item in chapters]


def _parse(data: bytes) -> Any:
    try:
        # Books are strangers' files: nothing is fetched or expanded.
        return etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True, recover=True))
    except etree.XMLSyntaxError as error:
        raise Refused("corrupt_archive", str(error)) from error
