"""Which encoding bytes are in: told by a mark, by being valid UTF-8, by what the file declares, or guessed.

The order is: the source's ``encoding`` setting; a byte order mark; the NULs of UTF-16 and UTF-32; strict UTF-8;
damaged UTF-8 (which is left as it is, to be rejected with the place, because reading it as anything else would spoil
every good character in it); the charset that a page or XML file declares; and last the guess of uchardet. Whatever is
not UTF-8 is noted with the document and counted.
"""

from __future__ import annotations

import codecs
import io
import re
from typing import Any, BinaryIO, cast

from deepen.ingest.streams import Sequential

UTF_8 = "utf-8"
SAMPLE_BYTES = 1 << 20
# Longer marks first: that of UTF-32-LE begins with that of UTF-16-LE.
_BOMS = (
    (codecs.BOM_UTF8, UTF_8),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""")
_DECLARED_WITHIN_BYTES = 4096
_SHIFTS = (b"\x1b$", b"\x1b(")
"""How ISO-2022 changes its character set: seven-bit text that is valid UTF-8 and yet none."""
_CHUNK_BYTES = 1 << 18
_CERTAIN_BYTES = 1 << 12
"""Enough to see a mark or the NULs of wide characters."""


def encoding_of(sample: bytes, wanted: str = "auto", *, whole: bool = True, guess: bool = True) -> str:
    """Name of the codec for text that begins with ``sample`` (the ``whole`` of it or not); "utf-8" when in doubt.

    Without ``guess`` only what is certain counts: the setting, a mark, the NULs of wide characters.
    """
    if wanted != "auto":
        return codecs.lookup(wanted).name
    marked = next((name for mark, name in _BOMS if sample.startswith(mark)), None)
    if marked is not None:
        return marked
    wide = _wide(sample)
    if wide is not None:
        return wide
    if not guess:
        return UTF_8
    if _is_utf_8(sample, whole) and not any(shift in sample for shift in _SHIFTS):
        return UTF_8
    if _is_damaged_utf_8(sample):
        return UTF_8
    return _declared(sample) or _guessed(sample) or UTF_8


def is_text_encoding(name: str) -> bool:
    """Whether a codec of this name makes text of bytes (zlib and the like do not)."""
    try:
        return bool(getattr(codecs.lookup(name), "_is_text_encoding", True))
    except LookupError:
        return False


def decode_text(data: bytes, wanted: str = "auto") -> tuple[str, str]:
    """Text and codec name; raises ``UnicodeDecodeError`` when the bytes are not in the encoding they seem to be in."""
    encoding = encoding_of(data[:SAMPLE_BYTES], wanted, whole=len(data) <= SAMPLE_BYTES)
    text = data.decode(encoding)
    return text.removeprefix("\ufeff"), encoding


def as_utf_8(stream: BinaryIO, wanted: str = "auto", *, guess: bool = True) -> tuple[BinaryIO, str]:
    """The stream as UTF-8 bytes, and the codec it was in; UTF-8 passes through as it is.

    Bytes that the codec does not know are passed on as they are, so that only their line is lost.
    """
    sampled = _Sampled(stream, SAMPLE_BYTES if guess else _CERTAIN_BYTES)
    encoding = encoding_of(sampled.sample, wanted, whole=False, guess=guess)
    reader = cast(BinaryIO, io.BufferedReader(sampled, _CHUNK_BYTES))
    if encoding == UTF_8:
        return reader, encoding
    return cast(BinaryIO, io.BufferedReader(_Transcoded(reader, encoding), _CHUNK_BYTES)), encoding


class _Sampled(Sequential):
    """A stream whose beginning was looked at; a fault met while looking is raised when reading gets there."""

    def __init__(self, stream: Any, num_bytes: int) -> None:
        self._stream = stream
        self._fault: Exception | None = None
        pieces, missing = [], num_bytes
        try:
            # Not `read`, which would lose what came before a fault.
            while missing > 0 and (piece := self._stream.read1(missing)):
                pieces.append(piece)
                missing -= len(piece)
        except Exception as error:  # whatever it is, it belongs to the bytes after these
            self._fault = error
        self.sample = b"".join(pieces)
        self._ready = memoryview(self.sample)

    def pull(self, size: int) -> memoryview:
        if not self._ready:
            if self._fault is not None:
                raise self._fault
            return memoryview(self._stream.read1(size))
        piece, self._ready = self._ready[:size], self._ready[size:]
        return piece


class _Transcoded(Sequential):
    """A stream in another encoding as UTF-8 bytes."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream = stream
        # Bytes it does not know survive both ways.
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
        self._ready = memoryview(b"")
        self._ended = False

    def pull(self, size: int) -> memoryview:
        while not self._ready and not self._ended:
            data = self._stream.read(_CHUNK_BYTES)
            self._ended = not data
            self._ready = memoryview(self._decoder.decode(data, final=not data).encode(UTF_8, "surrogateescape"))
        piece, self._ready = self._ready[:size], self._ready[size:]
        return piece


def _wide(sample: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: mostly ASCII text shows itself by where its NULs are."""
    sample = sample[: len(sample) // 4 * 4][:4096]  # whole units of UTF-32, so that places modulo 4 can be compared
    # Mostly ASCII in UTF-16 has half of its bytes zero, in UTF-32 three quarters.
    if sample.count(0) * 4 < len(sample) or len(sample) < 8:
        return None
    share = [sample[place::4].count(0) * 4 / len(sample) for place in range(4)]
    high, low = 0.9, 0.1
    if min(share[:2]) > high and share[3] < low:
        return "utf-32-be"
    if min(share[2:]) > high and share[0] < low:
        return "utf-32-le"
    half = 0.5
    if min(share[0], share[2]) > half and max(share[1], share[3]) < low:
        return "utf-16-be"
    if min(share[1], share[3]) > half and max(share[0], share[2]) < low:
        return "utf-16-le"
    return None


def _is_utf_8(sample: bytes, whole: bool) -> bool:
    try:
        # Incremental: a sample may end inside a character.
        codecs.getincrementaldecoder(UTF_8)("strict").decode(sample, final=whole)
    except UnicodeDecodeError:
        return False
    return True


def _is_damaged_utf_8(sample: bytes) -> bool:
    """Whether more of the bytes beyond ASCII are valid UTF-8 than are not; other encodings make it only by chance."""
    beyond_ascii = len(sample) - len(sample.decode("ascii", "ignore"))
    valid = sample.decode(UTF_8, "ignore")
    in_utf_8 = len(valid.encode()) - len(valid.encode("ascii", "ignore"))
    return in_utf_8 * 2 > beyond_ascii


def _declared(sample: bytes) -> str | None:
    """The charset that HTML or XML names for itself, if its bytes agree."""
    head = sample[:_DECLARED_WITHIN_BYTES]
    found = _DECLARED.search(head) if head.lstrip().startswith(b"<") else None
    try:
        name = codecs.lookup(found[1].decode()).name if found else None
        # That it is no UTF-8 is known by now.
        return name if name is not None and name != UTF_8 and fits(sample, name) else None
    except LookupError:
        return None


def _guessed(sample: bytes) -> str | None:
    from resiliparse.parse.encoding import detect_encoding

    try:
        name = codecs.lookup(detect_encoding(sample, max_len=SAMPLE_BYTES, html5_compatible=False) or "").name
    except LookupError:
        return None
    if name == "iso8859-1" and any(0x80 <= byte < 0xA0 for byte in sample):
        name = "cp1252"  # Windows text; what Latin-1 has at these places no text uses
    return name if fits(sample, name) else None


def fits(sample: bytes, name: str) -> bool:
    """Whether ``name`` is a text encoding in which these bytes (but perhaps the last) are text."""
    try:
        return is_text_encoding(name) and bool(codecs.getincrementaldecoder(name)("strict").decode(sample, final=False))
    except (UnicodeError, LookupError):
        return False
