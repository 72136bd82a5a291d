"""Which test items stand in documents that were trained: asked of a search that is handed in, and kept on record.

Only probes whose items curation did not keep out are looked for. What an earlier evaluation found in the same documents
is taken over, so that a probe that comes later costs one pass for its own items. A search that fails fails alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepen.evaluate.config import EvaluateConfig
from deepen.evaluate.during_training.guard import Failure, attempt
from deepen.evaluate.probes.probe import Probe
from deepen.formats.documents.found_items import CONTAMINATION, Found, Hit, ProbeItem
from deepen.formats.files.atomic import FileEntry
from deepen.formats.files.records import read_records, write_records
from deepen.formats.manifest import StageJob, fingerprint
from deepen.formats.taken_over import intact_files

SCRATCH = "contamination.tmp"
"""What a search that goes on keeps, in the directory of ``evaluate``."""
_MEASURES = ("13_gram", "8_grams", "phrase")

Scan = Callable[[Sequence[ProbeItem], Path], Found]
"""Looks for items in the trained documents; it may keep what is done in the folder, to go on after a kill."""


@dataclass(frozen=True)
class Scanning:
    """How test items are looked for."""

    scan: Scan
    mark: str
    """Identity of the documents, and of how they are looked through."""
    kept_out: frozenset[str] = frozenset()
    """Probes whose items curation kept out."""
    not_scanned: tuple[str, ...] = ()
    """Trained sources without text to look through."""


@dataclass(frozen=True)
class Contamination:
    """What was found."""

    hits: tuple[Hit, ...] = ()
    """By probe in the order of the recipe."""
    counts: dict[str, Any] | None = None
    """For the manifest; None when nothing was looked for."""
    files: tuple[FileEntry, ...] = ()

    def left_out(self, probe: Probe) -> frozenset[tuple[str, str]]:
        """``(task, id)`` of the items of ``probe`` that were found."""
        return frozenset((hit.task, hit.id) for hit in self.hits if hit.probe == probe.label)


@dataclass
class _Search:
    job: StageJob
    scanning: Scanning
    marks: dict[str, str] = field(default_factory=dict)
    """By probe that takes part."""
    items: list[ProbeItem] = field(default_factory=list)
    """To be looked for now."""
    known: dict[str, tuple[dict[str, Any], list[Hit]]] = field(default_factory=dict)
    """By probe, counts and hits of an earlier evaluation."""
    kept_out: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, probe: Probe) -> None:
        """Take the probe's items over, collect them, or note why not."""
        label, mark = probe.label, self._mark(probe)
        if label in self.scanning.kept_out:
            self.kept_out.append(label)
            return
        earlier = self._earlier(label, mark)
        if earlier is not None:
            self.known[label], self.marks[label] = earlier, mark
            return
        items = attempt(label, probe.time_limit.value, probe.items_to_scan, what="the items of probe")
        if isinstance(items, Failure):
            self.failed[label] = items.reason
        elif items is not None:
            self.items += items
            self.marks[label] = mark

    def _mark(self, probe: Probe) -> str:
        named = f"probe_files:{probe.label}"
        inputs = {name: entry.fingerprint for name, entry in self.job.raw_inputs.items() if name == named}
        return fingerprint("contamination", 1, {"probe": probe}, inputs | {"documents": self.scanning.mark})

    def _earlier(self, label: str, mark: str) -> tuple[dict[str, Any], list[Hit]] | None:
        previous = self.job.previous
        if previous is None:
            return None
        counts = (previous.counts.get("contamination") or {}).get("probes", {}).get(label)
        if counts is None or counts["mark"] != mark or not intact_files(previous, lambda name: name == CONTAMINATION):
            return None
        records = read_records(previous.path / CONTAMINATION)
        return counts, [Hit.model_validate(one, strict=False) for one in records if one["probe"] == label]

    def found(self) -> Found:
        """Look for the collected items; when that fails, none of their probes is known anything about."""
        if not self.items:
            return Found(())
        found = attempt(
            "contamination", None, lambda: self.scanning.scan(self.items, self.job.out / SCRATCH), what="the search for"
        )
        if isinstance(found, Failure):
            lost = {item.probe for item in self.items}
            self.failed |= dict.fromkeys(sorted(lost), found.reason)
            self.marks = {label: mark for label, mark in self.marks.items() if label not in lost}
            return Found(())
        return found


def look_for_items(config: EvaluateConfig, job: StageJob, scanning: Scanning | None) -> Contamination:
    """Look for the items of all probes that have a baseline and were not kept out; writes ``contamination.jsonl``.

    Nothing when the settings say so, or no search was handed in.
    """
    if scanning is None or not config.contamination_scan:
        return Contamination()
    search, without_base = _Search(job, scanning), job.inputs["baseline"].counts.get("failed", {})
    for probe in config.all_probes:
        if probe.label not in without_base:
            search.add(probe)
    found = search.found()
    return _record(search, found)


def _record(search: _Search, found: Found) -> Contamination:
    """Everything that is known by now, written and counted."""
    job, hits = search.job, list[Hit]()
    counts: dict[str, Any] = {}
    for label, mark in search.marks.items():
        if label in search.known:
            counts[label], own = search.known[label]
        else:
            own = [hit for hit in found.hits if hit.probe == label]
            items = [item for item in search.items if item.probe == label]
            counts[label] = {"mark": mark, **_counted(items, own), "too_short": found.too_short.get(label, 0)}
        hits += own
    if not (counts or search.failed or search.kept_out):
        return Contamination()
    told = {
        "probes": counts, "kept_out": search.kept_out, "failed": search.failed,
        "not_scanned": list(search.scanning.not_scanned),
    }  # fmt: skip
    entry = write_records(job.out / CONTAMINATION, (hit.model_dump(mode="json") for hit in hits), job.out)
    return Contamination(tuple(hits), told, (entry,))


def _counted(items: Sequence[ProbeItem], hits: Sequence[Hit]) -> dict[str, Any]:
    measures, asked, found = (
        Counter(hit.measure for hit in hits),
        Counter(item.task for item in items),
        Counter(hit.task for hit in hits),
    )
    return {
        "items": len(items),
        "hits": len(hits),
        "measures": {name: measures[name] for name in _MEASURES if measures[name]},
        "tasks": {task: {"items": number, "hits": found[task]} for task, number in asked.items()},
    }


def described(label: str, counts: Mapping[str, Any]) -> str:
    """One probe's outcome in a sentence: ``3 of 20 items stand in trained documents (13_gram 2, phrase 1)``."""
    text = f"{counts['hits']:,} of {counts['items']:,} items stand in trained documents"
    if counts["measures"]:
        text += f" ({', '.join(f'{name} {number:,}' for name, number in counts['measures'].items())})"
    if counts["too_short"]:
        text += f"; {counts['too_short']:,} are too short to be looked for"
    return f"{label}: {text}"
