"""What is decided about the whole corpus between the passes: the held-out split, then the corpus steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepen.curate.clusters import find_clusters, similarities
from deepen.curate.config import CurateConfig
from deepen.curate.corpus import Corpus, PartFiles, open_corpus, save_array
from deepen.curate.held_out import SourcePlan, Split, split
from deepen.curate.passes import DECISION, FIRST_REASON, HELD_OUT
from deepen.errors import RunError
from deepen.formats.documents import read_tables
from deepen.formats.manifest import open_artifact
from deepen.progress import say


def decide(config: CurateConfig, roles: Mapping[str, str], parts: Sequence[tuple[int, PartFiles]]) -> tuple[str, ...]:
    """Write a decision file for every part, given as (source number, files); returns the drop reasons of the codes.

    ``roles`` names the sources in order. Raises ``RunError`` when the run to hold out from is not curated.
    """
    if not parts:
        return ()
    corpus = open_corpus(parts, parts[0][1].partial / "all.shingles.u32")
    frozen = _frozen(config.held_out.from_run)
    plans = [SourcePlan(name, role, frozen.get(name)) for name, role in roles.items()]
    say(f"curate: comparing {corpus.num_documents} documents")
    chosen = split(corpus, find_clusters(corpus), plans, config.held_out)
    decisions, reasons = _decisions(config, corpus, chosen)
    row = 0
    for _, files in parts:
        num_rows = len(np.load(files.index, mmap_mode="r"))
        save_array(files.decisions, decisions[row : row + num_rows])
        row += num_rows
    return reasons


def _decisions(config: CurateConfig, corpus: Corpus, chosen: Split) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """``DECISION`` for every document, and the reasons that its codes mean."""
    decisions = np.zeros(corpus.num_documents, dtype=DECISION)
    reasons = ["held_out_duplicate", "beyond_held_out_cap"]
    decisions["code"][chosen.held_out] = HELD_OUT
    copies = np.flatnonzero(chosen.copy_of >= 0)
    decisions["code"][copies] = FIRST_REASON
    decisions["value"][copies] = similarities(corpus, copies, chosen.copy_of[copies])
    unused = np.flatnonzero(chosen.watched & (decisions["code"] == 0))
    decisions["code"][unused] = FIRST_REASON + 1
    decisions["value"][unused] = corpus.index["num_bytes"][unused]
    for step in config.corpus_steps:
        drops = step.apply(corpus, decisions["code"] == 0)
        if drops.reason not in reasons:
            reasons.append(drops.reason)
        decisions["code"][drops.documents] = FIRST_REASON + reasons.index(drops.reason)
        decisions["value"][drops.documents] = drops.values
    return decisions, tuple(reasons)


def _frozen(run: str | None) -> dict[str, set[tuple[int, int]]]:
    """Content hashes (as two halves) that an earlier run held out, by source."""
    if run is None:
        return {}
    artifact = open_artifact(Path(run).expanduser() / "curate")
    if artifact is None:
        raise RunError(
            f"`held_out.from`: `{run}` has no finished curate stage", hint="give the folder of a run that was curated"
        )
    return {path.stem: set(_hashes(path)) for path in sorted((artifact.path / "held_out").glob("*.parquet"))}


def _hashes(path: Path) -> Iterator[tuple[int, int]]:
    for table in read_tables(path, ["content_hash"]):
        for digits in table["content_hash"].to_pylist():
            yield int(digits[:16], 16), int(digits[16:], 16)
