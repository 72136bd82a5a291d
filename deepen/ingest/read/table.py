"""Text and JSON lines, and the table of all readers at the bottom.

A reader streams records and rejects in the order of the file; what is wrong with the data never raises.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from deepen.ingest.encodings import UTF_8, as_utf_8, decode_text
from deepen.ingest.read.archive import read_tar, read_zip
from deepen.ingest.read.columns import read_arrow, read_parquet
from deepen.ingest.read.csv import read_csv
from deepen.ingest.read.extracted import read_extracted
from deepen.ingest.read.json import read_json
from deepen.ingest.read.megatron import read_megatron
from deepen.ingest.read.options import Reader, Reading
from deepen.ingest.read.records import MAX_RECORD_BYTES, Record, Reject, bad_byte, brief, decode, lines_of
from deepen.ingest.read.warc import read_warc
from deepen.ingest.streams import FAULTS, Input, open_stream, stream_reject, whole


def read_text(file: Input, reading: Reading) -> Iterator[Record | Reject]:
    """The whole file as one record."""
    data = whole(file)
    if isinstance(data, Reject):
        yield data
        return
    try:
        text, encoding = decode_text(data, reading.encoding)
    except UnicodeDecodeError as error:
        read_as = "" if error.encoding == UTF_8 else f"read as {error.encoding}: "
        yield Reject(file.location, "not_utf8", read_as + bad_byte(error))
        return
    meta = {} if encoding == UTF_8 else {"encoding": encoding}
    yield Record(file.location, {"text": text}, meta, whole_file=True)


def read_jsonl(file: Input, reading: Reading) -> Iterator[Record | Reject]:
    """One record per line that is not blank; a damaged line costs that line only.

    JSON is UTF-8; other encodings are read when they carry a byte order mark or are named by the source.
    """
    number = 0
    try:
        with open_stream(file) as packed:
            stream, encoding = as_utf_8(packed, reading.encoding, guess=False)
            meta = {} if encoding == UTF_8 else {"encoding": encoding}
            for number, line in lines_of(stream):
                if line is None or line.strip():
                    yield _json_record(f"{file.location}:{number}", line, meta)
    except FAULTS as error:
        yield stream_reject(f"{file.location}:{number + 1}", error)


def _json_record(location: str, line: bytes | None, meta: dict[str, str]) -> Record | Reject:
    if line is None:
        return Reject(location, "record_too_long", f"more than {MAX_RECORD_BYTES} bytes")
    text = decode(line, location)
    if isinstance(text, Reject):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Reject(location, "invalid_json", brief(error))
    if not isinstance(value, dict):
        return Reject(location, "not_an_object", f"a JSON {type(value).__name__}, not an object")
    return Record(location, value, meta)


def _read_member(file: Input, reading: Reading) -> Iterator[Record | Reject]:
    return READERS[str(file.format)](file, reading)


READERS: dict[str, Reader] = {
    "text": read_text,
    "markdown": read_text,
    "rst": read_text,
    "html": read_extracted,
    "pdf": read_extracted,
    "docx": read_extracted,
    "pptx": read_extracted,
    "xlsx": read_extracted,
    "epub": read_extracted,
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "megatron": read_megatron,
    "zip": lambda file, reading: read_zip(file, reading, _read_member),
    "tar": lambda file, reading: read_tar(file, reading, _read_member),
    "warc": lambda file, reading: read_warc(file, reading, _read_member),
}
