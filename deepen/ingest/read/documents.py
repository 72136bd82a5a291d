"""Files of a source to documents and rejects, one after the other, and where a limited source ends.

How many files a limit takes is counted with the same code that reads them for the run, so the answer is exact; what is
counted is read twice, which costs less than fetching what nobody reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from deepen.formats.documents.documents import Document
from deepen.ingest.as_documents import Contents, as_document, guess_contents
from deepen.ingest.config import Extraction, Source
from deepen.ingest.files import CONTAINERS, TABLES, InputFile
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Record, Reject
from deepen.ingest.read.table import READERS
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
    source: Source, files: Iterable[InputFile], contents: Contents, extraction: Extraction
) -> Iterator[Document | Reject]:
    """What the files give, in their order; the source's ``limit`` is not heeded."""
    for file in files:
        for found in _found_in(file, source, contents, extraction):
            yield found if isinstance(found, Reject) else as_document(found, source, contents)


def _found_in(file: InputFile, source: Source, contents: Contents, extraction: Extraction) -> Iterator[Record | Reject]:
    if file.format is None:
        yield Reject(file.location, "unsupported_file", "no reader for this suffix; set `format` or use a glob")
        return
    is_empty = True
    for found in READERS[file.format](file, reading(source, extraction, fields=contents.fields(source))):
        is_empty = False
        yield found
    if is_empty:
        yield Reject(file.location, "no_records", "the file can be read, and there is nothing in it")


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
        for made in read_documents(source, taken[counted:], contents, extraction):
            reached = reached if isinstance(made, Reject) else reached.plus(made)
            if reached.covers(source.limit):
                return Needed(tuple(taken), reached, is_enough=True)
        counted = len(taken)
    return Needed(tuple(taken), reached, is_enough=False)


def _silently(message: str) -> None:
    """Ingest says it when it reads."""
