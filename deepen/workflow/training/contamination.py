"""The search for test items in trained documents: what evaluation knows of items, and curation of looking for them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deepen.curate.contamination.decontaminate import Decontaminate, probe_files
from deepen.formats.manifest import StageJob, fingerprint
from deepen.formats.workers import Workers, as_workers

if TYPE_CHECKING:
    from deepen.evaluate.items.contaminated import Scanning
    from deepen.recipe.models import Recipe
    from deepen.workflow.setup import Setup


def scanning_of(setup: Setup, job: StageJob) -> Scanning:
    """How ``evaluate`` finds test items in the documents that were trained."""
    from deepen.curate.contamination.scan import SCAN_FORMAT, TrainedDocuments, scan_documents
    from deepen.evaluate.items.contaminated import Scanning
    from deepen.runs.order.trained_documents import trained_among

    curated, places = job.inputs["curate"], as_workers(job.workers)
    trained, run = job.inputs["train"], job.out.parent
    steps, changes = trained.counts["steps"], trained.counts.get("order_changes")
    documents = TrainedDocuments(
        curated.path / "documents", curated.fingerprint, partial(trained_among, run=run, num_steps=steps)
    )
    made_from = {name: job.inputs[name].fingerprint for name in ("curate", "train")}
    workers = Workers(places.processes, places.ray)  # shares of a job array have ended by now
    return Scanning(
        scan=partial(scan_documents, documents=documents, workers=workers),
        mark=fingerprint("trained_documents", SCAN_FORMAT, {"steps": steps, "changes": changes}, made_from),
        kept_out=kept_out(setup.recipe),
        not_scanned=tuple(rows.name for rows in setup.recipe.mix.fixed_rows),
    )


def kept_out(recipe: Recipe) -> frozenset[str]:
    """Probes all of whose items a step `decontaminate`, as strict as by default, kept out of the documents."""
    default = Decontaminate(against=("",))
    files: set[Path] = set()
    for step in recipe.curate.steps:
        if (
            isinstance(step, Decontaminate)
            and step.any_13_gram
            and step.min_share_8_grams <= default.min_share_8_grams
            and step.phrase_words <= default.phrase_words
        ):
            files |= {path.resolve() for path in probe_files(step.against)}
    return frozenset(
        probe.label
        for probe in recipe.evaluate.all_probes
        if probe.is_all_in_files and all(Path(path).expanduser().resolve() in files for path in probe.item_files())
    )
