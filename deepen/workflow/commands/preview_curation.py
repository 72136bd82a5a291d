"""What curation would do, on a sample and in seconds: the real stage in a temporary folder, nothing written elsewhere.

The sample comes from a finished ingest of the run where there is one (evenly from everywhere in it), else from the
first documents of each source. Each source gives as many documents, so that small ones are seen too. Copies are found
within the sample only, so the corpus has more of them than the preview shows.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deepen.curate.config import CurateConfig
from deepen.curate.stage import curate
from deepen.formats.documents.documents import SCHEMA, document_files, read_tables, row_groups, write_tables
from deepen.formats.files.parquet import opened_parquet
from deepen.formats.manifest import Artifact, Manifest, StageJob, open_artifact
from deepen.ingest.config import Source
from deepen.ingest.stage import ingest
from deepen.plug import identity
from deepen.progress import say
from deepen.recipe.models import Recipe
from deepen.runs.directory import stage_directory
from deepen.settings import Amount
from deepen.workflow.inputs.pins import Pins
from deepen.workflow.inputs.sources import resolve_sources
from deepen.workflow.stages import without_paths

_MOST_ROW_GROUPS = 24


@dataclass(frozen=True)
class Preview:
    """What became of the sample."""

    counts: dict[str, Any]
    """Per source, as the curate stage counts."""
    examples: list[dict[str, Any]]
    """One dropped document for each source and reason."""


def preview_curate(recipe: Recipe, run: Path, num_documents: int) -> Preview:
    """Curate about ``num_documents`` documents of the recipe's sources; ``run`` is only read."""
    per_source = max(1, num_documents // len(recipe.ingest.sources))
    with tempfile.TemporaryDirectory(prefix="deepen-dry-run-") as name:
        folder = Path(name)
        finished = open_artifact(stage_directory(run, "ingest"))
        if finished is not None and finished.manifest.config == {"ingest": without_paths(identity(recipe.ingest))}:
            say(f"sampling the finished ingest of `{run}`")
            sample = _sample(finished, folder / "ingest", per_source)
        else:
            say(f"taking the first {per_source} documents of each source")
            sample = _first_documents(recipe, run, folder, per_source)
        manifest = curate(
            _without_floor(recipe.curate), StageJob(folder / "curate", "dry-run", {"ingest": sample}), preview=True
        )
        return Preview(manifest.counts["sources"], list(examples(Artifact(folder / "curate", manifest))))


def _without_floor(config: CurateConfig) -> CurateConfig:
    """The settings without ``held_out.at_least``, which is for whole sources and would take a tenth of a sample."""
    return config.model_copy(update={"held_out": config.held_out.model_copy(update={"at_least": 0})})


def examples(curated: Artifact) -> Iterator[dict[str, Any]]:
    """One dropped document for each source and reason of a curate stage, in the order of the sources and reasons."""
    for name, source in curated.counts["sources"].items():
        missing = {reason for reason, number in source["dropped"].items() if number}
        found = {}
        for path in document_files(curated.path / "dropped", name):
            for table in read_tables(path) if missing else ():
                for row in table.to_pylist() if missing else ():
                    if row["reason"] in missing:
                        missing.remove(row["reason"])
                        found[row["reason"]] = row
        yield from (found[reason] for reason in source["dropped"] if reason in found)


def _first_documents(recipe: Recipe, run: Path, folder: Path, per_source: int) -> Artifact:
    if (run / "pins.json").is_file():
        shutil.copy(run / "pins.json", folder / "pins.json")
    config = resolve_sources(recipe.ingest, Pins(folder / "pins.json", offline=False))
    limited = tuple(_limited(source, per_source) for source in config.sources)
    config = config.model_copy(update={"sources": limited})
    manifest = ingest(config, StageJob(folder / "ingest", "dry-run"))
    return Artifact(folder / "ingest", manifest)


def _limited(source: Source, num_documents: int) -> Source:
    """The source's first documents, unless its own limit may end it before."""
    own = source.limit
    if own is not None and (own.unit != "documents" or own.value <= num_documents):
        return source
    return source.model_copy(update={"limit": Amount(num_documents, "documents")})


def _sample(ingested: Artifact, out: Path, per_source: int) -> Artifact:
    """Documents from evenly spaced row groups of every source, and evenly spaced ones in each."""
    counts = {}
    for name, source in ingested.counts["sources"].items():
        groups = _row_groups(ingested.path / "documents", name)
        chosen = groups[_evenly(len(groups), _MOST_ROW_GROUPS)]
        tables = (_rows_of(Path(path), int(group), -(-per_source // len(chosen))) for path, group in chosen)
        entry, num_documents = write_tables(out / f"documents/{name}-00000.parquet", tables, out, SCHEMA)
        counts[name] = {**source, "documents": num_documents}
    manifest: Manifest = ingested.manifest.model_copy(update={"counts": {"sources": counts}, "files": ()})
    return Artifact(out, manifest)


def _row_groups(directory: Path, source: str) -> np.ndarray[Any, Any]:
    found = []
    for path in document_files(directory, source):
        found += [(str(path), group) for group in range(len(row_groups(path)))]
    return np.array(found, dtype=object).reshape(-1, 2)


def _rows_of(path: Path, group: int, num_rows: int) -> pa.Table:
    with opened_parquet(path) as file:
        table = file.read_row_group(group)
    return table.take(pa.array(_evenly(table.num_rows, num_rows)))


def _evenly(number: int, wanted: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """At most ``wanted`` of the numbers below ``number``, evenly spaced."""
    return np.unique(np.linspace(0, number - 1, min(number, wanted)).round().astype(np.int64))
