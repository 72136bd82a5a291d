"""Everything measured while training: told by steps, taken over afterwards, and never of other weights."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from deepen.evaluate.config import EvaluateConfig
from deepen.evaluate.documents.likelihoods import part_of
from deepen.evaluate.during_training.in_loop import FullTables, Pace
from deepen.evaluate.items.tables import Outcome, table_of
from deepen.evaluate.probes.samples import Samples
from deepen.formats.manifest import Artifact, CodeVersion, Manifest


@pytest.mark.parametrize(
    ("every", "full_every", "expected"),
    [(5, 25, {25, 50, 75, 98}), (4, 25, {28, 52, 76, 98}), (10, 4, {*range(10, 98, 10), 98}), (30, 98, {98})],
)
def test_the_first_measurement_at_or_after_every_so_many_steps_is_full(
    every: int, full_every: int, expected: set[int]
) -> None:
    pace = Pace(every, total_steps=98, full_steps=full_every)
    assert {step for step in (*range(every, 98, every), 98) if pace.is_full(step)} == expected
    assert not any(Pace(every, total_steps=98).is_full(step) for step in range(1, 99))


def test_only_what_was_measured_last_is_named(tmp_path: Path) -> None:
    counts = {"probes": {"samples": {"mark": "m"}}}
    manifest = Manifest(
        stage="baseline", format=1, fingerprint="x", config={}, inputs={}, counts=counts,
        code=CodeVersion(version="0"), started="", finished="",
    )  # fmt: skip
    kept = FullTables(tmp_path, Artifact(tmp_path, manifest))
    table = table_of([Outcome("a", "x", "a", value=1.0), Outcome("b", "x", "b", value=0.0)])
    kept.begin(5)
    kept.keep(Samples(), table)
    assert kept.at(5)["samples"]["hash"] and kept.at(4) == {}
    kept.begin(5)  # reached again, and the probe fails this time
    assert kept.at(5) == {}
    assert part_of(table, frozenset({"b", "c"}))["id"].to_pylist() == ["b"]
    assert part_of(table, frozenset()).schema == table.schema and isinstance(table, pa.Table)


@pytest.mark.parametrize(
    ("settings", "path", "message"),
    [
        ({"full_every": "10min"}, "evaluate.full_every", "another number of steps"),
        ({"full_every": "200 steps"}, "evaluate.full_every", "the run has 100"),
        ({"full_every": "0.1%"}, "evaluate.full_every", "is 0 steps"),
        ({"full_every": "50%", "lag": "5 steps"}, "evaluate.full_every", "another process"),
        ({"full_every": "50%", "every": "10min"}, "evaluate.every", "fixed steps"),
    ],
)
def test_what_cannot_be_measured_in_full_is_told_before(settings: dict[str, str], path: str, message: str) -> None:
    from deepen.evaluate.config import problems

    found = problems(EvaluateConfig.model_validate(settings), total_steps=100, tokens_per_step=10)
    assert any(one.path == path and message in one.message for one in found), found
