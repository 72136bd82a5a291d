"""WARC archives of crawls: every page that was fetched is read by the reader of its type; also WET records (text).

Written by hand, because a crawl is cut off as often as not: what is complete before the damage is kept. Left out as no
pages: records that are no answers (requests, metadata, revisits), and answers other than "200 OK".
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from deepen.ingest.encodings import encoding_of, fits
from deepen.ingest.files import reading_format
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Record, Reject, brief
from deepen.ingest.streams import FAULTS, Input, Member, StreamError, open_stream, stream_reject

_FORMATS = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/plain": "text",
    "text/markdown": "text",
    "application/pdf": "pdf",
}
_MAX_PAGE_BYTES = 64 << 20
_MAX_HEADER_LINES = 1000
_MAX_LINE_BYTES = 1 << 16
_OK = "200"


@dataclass(frozen=True)
class _Page:
    """What a server answered: media type, charset (or empty) and body."""

    media_type: str
    charset: str
    body: bytes


def read_warc(
    file: Input, reading: Reading, read_member: Callable[[Input, Reading], Iterator[Record | Reject]]
) -> Iterator[Record | Reject]:
    """Records of all pages; ``url`` and ``date`` in their meta. Locations number the records of the file from 1."""
    if reading.tables_only:
        return
    number = 0
    try:
        with open_stream(file) as stream:
            while (header := _next_header(stream)) is not None:
                block = _block(stream, header)
                number += 1
                location = f"{file.location}:{number}"
                try:
                    page = _page(header, block)
                except StreamError as error:
                    yield Reject(location, error.reason, brief(error))  # one page, whatever is wrong with it
                    continue
                if page is not None:
                    yield from _read_page(page, header, location, reading, read_member)
    except FAULTS as error:
        yield stream_reject(f"{file.location}:{number + 1}", error)


def _read_page(
    page: _Page,
    header: dict[str, str],
    location: str,
    reading: Reading,
    read_member: Callable[[Input, Reading], Iterator[Record | Reject]],
) -> Iterator[Record | Reject]:
    known = _FORMATS.get(page.media_type) or reading_format(page.media_type, reading.format)
    if known is None:
        yield Reject(location, "unsupported_file", f"a page of type `{page.media_type or 'unknown'}`")
        return
    # The server's charset is believed only where the bytes are not UTF-8 and agree with it: servers are often wrong.
    if reading.encoding == "auto" and encoding_of(page.body, whole=True) != "utf-8" and fits(page.body, page.charset):
        reading = replace(reading, encoding=page.charset)
    member = Member(location, known, lambda: cast(BinaryIO, io.BytesIO(page.body)))
    meta = {"url": header.get("warc-target-uri", "").strip("<>"), "date": header.get("warc-date", "")}
    for found in read_member(member, reading):
        # A page is one document: the loss of a page hides nothing.
        yield (
            replace(found, loss="records") if isinstance(found, Reject) else replace(found, meta={**meta, **found.meta})
        )


def _next_header(stream: BinaryIO) -> dict[str, str] | None:
    """The header of the next record, names in small letters; None at the end."""
    line = stream.readline(_MAX_LINE_BYTES)
    while line in (b"\r\n", b"\n"):
        line = stream.readline(_MAX_LINE_BYTES)
    if not line:
        return None
    if not line.startswith(b"WARC/"):
        raise StreamError("corrupt_archive", "the rest of the file: no WARC record begins here")
    return _header_lines(stream)


def _header_lines(stream: BinaryIO) -> dict[str, str]:
    header: dict[str, str] = {}
    for _ in range(_MAX_HEADER_LINES):
        line = stream.readline(_MAX_LINE_BYTES)
        if not line.strip():
            return header
        name, _, value = line.decode("utf-8", "replace").partition(":")
        header.setdefault(name.strip().lower(), value.strip())  # of a repeated field the first counts
    raise StreamError("corrupt_archive", "the rest of the file: a header without end")


def _block(stream: BinaryIO, header: dict[str, str]) -> bytes | None:
    """The bytes of a record; None for one that is longer than any page."""
    try:
        length = int(header.get("content-length", ""))
    except ValueError as error:
        raise StreamError("corrupt_archive", "the rest of the file: a record without length") from error
    is_short = 0 <= length <= _MAX_PAGE_BYTES
    block, missing = [], length
    while missing > 0:
        piece = stream.read(min(missing, 1 << 20))
        if not piece:
            raise StreamError("truncated_warc", "the file ends before its last record does")
        missing -= len(piece)
        if is_short:
            block.append(piece)
    return b"".join(block) if is_short else None


def _page(header: dict[str, str], block: bytes | None) -> _Page | None:
    """The page that a record holds; None for a record that is none."""
    kind, media = header.get("warc-type", ""), header.get("content-type", "")
    if kind not in ("response", "conversion", "resource"):
        return None
    if block is None:
        raise StreamError("record_too_long", f"a record of more than {_MAX_PAGE_BYTES} bytes")
    if kind != "response":
        return _Page(*_media(media), block)
    if not media.startswith("application/http"):
        return None  # the answer of a name server
    answer = io.BytesIO(block)
    status = answer.readline(_MAX_LINE_BYTES).split()
    fields = _header_lines(cast(BinaryIO, answer))
    if len(status) < 2 or status[1].decode("ascii", "replace") != _OK:
        return None
    return _Page(*_media(fields.get("content-type", "")), _body(answer.read(), fields))


def _media(value: str) -> tuple[str, str]:
    """Media type and charset of a Content-Type."""
    media_type, _, parameters = value.partition(";")
    _, _, charset = parameters.lower().partition("charset=")
    return media_type.strip().lower(), charset.split(";")[0].strip(" \"'")


def _body(data: bytes, fields: dict[str, str]) -> bytes:
    """The body as the browser sees it; crawlers often store it unpacked and keep the server's header."""
    if "chunked" in fields.get("transfer-encoding", "").lower():
        data = _unchunked(data)
    coding = fields.get("content-encoding", "").lower()
    if coding in ("gzip", "x-gzip") and data[:2] == b"\x1f\x8b":
        return _inflated(data, zlib.MAX_WBITS | 16)
    if coding == "deflate" and data[:1] == b"\x78":
        return _inflated(data, zlib.MAX_WBITS)
    if coding not in ("", "identity", "gzip", "x-gzip", "deflate") and b"<" not in data[:1000]:
        raise StreamError("unsupported_member", f"the page is packed as `{coding}`")
    return data


def _inflated(data: bytes, window: int) -> bytes:
    unpacker = zlib.decompressobj(window)
    try:
        plain = unpacker.decompress(data, _MAX_PAGE_BYTES)  # no more than that: a page may be a bomb, too
    except zlib.error as error:
        raise StreamError("corrupt_gzip", brief(error)) from error
    if unpacker.unconsumed_tail:
        raise StreamError("archive_bomb", f"a page of more than {_MAX_PAGE_BYTES} bytes")
    if not unpacker.eof:
        raise StreamError("truncated_gzip", "the page ends before its compressed data does")
    return plain


def _unchunked(data: bytes) -> bytes:
    """The chunks put together; the data as it is when it is not in chunks."""
    pieces: list[bytes] = []
    place = 0
    while True:
        end = data.find(b"\r\n", place, place + 100)
        try:
            size = int(data[place:end].split(b";")[0], 16) if end >= 0 else -1
        except ValueError:
            size = -1
        if size < 0 or end + 2 + size > len(data):
            return b"".join(pieces) if pieces else data  # the last chunk is cut off, or there never were any
        if size == 0:
            return b"".join(pieces)
        pieces.append(data[end + 2 : end + 2 + size])
        place = end + 2 + size + 2
