"""Open any artifact and say what is in it: documents, drops, packed rows, the batch of a step, scores, metrics."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from deepen.curate.passes.chain import SHOWN_CHARACTERS
from deepen.errors import RunError
from deepen.formats.documents.documents import document_files, read_documents, read_tables
from deepen.formats.files.json_text import read_object
from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact, open_artifact
from deepen.formats.training.checkpoints import checkpoint_at, read_checkpoint
from deepen.progress import say
from deepen.runs.directory import STAGE_NAMES, finished_stages
from deepen.runs.lineage import checkpoints
from deepen.runs.order.rows import show_batch
from deepen.runs.show.turns import document_record, masked_documents


@dataclass(frozen=True)
class ShowOptions:
    """What of an artifact to show."""

    sample: int = 5
    """How many items."""
    dropped: str | None = None
    """Show documents dropped for this reason, or by this step, or ``all``, instead of kept ones."""
    step: int | None = None
    """Show the batch that the model sees at this optimizer step (counted from 1)."""


def show(path: Path, options: ShowOptions) -> Iterator[dict[str, Any]]:
    """Records that describe what is at ``path``; raises ``RunError`` for what is no artifact."""
    if path.suffix == ".jsonl" and path.is_file():
        return islice(read_records(path), options.sample)
    if path.suffix == ".json" and path.is_file():
        return iter([read_object(path)])
    if path.suffix == ".parquet" and path.is_file():
        return _rows([path], options.sample)
    if path.name == "checkpoints" and path.is_dir():
        return iter(checkpoints(path.parent.parent))
    if (checkpoint := checkpoint_at(path)) is not None:
        return iter([read_checkpoint(checkpoint).model_dump(mode="json")])
    artifact = open_artifact(path) if path.is_dir() else None
    if artifact is not None and artifact.manifest.stage in STAGE_NAMES:
        return _show_stage(path, artifact, options)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return ({"stage": name, **item.counts} for name, item in finished_stages(path).items())
    raise RunError(
        f"`{path}` is no artifact that can be shown",
        hint="give a run, a stage directory (runs/NAME/curate), its checkpoints (runs/NAME/train/checkpoints), or a "
        ".parquet or .jsonl file",
    )


def _show_stage(path: Path, artifact: Artifact, options: ShowOptions) -> Iterator[dict[str, Any]]:
    stage = artifact.manifest.stage
    if options.step is not None:
        if stage != "mix":
            raise RunError(f"--step shows batches, and `{path}` is not the mix", hint="give runs/NAME/mix")
        return show_batch(path.parent, options.step)
    if options.dropped is not None:
        if stage != "curate":
            raise RunError(f"--dropped shows curated drops, and `{path}` is not curate", hint="give runs/NAME/curate")
        return _drops(artifact, options.dropped, options.sample)
    if stage in ("ingest", "curate"):
        files = document_files(artifact.path / "documents")
        documents = (document for path in files for document in read_documents(path))
        return (document_record(document) for document in islice(documents, options.sample))
    if stage == "tokenize":
        return chain([artifact.counts], _vocabulary_report(artifact), masked_documents(artifact, options.sample))
    if stage == "select":
        return iter([read_object(artifact.path / "choice.json")])
    if stage in ("train", "evaluate"):
        return read_records(artifact.path / "scores.jsonl")
    return iter([artifact.counts])


def _vocabulary_report(artifact: Artifact) -> Iterator[dict[str, Any]]:
    """How the base's vocabulary fits the sources, and what was advised; nothing for a learned one."""
    path = artifact.path / "report.json"
    if path.is_file():
        yield {"vocabulary_report": read_object(path)}


def _rows(files: list[Path], sample: int) -> Iterator[dict[str, Any]]:
    return islice((row for path in files for table in read_tables(path) for row in table.to_pylist()), sample)


def _drops(artifact: Artifact, wanted: str, sample: int) -> Iterator[dict[str, Any]]:
    """Dropped documents, by reason or by step (``near_duplicates``); copies come with what they are a copy of."""
    reasons = {reason for source in artifact.counts["sources"].values() for reason in source["dropped"]}
    chosen = reasons if wanted == "all" else {reason for reason in reasons if wanted in (reason, f"{reason}s")}
    if not chosen:
        say(f"nothing was dropped for `{wanted}`; reasons are: {', '.join(sorted(reasons)) or 'none'}")
    rows: list[dict[str, Any]] = []
    for path in document_files(artifact.path / "dropped") if chosen else ():
        rows += islice((row for row in _rows([path], sys.maxsize) if row["reason"] in chosen), sample - len(rows))
    others = _find(artifact, {row["detail"] for row in rows} - {""})
    for row in rows:
        yield {**row, "copy_of": others[row["detail"]]} if row["detail"] in others else row


def _find(artifact: Artifact, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Some documents of a curate stage by id, wherever they ended, with the beginning of their text."""
    folders = {"kept": "documents", "held out": "held_out", "dropped too": "dropped"}
    found: dict[str, dict[str, Any]] = {}
    for state, folder in folders.items():
        for path in sorted((artifact.path / folder).glob("*.parquet")):
            if len(found) == len(ids):
                return found
            for table in read_tables(path, ["id", "source", "text"]):
                for row in table.filter(pc.is_in(table["id"], pa.array(ids, pa.string()))).to_pylist():
                    found[row["id"]] = {**row, "text": row["text"][:SHOWN_CHARACTERS], "state": state}
    return found
