"""Ingest: files of any supported format become documents; whatever cannot is written down with place and reason.

Work is cut into parts by input bytes only, never by the number of workers, so the same files give the same bytes.
Each part writes one document file and its rejects; a part that is finished is not read again after a kill.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepen.engine.map_parts import clear_ledger, map_parts
from deepen.errors import SourceError
from deepen.formats.documents.documents import Document, write_documents
from deepen.formats.files.atomic import FileEntry, HashingWriter, writing
from deepen.formats.files.records import read_records, write_records
from deepen.formats.manifest import UNFINISHED, Manifest, StageJob, begin_stage, finish_stage
from deepen.formats.taken_over import Files
from deepen.ingest.as_documents import Contents
from deepen.ingest.carry_over import REJECTED, carry_over
from deepen.ingest.config import Extraction, IngestConfig, Source
from deepen.ingest.files import InputFile, companions, fingerprint_files, list_files
from deepen.ingest.read.documents import contents_of, read_documents, reading, up_to
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Reject, Tally
from deepen.ingest.summary import check_counts, print_summary

FORMAT = 3

_PART_BYTES = 64 << 20
_PARTIAL, _LEDGER = "partial", "ledger"


@dataclass(frozen=True)
class Part:
    """Some files of one source; everything that the part's result depends on."""

    source: Source
    number: int
    files: tuple[InputFile, ...]
    contents: Contents
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
    files += companions(files, source.tokenizer)
    return fingerprint_files(files, cache)


def ingest(config: IngestConfig, job: StageJob) -> Manifest:
    """Read all sources into ``job.out``: ``documents/{source}-{part}.parquet`` and ``rejected.jsonl``.

    Raises ``SourceError`` when a source has no files, no text, or too many rejects; the finished parts stay.
    """
    begin_stage(job, stage="ingest", format_number=FORMAT, config=config)
    carried = {source.name: carry_over(source, config, job, FORMAT) for source in config.sources}
    read = [source for source in config.sources if carried[source.name] is None]
    files = {source.name: list_files(source.path, source.format) for source in read}
    try:
        parts = [part for source in read for part in _parts(source, files[source.name], config.extraction, job)]
    except SourceError:  # before anything was made: the mended recipe begins anew, there is nothing to redo
        if [path.name for path in job.out.iterdir()] == [UNFINISHED]:
            (job.out / UNFINISHED).unlink()
        raise
    results = map_parts(
        read_part,
        parts,
        workers=job.workers,
        ledger=job.out / _LEDGER,
        what="ingest",
        unit="B",
        sizes=[float(sum(file.num_bytes for file in part.files)) for part in parts],
    )
    rejected = write_records(job.out / REJECTED, _all_rejects(job, parts, carried), job.out)
    earlier = {} if job.previous is None else job.previous.counts["sources"]
    counts = {
        source.name: dict(earlier[source.name])
        if carried[source.name] is not None
        else _count(source, files[source.name], parts, results)
        for source in config.sources
    }
    check_counts(counts, config, job.out / REJECTED)
    clear_ledger(job.out / _LEDGER)
    shutil.rmtree(job.out / _PARTIAL, ignore_errors=True)
    entries = [FileEntry.model_validate(result["file"]) for result in results]
    entries += [entry for taken in carried.values() for entry in taken or ()]
    manifest = finish_stage(
        job, stage="ingest", format_number=FORMAT, config=config, files=[*entries, rejected], counts={"sources": counts}
    )
    print_summary(counts)
    return manifest


def _parts(source: Source, files: Sequence[InputFile], extraction: Extraction, job: StageJob) -> list[Part]:
    """Files in groups of about 64 MB; a limited source is one part, because the limit counts through all its files."""
    contents = contents_of(source, files)
    groups: list[list[InputFile]] = []
    num_bytes = 0
    for file in files:
        # A large file is a part by itself.
        if not groups or (num_bytes + file.num_bytes > _PART_BYTES and source.limit is None):
            groups.append([])
            num_bytes = 0
        groups[-1].append(file)
        num_bytes += file.num_bytes
    return [
        Part(source, number, tuple(group), contents, extraction, str(job.out), job.fingerprint)
        for number, group in enumerate(groups)
    ]


def read_part(part: Part) -> dict[str, Any]:
    """Read one part: write its documents and rejects, and return its counts."""
    out = Path(part.out)
    counts: dict[str, Any] = {"bytes": 0, "rejected": Counter(), "encodings": Counter()}
    how = reading(part.source, part.extraction, fields=part.contents.fields(part.source))
    with writing(out / _PARTIAL / f"{part.name}.jsonl") as rejects:
        documents = up_to(part.source.limit, _documents(part, how, counts, rejects))
        entry, num_documents = write_documents(out / "documents" / f"{part.name}.parquet", documents, out)
    return {"file": entry.model_dump(), "documents": num_documents, **counts, "tally": asdict(how.tally)}


def _documents(part: Part, how: Reading, counts: dict[str, Any], rejects: HashingWriter) -> Iterator[Document]:
    for made in read_documents(part.source, part.files, part.contents, how):
        if isinstance(made, Reject):
            counts["rejected"][made.reason] += made.num_records or 1  # a table left out stands for itself
            rejects.write(_line(part.source.name, made))
        else:
            counts["bytes"] += len(made.text.encode())
            if "encoding" in made.meta:
                counts["encodings"][made.meta["encoding"]] += 1
            yield made


def _line(source: str, reject: Reject) -> bytes:
    record = {
        "source": source,
        "location": reject.location,
        "reason": reject.reason,
        "detail": reject.detail,
        "records": reject.num_records,
        **({} if reject.loss == "records" else {"loss": reject.loss, "bytes_not_read": reject.lost_bytes}),
    }
    # A reject must be writable whatever is in it.
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _all_rejects(job: StageJob, parts: Sequence[Part], carried: Mapping[str, Files | None]) -> Iterator[dict[str, Any]]:
    for name, taken in carried.items():  # in the order of the recipe, whether read now or taken over
        if taken is not None and job.previous is not None:
            yield from (record for record in read_records(job.previous.path / REJECTED) if record["source"] == name)
        for part in (part for part in parts if part.source.name == name):
            yield from read_records(job.out / _PARTIAL / f"{part.name}.jsonl")


def _count(
    source: Source, files: Sequence[InputFile], parts: Sequence[Part], results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    own = [result for part, result in zip(parts, results, strict=True) if part.source.name == source.name]
    rejected: Counter[str] = Counter()
    encodings: Counter[str] = Counter()
    tally = Tally()
    for result in own:
        tally.add(result.get("tally", {}))  # a part that an earlier version finished has none
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
        **_of_files(tally),
    }


def _of_files(tally: Tally) -> dict[str, Any]:
    """What is told of files that gave no records, where there are some."""
    found: dict[str, Any] = {"empty_files": tally.empty} if tally.empty else {}
    everything = {"of_files": tally.files, "of_bytes": tally.bytes}
    if tally.lost_files:
        found["lost"] = {"files": tally.lost_files, "bytes": tally.lost_bytes, **everything}
    if tally.left_out_files:
        found["left_out"] = {"files": tally.left_out_files, "bytes": tally.left_out_bytes, **everything}
    return found
