"""Item tables: what a model made of every question of a probe, and how that compares with the base.

One row per item, usable or not: an item that cannot be used has no value and carries the reason. The likelihood of
every choice is kept with its length, so any normalisation and every interval can be computed again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from deepen.errors import RunError
from deepen.evaluate.compare.statistics import Change, Pairs, clustered, mean_change, mean_of_shared, paired, stream
from deepen.evaluate.documents.likelihoods import NOT_FINITE
from deepen.formats.training.scores import Ability, Points, Score

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("cluster", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("reason", pa.string()),
        pa.field("gold", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("nll", pa.list_(pa.float64())),
        pa.field("bytes", pa.list_(pa.int64())),
        pa.field("tokens", pa.list_(pa.int64())),
        pa.field("cut_tokens", pa.int64()),
    ]
)

_EXAMPLES = 5
"""Items named for each reason in the manifest."""


@dataclass(frozen=True)
class Outcome:
    """One item and what a model made of it."""

    id: str
    task: str
    cluster: str
    """Items of one cluster (questions about one passage) are drawn together when intervals are computed."""
    value: float | None = None
    """1 right, 0 wrong, or another number; None when the item cannot be used."""
    reason: str | None = None
    """Why there is no value."""
    gold: str = ""
    answer: str = ""
    """The chosen or generated answer."""
    nll: tuple[float, ...] = ()
    """Nats of every choice given the prompt."""
    bytes: tuple[int, ...] = ()
    """UTF-8 bytes of every choice."""
    tokens: tuple[int, ...] = ()
    cut_tokens: int = 0
    """Tokens at the beginning of the prompt that the model has no positions for and was not shown."""


@dataclass(frozen=True)
class Kind:
    """How the items of a probe become scores."""

    label: str
    ability: Ability
    unit: str = "accuracy"
    higher_is_better: bool = True
    overall: bool = True
    """Whether the mean over tasks is a score too."""


def table_of(outcomes: Iterable[Outcome]) -> pa.Table:
    """Build a table; a value that is not finite becomes none, with the reason ``not_finite``."""
    rows = []
    for outcome in outcomes:
        row = {name: getattr(outcome, name) for name in SCHEMA.names}
        if outcome.value is not None and not math.isfinite(outcome.value):
            row |= {"value": None, "reason": NOT_FINITE}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def summary(table: pa.Table) -> dict[str, Any]:
    """Items, items used, items not used by reason with some of their ids, items whose prompt was cut, and the mean of
    every task."""
    rows = table.select(["id", "task", "value", "reason"]).to_pylist()
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    by_task: dict[str, list[float]] = {}
    for row in rows:
        if row["value"] is not None:
            by_task.setdefault(row["task"], []).append(row["value"])
    return {
        "items": len(rows),
        "used": sum(map(len, by_task.values())),
        "not_used": dict(sorted(reasons.items())),
        "examples": {
            reason: [row["id"] for row in rows if row["reason"] == reason][:_EXAMPLES] for reason in sorted(reasons)
        },
        "cut": pc.sum(pc.greater(table["cut_tokens"], 0)).as_py() or 0,
        "tasks": {task: {"items": len(values), "value": float(np.mean(values))} for task, values in by_task.items()},
        "chance": chances_of(table),
    }


def subset_of(table: pa.Table, *, num_items: int) -> dict[str, list[str]]:
    """By task, the ids of ``num_items`` usable items in all: each task has its share, those with the smallest hash."""
    by_task: dict[str, list[str]] = {}
    for row in table.select(["id", "task", "value"]).to_pylist():
        if row["value"] is not None:
            by_task.setdefault(row["task"], []).append(row["id"])
    shares = stratified({task: len(ids) for task, ids in by_task.items()}, num_items)
    return {task: smallest(ids, shares[task]) for task, ids in by_task.items()}


def stratified(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Split ``total`` over strata in proportion to their sizes (largest remainders), at least one of each."""
    everything = sum(sizes.values())
    if total >= everything:
        return dict(sizes)
    exact = {name: total * size / everything for name, size in sizes.items()}
    shares = {name: max(1, math.floor(value)) for name, value in exact.items()}
    # The largest remainders first; of equal ones the order is that of names.
    for name in sorted(exact, key=lambda name: (math.floor(exact[name]) - exact[name], name)):
        if sum(shares.values()) >= total:
            break
        shares[name] = min(sizes[name], shares[name] + 1)
    return shares


def smallest(ids: Sequence[str], count: int) -> list[str]:
    """The ``count`` ids with the smallest hashes: a choice that is the same whatever else is in the list."""
    return sorted(ids, key=lambda name: (xxhash.xxh3_64_intdigest(name.encode()), name))[:count]


def compare_items(base: pa.Table, model: pa.Table, kind: Kind, *, seed: int, resamples: int) -> list[Score]:
    """Scores of a model against the base on the same items: one per task when there are several, then their mean.

    The change is relative to the base. Where the base has nothing right in a task it is the difference of the means
    (``relative`` False): of a new ability for all tasks, so that one mean holds the whole gain; of a kept one for that
    task alone, which has nothing to lose and no part in the mean, unless all are so.

    A task of which the model gave an item no finite value has no score, and then there is no mean.
    """
    tasks = _paired_tasks(base, model, kind)
    return _scores(tasks, kind, is_single=len(tasks) == 1, draws=(seed, resamples), chances=chances_of(base))


def compare_without(
    base: pa.Table,
    model: pa.Table,
    kind: Kind,
    left_out: Collection[tuple[str, str]],
    *,
    seed: int,
    resamples: int,
) -> list[Score]:
    """The scores of ``compare_items`` that change when the items ``left_out`` (task, id) do not count.

    A task of which nothing is left has no score, and then there is no mean: it would be one over fewer tasks.
    """
    every, tasks = _paired_tasks(base, model, kind), _paired_tasks(base, model, kind, left_out)
    touched = {task for task, rows in every.items() if len(tasks.get(task, ())) < len(rows)}
    if not touched:
        return []
    is_single = len(every) == 1
    scores = _scores(tasks, kind, is_single=is_single, draws=(seed, resamples), chances=chances_of(base))
    names = {f"{kind.label}:{task}" for task in touched}
    if is_single or len(tasks) == len(every):
        names.add(kind.label)
    return [score for score in scores if score.probe in names]


def _scores(
    tasks: Mapping[str, Sequence[tuple[float, float | None, str]]],
    kind: Kind,
    *,
    is_single: bool,
    draws: tuple[int, int],
    chances: Mapping[str, float],
) -> list[Score]:
    """The score of every task whose values are complete, then their mean; ``draws``: seed and number of redraws."""
    seed, resamples = draws
    complete = {task: rows for task, rows in tasks.items() if all(ours is not None for _, ours, _ in rows)}
    known = [task for task, rows in complete.items() if sum(theirs for theirs, _, _ in rows) > 0]
    # Tasks without a relative change. Of a new ability one of them turns all to points, of a kept one all must be.
    in_points = set(complete).difference(known) if kind.ability == "new" or not known else set()
    # Only shares of items can be told in points; tasks of the lm-evaluation-harness may be measured otherwise.
    is_share = all(
        0 <= value <= 1 for rows in complete.values() for row in rows for value in row[:2] if value is not None
    )
    changes: dict[str, Change] = {}
    points: dict[str, Change] = {}
    scores: dict[str, Score] = {}
    for task, rows in complete.items():
        theirs, ours, clusters = zip(*rows, strict=True)
        relative = task in known and not in_points
        pairs = clustered(np.array(theirs), np.array(ours), clusters)
        seeds = stream(seed, f"{kind.label}:{task}")
        changes[task] = paired(pairs, seed=seeds, resamples=resamples, relative=relative)
        if relative and is_share:
            points[task] = paired(pairs, seed=seeds, resamples=resamples, relative=False)
        means = float(np.mean(ours)), float(np.mean(theirs))
        name = kind.label if is_single and kind.overall else f"{kind.label}:{task}"
        told = _Told(points.get(task), chances.get(task))
        scores[task] = _score(kind, name, means, (changes[task], relative, len(rows)), told)
    found = list(scores.values())
    if kind.overall and tasks and not is_single and len(complete) == len(tasks):
        counted = list(complete) if in_points else known
        members = [scores[task] for task in counted]
        means = float(np.mean([one.value for one in members])), float(np.mean([one.baseline for one in members]))
        change = _mean_change({task: (complete[task], changes[task]) for task in counted}, not in_points, draws)
        told = _Told()
        if points:
            told = _Told(_mean_change({task: (complete[task], points[task]) for task in counted}, False, draws))
        if all(task in chances for task in counted):
            told = replace(told, chance=float(np.mean([chances[task] for task in counted])))
        found.append(_score(kind, kind.label, means, (change, not in_points, sum(one.items for one in members)), told))
    return found


def _mean_change(
    tasks: Mapping[str, tuple[Sequence[tuple[float, float | None, str]], Change]],
    relative: bool,
    draws: tuple[int, int],
) -> Change:
    """The mean of the tasks' changes; clusters that several tasks have in common are drawn for all of them together."""
    places: dict[str, int] = {}
    apart = 0
    for rows, _ in tasks.values():
        clusters = {cluster for _, _, cluster in rows}
        apart += len(clusters)
        for cluster in sorted(clusters):
            places.setdefault(cluster, len(places))
    changes = [change for _, change in tasks.values()]
    # No cluster stands in two tasks: these are independent.
    if apart == len(places) or any(change.interval is None for change in changes):
        return mean_change(changes)
    aligned = []
    for rows, _ in tasks.values():
        at = [places[cluster] for _, _, cluster in rows]
        # Clusters that a task has nothing of stay 0 in all three: they are drawn, and add nothing.
        columns = np.array([(theirs, ours, 1.0) for theirs, ours, _ in rows], dtype=np.float64).T
        aligned.append(Pairs(*(np.bincount(at, weights=column, minlength=len(places)) for column in columns)))
    return mean_of_shared(aligned, seed=stream(draws[0], "mean"), resamples=draws[1], relative=relative)


def _paired_tasks(
    base: pa.Table, model: pa.Table, kind: Kind, left_out: Collection[tuple[str, str]] = ()
) -> dict[str, list[tuple[float, float | None, str]]]:
    """By task ``(base's value, model's value, cluster)`` of every item that the base could be measured on, those
    ``left_out`` (task, id) aside."""
    theirs = {(row["task"], row["id"]): row for row in base.select(["task", "id", "value", "gold"]).to_pylist()}
    tasks: dict[str, list[tuple[float, float | None, str]]] = {}
    for row in model.select(["task", "id", "value", "gold", "cluster"]).to_pylist():
        before = theirs.get((row["task"], row["id"]))
        # The right answer, too: line numbers serve as ids, and are the same in any file.
        if before is None or before["gold"] != row["gold"]:
            raise RunError(
                f"the items of `{kind.label}` are not those that the base was measured on",
                hint="make the baseline and the evaluation again on the same items",
            )
        if before["value"] is not None and (row["task"], row["id"]) not in left_out:
            tasks.setdefault(row["task"], []).append((before["value"], row["value"], row["cluster"]))
    return tasks


def chances_of(table: pa.Table) -> dict[str, float]:
    """By task what guessing would get: the mean of 1 / number of choices, where every item that counts has choices."""
    found: dict[str, list[float | None]] = {}
    for row in table.select(["task", "value", "nll"]).to_pylist():
        if row["value"] is not None:
            found.setdefault(row["task"], []).append(1 / len(row["nll"]) if len(row["nll"] or ()) > 1 else None)
    known = {task: [one for one in values if one is not None] for task, values in found.items()}
    return {task: float(np.mean(known[task])) for task, values in found.items() if len(known[task]) == len(values)}


@dataclass(frozen=True)
class _Told:
    """What a score says beside its change."""

    points: Change | None = None
    chance: float | None = None


def _score(kind: Kind, name: str, means: tuple[float, float], found: tuple[Change, bool, int], told: _Told) -> Score:
    change, relative, items = found
    plain = told.points
    return change.score(
        probe=name,
        ability=kind.ability,
        value=means[0],
        baseline=means[1],
        higher_is_better=kind.higher_is_better,
        items=items,
        unit=kind.unit,
        relative=relative,
        points=None
        if plain is None
        else Points(difference=plain.difference, interval=plain.interval, minimum_detectable=plain.minimum_detectable),
        chance=told.chance,
    )
