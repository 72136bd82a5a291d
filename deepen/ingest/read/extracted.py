"""Formats whose text must be extracted by large libraries: html, pdf, office files, epub; done in a guarded process."""

from __future__ import annotations

from collections.abc import Iterator

from deepen.ingest.extract.isolation import extract_isolated
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Record, Reject
from deepen.ingest.streams import Input, whole

EXTRACTORS = {
    "html": "deepen.ingest.extract.html:extract",
    "pdf": "deepen.ingest.extract.pdf:extract",
    "docx": "deepen.ingest.extract.docx:extract",
    "pptx": "deepen.ingest.extract.slides:extract",
    "xlsx": "deepen.ingest.extract.sheets:extract",
    "epub": "deepen.ingest.extract.epub:extract",
}
"""Where the extractor of each format is: imported by the guarded process alone."""


def read_extracted(file: Input, reading: Reading) -> Iterator[Record | Reject]:
    """The text of the whole file as one record, or the reason why there is none."""
    data = whole(file)
    if isinstance(data, Reject):
        yield data
        return
    if not data:
        return
    options = {
        "encoding": reading.encoding,
        "extractor": reading.extractor,
        "passwords": list(reading.passwords),
    }
    answer = extract_isolated(EXTRACTORS[str(file.format)], data, options, reading.limits)
    if "reason" in answer:
        yield Reject(file.location, answer["reason"], answer["detail"])
    else:
        yield Record(file.location, {"text": answer["text"]}, answer["meta"], whole_file=True)
