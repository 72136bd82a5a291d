"""Files of a source to documents and rejects, one after the other, and where a limited source ends.

How many files a limit takes is counted with the same code that reads them for the run, so the answer is exact; what is
counted is read twice, which costs less than fetching what nobody reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
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
    tables = [file for file in files if file.format in (*TABLES, *CONTAINERS) and not is_mark(file.location)]
    if source.conversations is not None:
        return Contents(conversations=source.conversations)
    if source.text is not None or not tables:
        return Contents(source.text or "text")
    how = reading(source, Extraction(), tables_only=True)

    def records_of(files: Sequence[InputFile]) -> Iterator[Record]:
        every = (found for file in files for found in READERS[str(file.format)](file, how))
        return (found for found in every if isinstance(found, Record))

    # Lazily: a hundred records are enough. Where the first show nothing, those of each file are asked.
    groups = (records_of(some) for some in chain([tables], ([file] for file in tables)))
    # An archive may hold texts as well.
    all_tables = all(file.format in TABLES or is_mark(file.location) for file in files)
    return guess_contents(source, groups, tell, all_tables=all_tables)


def read_documents(
    source: Source, files: Iterable[InputFile], contents: Contents, how: Reading
) -> Iterator[Document | Reject]:
    """What the files give, in their order, counted in ``how.tally``; the source's ``limit`` is not heeded."""
    for file in files:
        how.tally.bytes += file.num_bytes
        files_before = how.tally.files
        found = _found_in(file, how)
        try:
            for one in _tables_with_text(found, contents, file) if contents.guessed else found:
                made = one if isinstance(one, Reject) else as_document(one, source, contents)
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
    watched = WatchedFile(file.path, file.location, file.format, file.num_bytes, how.expansion)
    is_empty, before = True, _state(file)
    for found in READERS[file.format](watched, how):
        if isinstance(found, Record) and _is_blank(found, file.format):
            continue
        is_empty = False
        yield _with_lost_bytes(found, watched) if isinstance(found, Reject) else found
    how.tally.empty += is_empty
    # Gone is not changed: where that mattered its reader has said so.
    if before is not None and (after := _state(file)) is not None and (after != before or after[0] != file.num_bytes):
        detail = f"{file.num_bytes} bytes when it was listed, {after[0]} now; its records may be of both states"
        yield Reject(file.location, "changed_while_reading", detail, loss="file", lost_bytes=file.num_bytes)


def _state(file: InputFile) -> tuple[int, int] | None:
    """Size and time of a file; None where there is none."""
    try:
        found = os.stat(file.path)  # noqa: PTH116 - a path of any bytes
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _tables_with_text(
    found: Iterable[Record | Reject], contents: Contents, file: InputFile
) -> Iterator[Record | Reject]:
    """The same without tables in which no record has what was guessed: each is one reject, the table left out.

    Where a later record has it, the ones before are one reject that stands for them all.
    """
    table, first, num_without, has_text = "", None, 0, False
    for one in found:
        own = one.location.rpartition(":")[0]
        is_member = isinstance(one, Record) and not one.whole_file
        if is_member and own != table:
            if first is not None and num_without:
                yield _left_out(table, first, num_without, file)
            table, first, num_without, has_text = own, None, 0, False
        if is_member and not has_text and isinstance(one, Record):
            if not contents.is_in(one):
                first, num_without = first or one, num_without + 1
                continue
            has_text = True
            if first is not None:
                yield Reject(first.location, "no_text_field", f"{num_without} records, {_names(first)}", num_without)
            num_without = 0
        yield one
    if first is not None and num_without:
        yield _left_out(table, first, num_without, file)


def _left_out(table: str, first: Record, num_records: int, file: InputFile) -> Reject:
    detail = f"a table of {num_records} records without a text, {_names(first)}; set `text` in a source of its own"
    return Reject(table, "no_text_field", detail, 0, "left_out", file.num_bytes if table == file.location else 0)


def _names(record: Record) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(record.values)[:12])
    return f"the first has {names}" if names else "the first has no field that could be one"


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
        delimiter=source.delimiter,
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
