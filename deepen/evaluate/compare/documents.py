"""A model against the base on the same documents: bits per byte and how sure we are of the change.

bits per byte = sum of negative log-likelihoods (nats) / (ln 2 x UTF-8 bytes), per source.
Change of a source = its bits per byte / the base's - 1. Change of an ability = mean of the changes of its sources
(macro: a small source counts as much as a large one, so a collapse of one cannot hide behind the others).

Intervals: paired bootstrap clustered by document. Documents are drawn with replacement within every source, the same
draw for base and model, so that the difficulty of a document cancels; the interval spans the 2.5th to the 97.5th
percentile of the redrawn changes (the pairing follows E. Miller, "Adding Error Bars to Evals", 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deepen.errors import RunError
from deepen.evaluate.compare.statistics import RESAMPLES, Change, Pairs, mean_change, paired, stream
from deepen.formats.training.scores import Ability, Score


@dataclass(frozen=True)
class Documents:
    """Documents of one source scored by both models."""

    nll: Pairs
    """Nats; every document is a cluster."""
    num_bytes: int
    """Scored UTF-8 bytes of all documents together, the same for both models."""


def pair(base: pa.Table, model: pa.Table, source: str) -> Documents | None:
    """The documents of ``source`` in ``model``'s table that the base scored, beside the base's likelihoods.

    None when there are none, or when the model gave one of them no finite likelihood: leaving such documents out would
    flatter a broken model. Raises ``RunError`` when the two tables are not about the same text.
    """
    ours = model.filter(pc.equal(model["source"], source)).to_pylist()
    theirs = {row["id"]: row for row in base.filter(pc.equal(base["source"], source)).to_pylist()}
    both = [(theirs.get(row["id"]), row) for row in ours]
    # Another tokenizer makes other tokens of a text, but both models must be scored on the same bytes of it.
    if any(before is None or before["bytes"] != row["bytes"] for before, row in both):
        raise RunError(
            f"the held-out documents of `{source}` are not those that the base was scored on",
            hint="run the baseline and the evaluation again on the same curated corpus and tokenizer",
        )
    both = [(before, row) for before, row in both if before["nll"] is not None]  # type: ignore[index]
    if not both or any(row["nll"] is None for _, row in both):
        return None
    nll_base = np.array([before["nll"] for before, _ in both])  # type: ignore[index]
    nll = Pairs(nll_base, np.array([row["nll"] for _, row in both]))
    return Documents(nll, sum(row["bytes"] for _, row in both))


def compare(
    base: pa.Table,
    model: pa.Table,
    abilities: Mapping[str, Ability],
    *,
    probe: str,
    seed: int,
    resamples: int = RESAMPLES,
) -> list[Score]:
    """Scores of a model against the base: one per source in the order of ``abilities``, then one per ability.

    A source that cannot be compared has no score, and its ability then has none either (a mean over fewer sources would
    not be comparable with other checkpoints); a source without any scored document is no part of its ability. A source
    with a single document has no interval, and so has its ability.
    """
    scores: list[Score] = []
    changes: dict[str, Change] = {}
    for source, ability in abilities.items():
        documents = pair(base, model, source)
        if documents is not None:
            # Drawn by source: another source moves no interval, and every checkpoint is redrawn alike.
            changes[source] = paired(documents.nll, seed=stream(seed, source), resamples=resamples)
            scores.append(source_score(documents, f"{probe}:{source}", ability, changes[source]))
    lost = {
        ability for source, ability in abilities.items() if source not in changes and _was_scored(base, model, source)
    }
    for ability in ("new", "kept"):
        members = [score for score in scores if score.ability == ability]
        if members and ability not in lost:
            change = mean_change([changes[score.probe.removeprefix(f"{probe}:")] for score in members])
            scores.append(_mean_score(members, probe, change))
    return scores


def _was_scored(base: pa.Table, model: pa.Table, source: str) -> bool:
    """Whether the base scored any of the documents that the model was given."""
    rows = base.filter(pc.and_(pc.equal(base["source"], source), pc.is_valid(base["nll"])))
    return bool(pc.any(pc.is_in(rows["id"], model["id"].combine_chunks())).as_py())


def source_score(documents: Documents, probe: str, ability: Ability, change: Change) -> Score:
    """The score of some documents: both models' bits per byte with their change."""
    per_byte = 1 / (documents.num_bytes * np.log(2))
    return change.score(
        probe=probe,
        ability=ability,
        value=float(documents.nll.model.sum() * per_byte),
        baseline=float(documents.nll.base.sum() * per_byte),
        higher_is_better=False,
        items=documents.nll.num_clusters,
    )


def _mean_score(members: list[Score], probe: str, change: Change) -> Score:
    """The ability's score: means over its sources of values, baselines, changes and of every redraw's changes."""
    return change.score(
        probe=probe,
        ability=members[0].ability,
        value=float(np.mean([score.value for score in members])),
        baseline=float(np.mean([score.baseline for score in members])),
        higher_is_better=False,
        items=sum(score.items for score in members),
    )


def status(kept: Score | None, budget: float, *, measured: bool) -> str:
    """``ok``, ``warning`` (the estimate is over the budget) or ``breach`` (surely over it).

    The budget is a relative rise of bits per byte or drop of accuracy. Without a score: ``not finite`` if the kept
    ability was ``measured``, else ``not measured``.
    """
    if kept is None:
        return "not finite" if measured else "not measured"
    if not kept.is_budgeted:
        return "ok"
    interval = kept.relative_loss_interval
    if interval is not None and interval[0] > budget:
        return "breach"
    return "warning" if kept.relative_loss > budget else "ok"
