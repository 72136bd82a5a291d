"""Word files to text: paragraphs and tables in their order, headings and list items marked as in Markdown.

Headers, footers and comments are left out, because they are not part of the running text; footnotes follow at the end.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import docx
from docx.document import Document as WordDocument
from docx.table import Table, _Cell
from docx.text.paragraph import Paragraph
from lxml import etree

from deepen.ingest.extract.result import Extracted, Refused, open_zipped

_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_NOTES = ("footnotes", "endnotes")
_DEEPEST_HEADING = 6


def extract(data: bytes, options: dict[str, Any]) -> Extracted:
    """The text of a document; ``title`` in its meta."""
    open_zipped(data).close()  # for its checks: python-docx would unpack a bomb
    document = _open(data)
    blocks = [_block(item) for item in document.iter_inner_content()]
    text = "\n\n".join(block for block in [*blocks, *_notes(document)] if block.strip())
    if not text.strip():
        raise Refused("no_text", "the document has no text outside of pictures, headers and footers")
    title = " ".join((document.core_properties.title or "").split())
    return Extracted(text, {"title": title} if title else {})


def _open(data: bytes) -> WordDocument:
    try:
        return docx.Document(BytesIO(data))
    except (KeyError, ValueError, etree.XMLSyntaxError) as error:
        raise Refused("corrupt_office", f"{type(error).__name__}: {error}") from error


def _block(item: Paragraph | Table) -> str:
    return _table(item) if isinstance(item, Table) else _paragraph(item)


def _paragraph(paragraph: Paragraph) -> str:
    """The text with what insertions, fields and content controls hold, which python-docx leaves out."""
    text = _inner_text(paragraph._p)
    if not text.strip():
        return ""
    style = paragraph.style.name.lower() if paragraph.style is not None and paragraph.style.name else ""
    level = style.removeprefix("heading ")
    if level.isdigit():
        return f"{'#' * min(int(level), _DEEPEST_HEADING)} {text.strip()}"
    is_item = paragraph._p.pPr is not None and paragraph._p.pPr.numPr is not None
    return f"- {text.strip()}" if is_item or style.startswith("list") else text


def _inner_text(element: Any) -> str:
    pieces = []
    for node in element.iter(etree.Element):  # not comments and instructions, which have no name
        if node.tag == _WORD + "t" and not _is_copy(node):
            pieces.append(_text(node))
        elif node.tag == _WORD + "tab" and node.getparent().tag == _WORD + "r":
            pieces.append("\t")
        elif node.tag in (_WORD + "br", _WORD + "cr"):
            pieces.append("\n")
        elif node.tag.endswith("}t") and "officeDocument/2006/math" in node.tag:
            pieces.append(_text(node))
    return "".join(pieces)


def _text(node: Any) -> str:
    """The text of an element that holds nothing else but perhaps comments, which part it."""
    return "".join([node.text or "", *(inner.tail or "" for inner in node)])


def _is_copy(node: Any) -> bool:
    """Whether a text stands in the fallback of a text box, which repeats the box for old versions."""
    return any(etree.QName(above).localname == "Fallback" for above in node.iterancestors())


def _table(table: Table) -> str:
    """Rows as lines, cells set apart by `` | ``; merged cells once."""
    lines = []
    for row in table.rows:
        cells: list[_Cell] = []
        for cell in row.cells:
            if not cells or cell._tc is not cells[-1]._tc:  # a merged cell comes once for each column it covers
                cells.append(cell)
        texts = [" ".join(_cell(cell).split()) for cell in cells]
        if any(texts):
            lines.append(" | ".join(texts))
    return "\n".join(lines)


def _cell(cell: _Cell) -> str:
    return "\n".join(_block(item) for item in cell.iter_inner_content())


def _notes(document: WordDocument) -> list[str]:
    """Footnotes and endnotes in their order."""
    notes = []
    for relation in document.part.rels.values():
        kind = relation.reltype.rsplit("/", 1)[-1]
        if kind not in _NOTES or relation.is_external:
            continue
        root = etree.fromstring(relation.target_part.blob, etree.XMLParser(resolve_entities=False))
        for note in root:
            paragraphs = [_inner_text(paragraph) for paragraph in note.iter(_WORD + "p")]
            notes.append("\n".join(text.strip() for text in paragraphs if text.strip()))
    return notes
