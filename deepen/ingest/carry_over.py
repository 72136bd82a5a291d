"""Reading nothing twice: a source that is as it was is taken over from the artifact that is being made anew.

Adding a source to a finished run, or changing one, so costs only that source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.formats.files.atomic import FileEntry, damage, link_or_copy
from deepen.formats.files.records import read_records
from deepen.formats.manifest import StageJob
from deepen.ingest.config import IngestConfig, Source
from deepen.plug import identity
from deepen.progress import say


@dataclass(frozen=True)
class Carried:
    """What a source had in the earlier artifact."""

    counts: dict[str, Any]
    files: tuple[FileEntry, ...]
    rejected: Path
    """The earlier ``rejected.jsonl``, of all sources."""
    name: str

    def rejects(self) -> Iterator[dict[str, Any]]:
        """The source's own records among the earlier rejects."""
        return (record for record in read_records(self.rejected) if record["source"] == self.name)


def carry_over(source: Source, config: IngestConfig, job: StageJob, format_number: int) -> Carried | None:
    """Bring the documents of an unchanged source into ``job.out``; None when it must be read (again).

    Unchanged: same settings but for the path, same contents, same limits of extraction, same FORMAT, intact files.
    """
    earlier = job.previous
    if earlier is None or earlier.manifest.format != format_number or source.name not in earlier.counts["sources"]:
        return None
    before = earlier.manifest.config.get("ingest", {})
    mark = f"source:{source.name}"
    same_contents = (
        mark in earlier.manifest.inputs
        and mark in job.raw_inputs
        and earlier.manifest.inputs[mark].fingerprint == job.raw_inputs[mark].fingerprint
    )
    # The same files may be found by another path.
    same_settings = _without_path(identity(source)) in before.get("sources", ())
    if not (same_contents and same_settings and before.get("extraction", {}) == identity(config.extraction)):
        return None
    files = tuple(
        entry
        for entry in earlier.manifest.files
        if entry.path.startswith(f"documents/{source.name}-") and entry.path.count("-") == 1  # names have no hyphen
    )
    if any(damage(entry, earlier.path) for entry in files):
        return None
    for entry in files:
        link_or_copy(earlier.path / entry.path, job.out / entry.path)
    say(f"ingest: source `{source.name}` is as it was; its documents are taken over")
    rejected = earlier.path / "rejected.jsonl"
    return Carried(dict(earlier.counts["sources"][source.name]), files, rejected, source.name)


def _without_path(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "path"}
