"""Ingest: files of any supported format become documents; whatever cannot is written down with place and reason.

Work is cut into parts by input bytes only, never by the number of workers, so the same files give the same bytes.
Each part writes one document file and its rejects; a part that is finished is not read again after a kill.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from deepen.engine.map_parts import clear_ledger, map_parts
from deepen.errors import SourceError
from deepen.formats.atomic import FileEntry, HashingWriter, writing
from deepen.formats.documents import Document, content_hash, document_id, write_documents
from deepen.formats.manifest import Manifest, StageJob, begin_stage, finish_stage
from deepen.formats.records import read_records, write_records
from deepen.ingest.carry_over import Carried, carry_over
from deepen.ingest.config import Extraction, FieldName, IngestConfig, Source
from deepen.ingest.conversations import FIELDS, conversation_text, looks_like_conversation
from deepen.ingest.files import CONTAINERS, TABLES, InputFile, companions, fingerprint_files, list_files
from deepen.ingest.readers import READERS
from deepen.ingest.reading import Reading
from deepen.ingest.records import Record, Reject
from deepen.ingest.summary import check_counts, print_summary
from deepen.progress import say

FORMAT = 2

_PART_BYTES = 64 << 20
_GUESSES = ("text", "content", "body", "article", "document")
_GUESS_RECORDS = 100
_PARTIAL, _LEDGER, REJECTED = "partial", "ledger", "rejected.jsonl"


@dataclass(frozen=True)
class Part:
    """Some files of one source; everything that the part's result depends on."""

    source: Source
    number: int
    files: tuple[InputFile, ...]
    text_field: str
    extraction: Extraction
    out: str
    fingerprint: str

    @property
    def name(self) -> str:
        """Name of the part's files."""
        return f"{self.source.name}-{self.number:05d}"


def source_fingerprint(source: Source, cache: Path) -> str:
    """Identity of a source: relative paths and contents of its files; the file ``cache`` spares reading them again."""
    files = list_files(source.path, source.format)
    return fingerprint_files([*files, *companions(files, source.tokenizer)], cache)


def ingest(config: IngestConfig, job: StageJob) -> Manifest:
    """Read all sources into ``job.out``: ``documents/{source}-{part}.parquet`` and ``rejected.jsonl``.

    Raises ``SourceError`` when a source has no files, no text, or too many rejects; the finished parts stay.
    """
    begin_stage(job, stage="ingest", format_number=FORMAT, config=config)
    carried = {source.name: carry_over(source, config, job, FORMAT) for source in config.sources}
    read = [source for source in config.sources if carried[source.name] is None]
    files = {source.name: list_files(source.path, source.format) for source in read}
    parts = [part for source in read for part in _parts(source, files[source.name], config.extraction, job)]
    results = map_parts(
        read_part,
        parts,
        workers=job.workers,
        ledger=job.out / _LEDGER,
        what="ingest",
        unit="B",
        sizes=[float(sum(file.num_bytes for file in part.files)) for part in parts],
    )
    rejected = write_records(job.out / REJECTED, _all_rejects(job.out, parts, carried), job.out)
    counts = {
        source.name: _count(source, files[source.name], parts, results) if earlier is None else earlier.counts
        for source, earlier in ((source, carried[source.name]) for source in config.sources)
    }
    check_counts(counts, config.max_rejected, job.out / REJECTED)
    clear_ledger(job.out / _LEDGER)
    shutil.rmtree(job.out / _PARTIAL, ignore_errors=True)
    entries = [FileEntry.model_validate(result["file"]) for result in results]
    entries += [entry for earlier in carried.values() if earlier is not None for entry in earlier.files]
    manifest = finish_stage(
        job, stage="ingest", format_number=FORMAT, config=config, files=[*entries, rejected], counts={"sources": counts}
    )
    print_summary(counts)
    return manifest


def _parts(source: Source, files: Sequence[InputFile], extraction: Extraction, job: StageJob) -> list[Part]:
    """Files in groups of about 64 MB; a limited source is one part, because the limit counts through all its files."""
    text_field = _text_field(source, files)
    groups: list[list[InputFile]] = []
    num_bytes = 0
    for file in files:
        if not groups or (num_bytes + file.num_bytes > _PART_BYTES and source.limit is None):
            groups.append([])
            num_bytes = 0
        groups[-1].append(file)
        num_bytes += file.num_bytes
    return [
        Part(source, number, tuple(group), text_field, extraction, str(job.out), job.fingerprint)
        for number, group in enumerate(groups)
    ]


def _text_field(source: Source, files: Sequence[InputFile]) -> str:
    """The field that holds the text: as set, or the first likely one in the source's first records."""
    tables = [file for file in files if file.format in (*TABLES, *CONTAINERS)]
    if source.text is not None or source.conversations is not None or not tables:
        return source.text or "text"
    seen: Counter[str] = Counter()
    hint = "set `text: FIELD` for this source"
    reading = _reading(source, Extraction(), tables_only=True)
    every = (found for file in tables for found in READERS[str(file.format)](file, reading))
    records = (found for found in every if isinstance(found, Record))
    for record in islice(records, _GUESS_RECORDS):
        seen.update(record.values.keys())
        if looks_like_conversation(record.values):
            hint = (
                "these look like conversations: set `conversations: as_text` to train on all of their words"
                " (training on the answers alone is not supported)"
            )
        for name in _GUESSES:
            if isinstance(record.values.get(name), str):
                say(f"ingest: source `{source.name}` has its text in the field `{name}` (set `text` to change this)")
                return name
    if not seen:
        return "text"  # nothing readable: the rejects will say why
    names = ", ".join(f"`{name}`" for name, _ in seen.most_common(12))
    raise SourceError(
        f"source `{source.name}`: cannot tell which field holds the text; its records have {names}",
        hint=hint,
    )


def read_part(part: Part) -> dict[str, Any]:
    """Read one part: write its documents and rejects, and return its counts."""
    out = Path(part.out)
    counts: dict[str, Any] = {"bytes": 0, "rejected": Counter(), "encodings": Counter()}
    with writing(out / _PARTIAL / f"{part.name}.jsonl") as rejects:
        documents = islice(_documents(part, counts, rejects), part.source.limit)
        entry, num_documents = write_documents(out / "documents" / f"{part.name}.parquet", documents, out)
    return {"file": entry.model_dump(), "documents": num_documents, **counts}


def _documents(part: Part, counts: dict[str, Any], rejects: HashingWriter) -> Iterator[Document]:
    for file in part.files:
        for found in _found_in(file, part):
            made = found if isinstance(found, Reject) else _document(found, part)
            if isinstance(made, Reject):
                counts["rejected"][made.reason] += made.num_records
                rejects.write(_line(part.source.name, made))
            else:
                counts["bytes"] += len(made.text.encode())
                if "encoding" in made.meta:
                    counts["encodings"][made.meta["encoding"]] += 1
                yield made


def _found_in(file: InputFile, part: Part) -> Iterator[Record | Reject]:
    if file.format is None:
        yield Reject(file.location, "unsupported_file", "no reader for this suffix; set `format` or use a glob")
        return
    is_empty = True
    for found in _read(file, part):
        is_empty = False
        yield found
    if is_empty:
        yield Reject(file.location, "no_records", "the file can be read, and there is nothing in it")


def _read(file: InputFile, part: Part) -> Iterator[Record | Reject]:
    category = part.source.category
    texts = [part.text_field] if part.source.conversations is None else FIELDS
    fields = [*texts, "id", *([category.field] if isinstance(category, FieldName) else [])]
    return READERS[str(file.format)](file, _reading(part.source, part.extraction, fields=tuple(dict.fromkeys(fields))))


def _reading(
    source: Source, extraction: Extraction, *, fields: tuple[str, ...] | None = None, tables_only: bool = False
) -> Reading:
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


def _document(record: Record, part: Part) -> Document | Reject:
    source, location = part.source, record.location
    text = _text_of(record, part)
    if isinstance(text, Reject):
        return text
    if not text.strip():
        return Reject(location, "empty_text")
    try:
        digest = content_hash(text)
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell but no file can hold
        return Reject(location, "invalid_unicode", f"U+{ord(text[error.start]):04X} at position {error.start}")
    meta = {"location": location, **record.meta}
    own_id = record.values.get("id")
    if isinstance(own_id, str | int) and _is_writable(str(own_id)):
        meta["id"] = str(own_id)
    return Document(
        id=document_id(source.name, location),
        text=text,
        source=source.name,
        category=_category(record, source),
        language=source.language,
        licence=source.licence,
        content_hash=digest,
        meta=meta,
    )


def _text_of(record: Record, part: Part) -> str | Reject:
    location = record.location
    if part.source.conversations is not None and not record.whole_file:
        conversation = conversation_text(record.values)
        return conversation if conversation is not None else Reject(location, "not_a_conversation")
    field = "text" if record.whole_file else part.text_field
    if field not in record.values:
        return Reject(location, "no_text_field", f"no field `{field}`")
    text = record.values[field]
    if text is None:
        return Reject(location, "empty_text", f"`{field}` is null")
    return (
        text if isinstance(text, str) else Reject(location, "text_not_string", f"`{field}` is a {type(text).__name__}")
    )


def _category(record: Record, source: Source) -> str | None:
    if not isinstance(source.category, FieldName):
        return source.category
    value = record.values.get(source.category.field)
    return str(value).encode("utf-8", "replace").decode() if value is not None else None


def _is_writable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _line(source: str, reject: Reject) -> bytes:
    record = {
        "source": source,
        "location": reject.location,
        "reason": reject.reason,
        "detail": reject.detail,
        "records": reject.num_records,
    }
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _all_rejects(out: Path, parts: Sequence[Part], carried: Mapping[str, Carried | None]) -> Iterator[dict[str, Any]]:
    for name, earlier in carried.items():
        if earlier is not None:
            yield from earlier.rejects()
        for part in (part for part in parts if part.source.name == name):
            yield from read_records(out / _PARTIAL / f"{part.name}.jsonl")


def _count(
    source: Source, files: Sequence[InputFile], parts: Sequence[Part], results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    own = [result for part, result in zip(parts, results, strict=True) if part.source.name == source.name]
    rejected: Counter[str] = Counter()
    encodings: Counter[str] = Counter()
    for result in own:
        rejected.update(result["rejected"])
        encodings.update(result["encodings"])
    return {
        "role": source.role,
        "licence": source.licence,
        "files": len(files),
        "documents": sum(result["documents"] for result in own),
        "bytes": sum(result["bytes"] for result in own),
        "rejected": dict(sorted(rejected.items())),
        **({"encodings": dict(sorted(encodings.items()))} if encodings else {}),
    }
