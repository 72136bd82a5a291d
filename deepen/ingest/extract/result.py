"""What an extractor gives: text and facts about the file, or the reason why there is none.

An extractor is a function ``extract(data, options) -> Extracted`` that runs in the guarded process; ``options`` holds
``encoding``, ``extractor`` and ``passwords`` of the source.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from io import BytesIO

_SUSPECT_BYTES = 64 << 20
_RATIO = 100


@dataclass(frozen=True)
class Extracted:
    """The text of a file, and what is worth keeping with the document."""

    text: str
    meta: dict[str, str] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818 - it is an answer, not an error
    """The file gives no text: ``reason`` is the reject's, the message its detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


def open_zipped(data: bytes) -> zipfile.ZipFile:
    """A file that is a zip of parts (office, epub); raises ``Refused`` for what is none, or a bomb."""
    if data[:8] == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        raise Refused("encrypted_or_old_office", "an OLE file: protected by a password, or a format from before 2007")
    try:
        archive = zipfile.ZipFile(BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise Refused("corrupt_archive", str(error)) from error
    # As announced; libraries stop reading a part where it is longer.
    expanded = sum(part.file_size for part in archive.infolist())
    if expanded > _SUSPECT_BYTES and expanded > len(data) * _RATIO:
        raise Refused("archive_bomb", f"{len(data)} bytes would expand to {expanded}")
    return archive


def part_of(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of one part; raises ``Refused`` when it is missing or damaged."""
    try:
        return archive.read(name)
    except KeyError as error:
        raise Refused("corrupt_archive", f"the part `{name}` is missing") from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError) as error:
        raise Refused("corrupt_archive", f"{name}: {error}") from error
