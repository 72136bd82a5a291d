"""PowerPoint files to text: the slides in their order, the title first, then text, tables and notes."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pptx
from lxml import etree

from deepen.ingest.extract.result import Extracted, Refused, open_zipped


def extract(data: bytes, options: dict[str, Any]) -> Extracted:
    """The text of a presentation; ``slides`` and ``title`` in its meta."""
    open_zipped(data).close()
    try:
        presentation = pptx.Presentation(BytesIO(data))
    except (KeyError, ValueError, etree.XMLSyntaxError) as error:
        raise Refused("corrupt_office", f"{type(error).__name__}: {error}") from error
    slides = ["\n".join(_slide(slide)) for slide in presentation.slides]
    text = "\n\n".join(slide for slide in slides if slide.strip())
    if not text:
        raise Refused("no_text", "the slides have no text outside of pictures")
    title = " ".join((presentation.core_properties.title or "").split())
    return Extracted(text, {"slides": str(len(slides)), **({"title": title} if title else {})})


def _slide(slide: Any) -> Iterator[str]:
    for part in [slide, *([slide.notes_slide] if slide.has_notes_slide else [])]:
        # A comment inside a text would end it for python-pptx.
        etree.strip_tags(part._element, etree.Comment, etree.ProcessingInstruction)
    title = slide.shapes.title
    if title is not None and title.text_frame.text.strip():
        yield f"# {' '.join(title.text_frame.text.split())}"
    for shape in slide.shapes:
        if title is None or shape.shape_id != title.shape_id:
            yield from _shape(shape)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        yield from _lines(slide.notes_slide.notes_text_frame.text)


def _shape(shape: Any) -> Iterator[str]:
    if hasattr(shape, "shapes"):  # a group
        for inner in shape.shapes:
            yield from _shape(inner)
    elif getattr(shape, "has_table", False):
        for row in shape.table.rows:
            cells = [" ".join(cell.text_frame.text.split()) for cell in row.cells]
            if any(cells):
                yield " | ".join(cells)
    elif shape.has_text_frame:
        yield from _lines(shape.text_frame.text)


def _lines(text: str) -> Iterator[str]:
    yield from (line.strip() for line in text.replace("\v", "\n").split("\n") if line.strip())
