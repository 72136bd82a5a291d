"""Reading nothing twice: a source that is as it was is taken over from the artifact that is being made anew.

Adding a source to a finished run, or changing one, so costs only that source.
"""

from __future__ import annotations

from typing import Any

from deepen.formats.manifest import StageJob
from deepen.formats.taken_over import Files, intact_files, take_over
from deepen.ingest.config import IngestConfig, Source
from deepen.plug import identity
from deepen.progress import say

REJECTED = "rejected.jsonl"


def carry_over(source: Source, config: IngestConfig, job: StageJob, format_number: int) -> Files | None:
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
    if intact_files(earlier, lambda name: name == REJECTED) is None:
        return None
    files = take_over(earlier, lambda name: name.startswith(f"documents/{source.name}-"), job.out)
    if files is not None:
        say(f"ingest: source `{source.name}` is as it was; its documents are taken over")
    return files


def _without_path(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "path"}
