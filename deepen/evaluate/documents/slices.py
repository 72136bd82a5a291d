"""Bits per byte by category and by language: where in the held-out text a model gained or lost.

Sources of one ability are pooled, since a category may be spread over several. Slices are for people: they overlap the
scores of sources, so no rule, budget or test of several tasks looks at them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from deepen.evaluate.compare.documents import Documents, source_score
from deepen.evaluate.compare.statistics import Pairs, paired, stream
from deepen.evaluate.documents.material import Material
from deepen.formats.training.scores import Ability, Score

KINDS = ("category", "language")
NONE, OTHERS = "none", "others"
MOST_VALUES = 50
"""Values of one kind that are told apart; the documents of all rarer ones are taken together."""

_Row = tuple[float, float, int]
"""Nats of the base, nats of the model, bytes of one document."""


def slice_scores(
    base: pa.Table, model: pa.Table, material: Material, *, probe: str, seed: int, resamples: int
) -> list[Score]:
    """A score per ability and value of ``category`` and ``language``, named ``PROBE:KIND=VALUE``.

    Where an ability has one value only it says nothing beyond the sources and is left out. Documents without a value
    count as ``none``. Where the model gave a document no finite likelihood its slice has no score.
    """
    scores: list[Score] = []
    rows = _rows(base, model)
    for kind in KINDS:
        slices: dict[Ability, dict[str, list[_Row | None]]] = {"new": {}, "kept": {}}
        for (source, document), value in _values(material, kind):
            if (source, document) in rows:
                slices[material.abilities[source]].setdefault(value, []).append(rows[source, document])
        for ability, found in slices.items():
            for value in sorted(found) if len(found) > 1 else ():
                scores += _score(f"{probe}:{kind}={value}", ability, found[value], (seed, resamples))
    return scores


def _rows(base: pa.Table, model: pa.Table) -> dict[tuple[str, str], _Row | None]:
    """By source and id every document that the base scored; None where the model gave it no finite likelihood."""
    columns = ["source", "id", "nll", "bytes"]
    theirs = {
        (row["source"], row["id"]): row["nll"]
        for row in base.select(columns).to_pylist()
        if row["nll"] is not None
    }  # fmt: skip
    return {
        key: None if row["nll"] is None else (theirs[key], row["nll"], row["bytes"])
        for row in model.select(columns).to_pylist()
        if (key := (row["source"], row["id"])) in theirs
    }


def _values(material: Material, kind: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Source and id of every document with its value, rare ones as ``others``."""
    found = [
        ((source.name, row["id"]), row[kind] or NONE)
        for source in material.sources
        for row in material.columns(source, ["id", kind])
    ]
    common = {value for value, _ in Counter(value for _, value in found).most_common(MOST_VALUES)}
    return ((key, value if value in common else OTHERS) for key, value in found)


def _score(name: str, ability: Ability, rows: list[_Row | None], how: tuple[int, int]) -> list[Score]:
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        return []
    nll_base, nll_model, sizes = (np.array(column) for column in zip(*known, strict=True))
    documents = Documents(Pairs(nll_base, nll_model), int(sizes.sum()))
    change = paired(documents.nll, seed=stream(how[0], f"{ability} {name}"), resamples=how[1])
    return [source_score(documents, name, ability, change)]
