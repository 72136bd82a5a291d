"""Bits per byte by category and language."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from deepen.evaluate.documents.likelihoods import table_of
from deepen.evaluate.documents.material import HeldOutSource, Material
from deepen.evaluate.documents.slices import MOST_VALUES, slice_scores
from deepen.formats.documents.documents import Document, write_documents
from deepen.formats.training.scores import Score

ROLES = {"law": "domain", "press": "domain", "web": "replay"}


def material(folder: Path, documents: dict[str, list[tuple[str | None, str | None]]]) -> Material:
    """Sources whose documents are given by category and language."""
    for source, rows in documents.items():
        made = [
            Document(id=f"{place}", text="x", source=source, category=category, language=language)
            for place, (category, language) in enumerate(rows)
        ]
        write_documents(folder / f"{source}.parquet", made, folder)
    sources = tuple(HeldOutSource(name, ROLES[name], folder / f"{name}.parquet") for name in documents)
    return Material(sources, folder, None)


def likelihoods(nll: dict[str, list[float]], num_bytes: int = 10) -> pa.Table:
    rows = [(str(place), source, value) for source, values in nll.items() for place, value in enumerate(values)]
    ids, sources, values = map(list, zip(*rows, strict=True))
    sizes = np.full(len(ids), num_bytes), np.full(len(ids), 3)
    return table_of(ids, sources, np.array(values, dtype=float), sizes, [None] * len(ids))


def scored(found: Material, base: pa.Table, model: pa.Table) -> dict[tuple[str, str], Score]:
    scores = slice_scores(base, model, found, probe="held_out", seed=1, resamples=200)
    return {(score.probe, score.ability): score for score in scores}


def test_documents_of_one_category_are_pooled_over_sources(tmp_path: Path) -> None:
    found = material(
        tmp_path,
        {"law": [("civil", None), ("penal", None)], "press": [("civil", None), (None, None)], "web": [("civil", None)]},
    )
    base = likelihoods({"law": [10, 10], "press": [30, 10], "web": [10]})
    model = likelihoods({"law": [5, 10], "press": [15, 20], "web": [11]})
    scores = scored(found, base, model)
    civil = scores["held_out:category=civil", "new"]
    assert civil.items == 2 and civil.difference == pytest.approx(-0.5) and civil.interval is not None
    assert civil.value == pytest.approx(20 / (20 * np.log(2)))
    assert {ability for _, ability in scores} == {"new"}, "one category says nothing beyond the sources"
    assert scores["held_out:category=none", "new"].difference == pytest.approx(1.0)
    assert not any("language" in probe for probe, _ in scores)


def test_a_document_that_the_model_gives_nothing_finite_costs_its_slice_the_score(tmp_path: Path) -> None:
    found = material(tmp_path, {"law": [(None, "de"), (None, "en"), (None, "en")]})
    base, model = likelihoods({"law": [10, 10, 10]}), likelihoods({"law": [9, float("nan"), 9]})
    assert set(scored(found, base, model)) == {("held_out:language=de", "new")}


def test_documents_that_the_base_could_not_score_are_left_out_of_both(tmp_path: Path) -> None:
    found = material(tmp_path, {"law": [(None, "de"), (None, "en"), (None, "en")]})
    base, model = likelihoods({"law": [10, float("nan"), 10]}), likelihoods({"law": [9, 5, 8]})
    assert scored(found, base, model)["held_out:language=en", "new"].difference == pytest.approx(-0.2)


def test_rare_values_are_taken_together(tmp_path: Path) -> None:
    rows = [(f"c{place}", None) for place in range(MOST_VALUES) for _ in range(2)] + [("rare", None), ("rarer", None)]
    found = material(tmp_path, {"law": rows})
    scores = scored(found, likelihoods({"law": [10.0] * len(rows)}), likelihoods({"law": [9.0] * len(rows)}))
    assert len(scores) == MOST_VALUES + 1
    assert scores["held_out:category=others", "new"].items == 2
