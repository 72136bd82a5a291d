"""What is decided about the whole corpus between the passes: the held-out split, then the corpus steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepen.curate.config import CurateConfig
from deepen.curate.duplicates.clusters import find_clusters, similarities
from deepen.curate.duplicates.near_duplicates import NearDuplicates
from deepen.curate.duplicates.pairs import SIMILARITY
from deepen.curate.passes.corpus import Corpus, PartFiles, Positions, open_corpus, save_array
from deepen.curate.passes.held_out import SourcePlan, Split, split
from deepen.curate.passes.parts import DECISION, FIRST_REASON, HELD_OUT
from deepen.errors import RunError
from deepen.formats.documents.documents import read_tables
from deepen.formats.manifest import open_artifact
from deepen.progress import say


def decide(
    config: CurateConfig, roles: Mapping[str, str], parts: Sequence[tuple[int, PartFiles]], pair_files: Sequence[Path]
) -> tuple[str, ...]:
    """Write a decision file for every part, given as (source number, files); returns the drop reasons of the codes.

    ``roles`` names the sources in order. Raises ``RunError`` when the run to hold out from is not curated.
    """
    if not parts:
        return ()
    corpus = open_corpus(parts, pair_files, list(roles))
    frozen = _frozen(config.held_out.from_run)
    plans = [SourcePlan(name, role, frozen.get(name)) for name, role in roles.items()]
    say(f"curate: comparing {corpus.num_documents} documents")
    chosen = split(corpus, find_clusters(corpus, SIMILARITY), plans, config.held_out)
    decisions, kept, reasons = _decisions(config, corpus, chosen)
    _save(corpus, decisions, kept)
    return reasons


def pair_range(config: CurateConfig) -> tuple[float, float]:
    """The least similarity of pairs that any reader needs, and the greatest at which one joins documents."""
    wanted = [SIMILARITY, *(step.similarity for step in config.corpus_steps if isinstance(step, NearDuplicates))]
    return min(wanted), max(wanted)


def _decisions(
    config: CurateConfig, corpus: Corpus, chosen: Split
) -> tuple[np.ndarray[Any, Any], Positions, tuple[str, ...]]:
    """Code and value for every document, the document that stays in its place (or -1), and what the codes mean."""
    decisions = np.zeros(corpus.num_documents, dtype=[("code", "u1"), ("value", "<f8")])
    kept = np.full(corpus.num_documents, -1, dtype=np.int64)
    reasons = ["held_out_duplicate", "beyond_held_out_cap"]
    decisions["code"][chosen.held_out] = HELD_OUT
    copies = np.flatnonzero(chosen.copy_of >= 0)
    decisions["code"][copies] = FIRST_REASON
    decisions["value"][copies] = similarities(corpus, copies, chosen.copy_of[copies])
    kept[copies] = chosen.copy_of[copies]
    # Watched documents are scored or dropped, never trained.
    unused = np.flatnonzero(chosen.watched & (decisions["code"] == 0))
    decisions["code"][unused] = FIRST_REASON + 1
    decisions["value"][unused] = corpus.index["num_bytes"][unused]
    for step in config.corpus_steps:
        drops = step.apply(corpus, decisions["code"] == 0)  # each step sees what the ones before have left
        if drops.reason not in reasons:
            reasons.append(drops.reason)
        decisions["code"][drops.documents] = FIRST_REASON + reasons.index(drops.reason)
        decisions["value"][drops.documents] = drops.values
        if drops.kept is not None:
            kept[drops.documents] = drops.kept
    return decisions, kept, tuple(reasons)


def _save(corpus: Corpus, decisions: np.ndarray[Any, Any], kept: Positions) -> None:
    """The decisions of each part in a file, with the ids of documents that stay instead of dropped ones."""
    dropped = np.flatnonzero(kept >= 0)
    kept_ids = corpus.ids(kept[dropped])
    firsts = corpus.stored.first_documents
    for number, files in enumerate(corpus.stored.parts):
        own = np.zeros(int(firsts[number + 1] - firsts[number]), dtype=DECISION)
        own["code"] = decisions["code"][firsts[number] : firsts[number + 1]]
        own["value"] = decisions["value"][firsts[number] : firsts[number + 1]]
        # `dropped` ascends, so a part's own are one stretch.
        begin, end = np.searchsorted(dropped, firsts[number : number + 2])
        own["kept_id"][dropped[begin:end] - firsts[number]] = kept_ids[begin:end]
        save_array(files.decisions, own)


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
