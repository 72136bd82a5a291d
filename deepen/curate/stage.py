"""Curate: documents worth training on, a reason for every one that is not, and a held-out split without leaks.

Two passes over the texts with decisions between them: first the steps that see one document, then, on hashes and
signatures of the whole corpus, what is held out and what the corpus steps drop, then the final files. Parts are the
document files of ingest, so the number of workers changes nothing but the time.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from deepen.curate.config import CurateConfig
from deepen.curate.passes.corpus import PartFiles
from deepen.curate.passes.parts import FirstPart, SecondPart, first_pass, second_pass
from deepen.curate.passes.summary import check_counts, print_summary
from deepen.curate.passes.surveys import SurveyPart, SurveyStep, conclude_survey, survey_part, surveyed
from deepen.curate.step import Applies
from deepen.engine.map_parts import clear_ledger, map_parts
from deepen.formats.documents.documents import SCHEMA, document_files, num_documents_in, read_tables, write_tables
from deepen.formats.files.atomic import FileEntry, write_bytes
from deepen.formats.manifest import Manifest, StageJob, begin_stage, finish_stage
from deepen.formats.unchanged import check_inputs
from deepen.progress import say

FORMAT = 4
P = TypeVar("P")

_PARTIAL, _LEDGER = "partial", "ledger"


@dataclass(frozen=True)
class _Part:
    """One document file of ingest."""

    source: str
    name: str
    path: Path
    num_documents: int


def curate(config: CurateConfig, job: StageJob, *, preview: bool = False) -> Manifest:
    """Filter, deduplicate and split the documents of ``job.inputs["ingest"]`` into ``job.out``.

    ``preview`` is for a look at a sample: a source may end up empty, and no summary is printed.

    Writes ``documents/{source}-{part}.parquet``, ``held_out/{source}.parquet`` and ``dropped/{source}-{part}.parquet``.
    Raises ``SourceError`` when nothing of a source is left, with its drops by reason.
    """
    check_inputs(job, {"ingest": ["documents/"]})
    begin_stage(job, stage="curate", format_number=FORMAT, config=config)
    from deepen.engine.compiled import is_cold  # it loads numba: not before there is work

    if is_cold():
        say("curate: compiling its text kernels first, once per version of deepen; that takes up to a minute")
    ingested = job.inputs["ingest"]
    sources: dict[str, dict[str, Any]] = ingested.counts["sources"]
    parts = [
        _Part(name, path.stem, path, num_documents_in(path))
        for name in sources
        for path in document_files(ingested.path / "documents", name)
    ]
    first = _run_first_pass(config, job, parts)
    reasons = _decide(config, job, sources, parts)
    second = _run_second_pass(job, sources, parts, reasons)
    counts = {name: _count(name, source, parts, first, second) for name, source in sources.items()}
    if not preview:
        check_counts(counts)
    entries = [FileEntry.model_validate(entry) for result in second for entry in result["files"]]
    entries += [_join_held_out(job, name, parts) for name in sources]
    # After this a kill means all parts again, but nothing is left to do except to write the manifest.
    clear_ledger(job.out / _LEDGER)
    shutil.rmtree(job.out / _PARTIAL, ignore_errors=True)
    manifest = finish_stage(
        job, stage="curate", format_number=FORMAT, config=config, files=entries, counts={"sources": counts}
    )
    if not preview:
        print_summary(counts, job.out)
    return manifest


def _run_first_pass(config: CurateConfig, job: StageJob, parts: Sequence[_Part]) -> list[dict[str, Any]]:
    partial = str(job.out / _PARTIAL)
    # Before the pass, since these steps judge by what they found in the whole source.
    steps = _run_surveys(config, job, parts)
    work = [FirstPart(part.name, str(part.path), partial, steps, job.fingerprint) for part in parts]
    return _run(first_pass, work, job, "first", "documents", parts)


def _run(
    run: Callable[[P], dict[str, Any]], work: Sequence[P], job: StageJob, name: str, what: str, files: Sequence[_Part]
) -> list[dict[str, Any]]:
    """The results of a pass over document files; ``name`` is that of its ledger."""
    return map_parts(
        run,
        work,
        workers=job.workers,
        ledger=job.out / _LEDGER / name,
        what=f"curate: {what}",
        unit="documents",
        sizes=[float(file.num_documents) for file in files],
    )


def _run_surveys(config: CurateConfig, job: StageJob, parts: Sequence[_Part]) -> tuple[Applies, ...]:
    """The steps on documents, those that must have seen a whole source bound to what they found in it."""
    steps: list[Applies] = []
    for number, step in enumerate(config.document_steps):
        if not isinstance(step, SurveyStep):
            steps.append(step)
            continue
        folder = str(job.out / _PARTIAL / f"survey-{number}")
        # A survey sees the documents as the steps before it leave them: these run twice, here and in the pass.
        work = {
            part: SurveyPart(part.name, str(part.path), folder, tuple(steps), step, job.fingerprint) for part in parts
        }
        results = _run(survey_part, list(work.values()), job, f"survey-{number}", f"survey for {step.use}", parts)
        for source in dict.fromkeys(part.source for part in parts):
            num_documents = sum(
                result["documents"] for part, result in zip(parts, results, strict=True) if part.source == source
            )
            conclude_survey(source, [work[part] for part in parts if part.source == source], num_documents)
        steps.append(surveyed(step, folder))
    return tuple(steps)


def _run_second_pass(
    job: StageJob, sources: dict[str, dict[str, Any]], parts: Sequence[_Part], reasons: tuple[str, ...]
) -> list[dict[str, Any]]:
    partial, out = str(job.out / _PARTIAL), str(job.out)
    work = [
        SecondPart(part.name, partial, out, sources[part.source]["role"] == "watch", reasons, job.fingerprint)
        for part in parts
    ]
    return _run(second_pass, work, job, "second", "writing", parts)


def _decide(
    config: CurateConfig, job: StageJob, sources: dict[str, dict[str, Any]], parts: Sequence[_Part]
) -> tuple[str, ...]:
    """Decide about every document that the first pass kept and write it down per part; returns the drop reasons."""
    from deepen.curate.passes.choose import decide  # loads numba

    numbers = {name: number for number, name in enumerate(sources)}
    files = [(numbers[part.source], PartFiles(job.out / _PARTIAL, part.name)) for part in parts]
    pair_files = _find_pairs(config, job, [own for _, own in files])
    return decide(config, {name: source["role"] for name, source in sources.items()}, files, pair_files)


def _find_pairs(config: CurateConfig, job: StageJob, files: Sequence[PartFiles]) -> list[Path]:
    """Compare what MinHash says may be near-duplicates; returns the files of pairs."""
    from deepen.curate.duplicates.pairs import PairPart, find_pairs, pair_parts
    from deepen.curate.passes.choose import pair_range

    partial = job.out / _PARTIAL
    names = write_bytes(partial / "parts.txt", "".join(f"{own.name}\n" for own in files).encode())
    weakest, strongest = pair_range(config)
    num_documents = sum(len(np.load(own.index, mmap_mode="r")) for own in files)
    template = PairPart(str(partial), str(partial / names.path), 0, 0, 0, 1, weakest, strongest, job.fingerprint)
    work = pair_parts(num_documents, template)
    map_parts(
        find_pairs,
        work,
        workers=job.workers,
        ledger=job.out / _LEDGER / "pairs",
        what="curate: near-duplicates",
        unit="bands",
        sizes=[(part.last_band - part.first_band) / part.num_slices for part in work],
    )
    return [part.path for part in work]


def _join_held_out(job: StageJob, source: str, parts: Sequence[_Part]) -> FileEntry:
    """One file of all held-out documents of a source, in the order of the parts."""

    def tables() -> Iterator[pa.Table]:
        for part in parts:
            if part.source == source:
                yield from read_tables(PartFiles(job.out / _PARTIAL, part.name).held_out)

    entry, _ = write_tables(job.out / "held_out" / f"{source}.parquet", tables(), job.out, SCHEMA)
    return entry


def _count(
    name: str,
    source: dict[str, Any],
    parts: Sequence[_Part],
    first: Sequence[dict[str, Any]],
    second: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    own = [number for number, part in enumerate(parts) if part.source == name]
    dropped: Counter[str] = Counter()
    for number in own:
        dropped.update(first[number]["dropped"])
        dropped.update(second[number]["dropped"])
    return {
        "role": source["role"],
        "licence": source["licence"],
        "documents_in": sum(first[number]["documents_in"] for number in own),
        "documents_kept": sum(second[number]["documents_kept"] for number in own),
        "dropped": {reason: number for reason, number in sorted(dropped.items()) if number},
        "held_out": sum(second[number]["held_out"] for number in own),
        "bytes_in": sum(first[number]["bytes_in"] for number in own),
        "bytes_kept": sum(second[number]["bytes_kept"] for number in own),
        "held_out_bytes": sum(second[number]["held_out_bytes"] for number in own),
    }
