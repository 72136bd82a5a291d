"""Files of a source to documents and rejects, one after the other, and where a limited source ends.

How many files a limit takes is counted with the same code that reads them for the run, so the answer is exact; what is
counted is read twice, which costs less than fetching what nobody reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deepen.formats.documents.documents import Document
from deepen.ingest.as_documents import Contents, as_document, guess_contents
from deepen.ingest.config import Extraction, Source
from deepen.ingest.files import CONTAINERS, TABLES, TEXTS, InputFile, is_mark
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Record, Reject
from deepen.ingest.read.table import READERS
from deepen.ingest.streams import WatchedFile
from deepen.progress import say
from deepen.settings import BYTES_PER_TOKEN, Amount


def contents_of(source: Source, files: Sequence[InputFile], tell: Callable[[str], None] = say) -> Contents:
    """Where the records have their text: as set, or as the source's first records show, which is said with ``tell``."""
    tables = [file for file in files if file.format in (*TABLES, *CONTAINERS)]
    if source.conversations is not None:
        return Contents(conversations=source.conversations)
    if source.text is not None or not tables:
        return Contents(source.text or "text")
    how = reading(source, Extraction(), tables_only=True)
    # Lazily: a hundred records are enough.
    every = (found for file in tables for found in READERS[str(file.format)](file, how))
    return guess_contents(source, (found for found in every if isinstance(found, Record)), tell)


def read_documents(
    source: Source, files: Iterable[InputFile], contents: Contents, how: Reading
) -> Iterator[Document | Reject]:
    """What the files give, in their order, counted in ``how.tally``; the source's ``limit`` is not heeded."""
    for file in files:
        how.tally.bytes += file.num_bytes
        files_before = how.tally.files
        try:
            for found in _found_in(file, how):
                made = found if isinstance(found, Reject) else as_document(found, source, contents)
                if isinstance(made, Reject):
                    how.tally.note(made)
                yield made
        finally:  # also where a limit ends the reading
            if how.tally.files == files_before:  # an archive has counted its members
                how.tally.files += 1


def _found_in(file: InputFile, how: Reading) -> Iterator[Record | Reject]:
    if is_mark(file.location) or _has_no_bytes(file):
        how.tally.empty += 1
        return
    if file.format is None:
        yield Reject(file.location, "unsupported_file", "no reader for this suffix; set `format` or use a glob")
        return
    watched = WatchedFile(file.path, file.location, file.format, file.num_bytes)
    is_empty = True
    for found in READERS[file.format](watched, how):
        if isinstance(found, Record) and _is_blank(found, file.format):
            continue
        is_empty = False
        yield _with_lost_bytes(found, watched) if isinstance(found, Reject) else found
    how.tally.empty += is_empty


def _has_no_bytes(file: InputFile) -> bool:
    return file.num_bytes == 0 and Path(file.path).is_file()  # a dangling link has none either, and is no file


def _is_blank(record: Record, file_format: str) -> bool:
    """Whether the record is a text file without text: nothing is lost with it."""
    return file_format in TEXTS and not str(record.values["text"]).strip()


def _with_lost_bytes(reject: Reject, file: WatchedFile) -> Reject:
    if reject.loss == "records" or reject.lost_bytes is not None:
        return reject
    # What was cut off is not there to be counted: all that is there stands for it.
    unread = file.num_bytes if reject.reason.startswith("truncated_") else file.num_bytes - file.watch.num_bytes_read
    return replace(reject, lost_bytes=max(0, unread))


def reading(
    source: Source, extraction: Extraction, *, fields: tuple[str, ...] | None = None, tables_only: bool = False
) -> Reading:
    """What readers are told of a source; passwords named by ``$NAME`` are taken from the environment here."""
    return Reading(
        fields=fields,
        format=source.format,
        encoding=source.encoding,
        extractor=source.extractor,
        passwords=tuple(os.environ.get(word[1:], "") if word.startswith("$") else word for word in source.passwords),
        limits=extraction,
        tokenizer=source.tokenizer,
        tables_only=tables_only,
    )


def up_to(limit: Amount | None, documents: Iterable[Document]) -> Iterator[Document]:
    """The first documents, up to and with the one that reaches the limit; nothing is read beyond it."""
    reached = Reached()
    for document in documents:
        reached = reached.plus(document)
        yield document
        if reached.covers(limit):
            return


@dataclass(frozen=True)
class Reached:
    """How much some documents are: their number, and the UTF-8 bytes of their texts."""

    documents: int = 0
    bytes: int = 0

    def plus(self, document: Document) -> Reached:
        """With one more document."""
        return Reached(self.documents + 1, self.bytes + len(document.text.encode()))

    def covers(self, limit: Amount | None) -> bool:
        """Whether this is as much as the limit asks for; nothing is as much as no limit."""
        if limit is None:
            return False
        tokens = self.bytes / BYTES_PER_TOKEN
        return {"documents": self.documents, "bytes": self.bytes, "tokens": tokens}[limit.unit] >= limit.value


@dataclass(frozen=True)
class Needed:
    """The first files of a source that its limit takes."""

    files: tuple[InputFile, ...]
    reached: Reached
    is_enough: bool
    """False: these are all files, and the limit is not reached."""


def files_needed(source: Source, extraction: Extraction, files: Iterable[InputFile]) -> Needed:
    """The shortest beginning of ``files`` that covers the source's limit; no file after it is asked for.

    After each file it is looked again where the text is, as the run will look in the files chosen; if that changes,
    what was counted before is counted again. Raises ``SourceError`` when the first files do not show it.
    """
    taken: list[InputFile] = []
    contents, reached, counted = None, Reached(), 0
    for file in files:
        taken.append(file)
        seen = contents_of(source, taken, tell=_silently)
        if seen != contents:
            contents, reached, counted = seen, Reached(), 0
        # Only the new file, unless the guess has changed.
        how = reading(source, extraction, fields=contents.fields(source))
        for made in read_documents(source, taken[counted:], contents, how):
            reached = reached if isinstance(made, Reject) else reached.plus(made)
            if reached.covers(source.limit):
                return Needed(tuple(taken), reached, is_enough=True)
        counted = len(taken)
    return Needed(tuple(taken), reached, is_enough=False)


def _silently(message: str) -> None:
    """Ingest says it when it reads."""
