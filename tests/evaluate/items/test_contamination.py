"""Items that stand in trained documents, in the evaluation stage: who is asked for, what scores are without them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deepen.evaluate import stage
from deepen.evaluate.compare.summary_table import contamination_lines
from deepen.evaluate.config import EvaluateConfig
from deepen.evaluate.items.contaminated import Scanning
from deepen.evaluate.items.tables import Kind, Outcome, compare_items, compare_without, table_of
from deepen.evaluate.stage import evaluate
from deepen.formats.documents.found_items import Found, Hit, ProbeItem
from deepen.formats.manifest import Artifact, Manifest, StageJob
from deepen.model.config import ResolvedBase
from tests.evaluate.probes.test_probes import CPU, ROWS, TEXTS, Run, exam

KIND = Kind("exam", "new")


def table(values: dict[str, dict[str, float]]) -> Any:
    return table_of(
        Outcome(name, task, name, value=value) for task, own in values.items() for name, value in own.items()
    )


def without(base: Any, model: Any, *left_out: tuple[str, str]) -> dict[str, tuple[float, float, int]]:
    found = compare_without(base, model, KIND, left_out, seed=1, resamples=200)
    return {one.probe: (one.value, one.baseline, one.items) for one in found}


def test_a_score_without_items_is_that_of_the_others() -> None:
    base = table({"t": {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}})
    model = table({"t": {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0}})
    assert without(base, model, ("t", "b"), ("t", "nobody")) == {"exam": (pytest.approx(2 / 3), 1.0, 3)}
    rest = [table({"t": {k: v for k, v in values.items() if k != "b"}}) for values in (
        {"a": 1.0, "c": 1.0, "d": 1.0}, {"a": 1.0, "c": 0.0, "d": 1.0},
    )]  # fmt: skip
    (plain,) = compare_items(*rest, KIND, seed=1, resamples=200)
    (found,) = compare_without(base, model, KIND, [("t", "b")], seed=1, resamples=200)
    assert found == plain
    assert without(base, model, ("t", "nobody")) == {}
    assert without(base, model, *(("t", name) for name in "abcd")) == {}


def test_of_several_tasks_only_the_touched_and_their_mean_change() -> None:
    base = table({"t": {"a": 1.0, "b": 1.0}, "u": {"a": 1.0, "b": 0.0}})
    model = table({"t": {"a": 0.0, "b": 1.0}, "u": {"a": 1.0, "b": 1.0}})
    assert without(base, model, ("t", "a")) == {"exam:t": (1.0, 1.0, 1), "exam": (1.0, 0.75, 3)}
    assert without(base, model, ("t", "a"), ("t", "b")) == {}  # no mean over fewer tasks, and u is as it was


class Search:
    """A search that finds the items with certain ids, and notes what it was asked."""

    def __init__(self, *found: str) -> None:
        self.found, self.asked = found, list[ProbeItem]()

    def __call__(self, items: Sequence[ProbeItem], scratch: Path) -> Found:
        self.asked = list(items)
        (scratch / "half").mkdir(parents=True)
        return Found(
            tuple(
                Hit(probe=one.probe, task=one.task, id=one.id, measure="phrase", value=6, documents=1, first=("d",))
                for one in items
                if one.id in self.found
            )
        )


def evaluated(
    run: Run,
    config: EvaluateConfig,
    search: Search,
    previous: Artifact | None = None,
    out: str = "evaluate",
    **more: Any,
) -> Manifest:
    job = StageJob(run.out / out, out, run.inputs, run.raw, previous=previous)
    scanning = Scanning(search, "documents", **more)
    manifest = evaluate(config, job, base=run.base, compute=CPU, scanning=scanning)
    assert not (job.out / "contamination.tmp").exists()
    return manifest


@pytest.fixture
def run(tmp_path: Path, base: ResolvedBase, curated: Any, tokenized: Artifact, trained: Any) -> Run:
    inputs = {"curate": curated(TEXTS), "tokenize": tokenized, "train": trained({5: 1.0})}
    return Run(tmp_path / "run", base, inputs)


def two_exams(tmp_path: Path) -> EvaluateConfig:
    config = exam(tmp_path)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({**row, "task": f"t{n % 2}"}) + "\n" for n, row in enumerate(ROWS[:6])))
    probe = {"use": "multiple_choice", "name": "other", "path": str(other), "by": "task", "in_loop": False}
    return EvaluateConfig.model_validate({"probes": [*(p.model_dump() for p in config.probes), probe]})


def test_a_task_of_which_all_items_are_found_has_no_score_without_them(run: Run, tmp_path: Path) -> None:
    config = two_exams(tmp_path)
    run.baseline(config)
    search = Search("line 1", "line 3", "line 5")  # all of task t0
    counts = evaluated(run, config, search).counts
    (scores,) = run.scores()
    assert {one.id for one in search.asked} == {f"line {n}" for n in range(1, 31)} and len(search.asked) == 36
    assert [one.probe for one in scores.without_hits] == ["exam"] and scores.without_hits[0].items == 27
    assert counts["contamination"]["probes"]["other"]["tasks"] == {
        "t0": {"items": 3, "hits": 3}, "t1": {"items": 3, "hits": 0},
    }  # fmt: skip
    lines = contamination_lines([scores], counts)
    assert "contamination: other: 3 of 6 items stand in trained documents (phrase 3)" in lines
    told = [line for line in lines if line.endswith("no score without them: too few are left")]
    assert [line.split()[3] for line in told] == ["other:t0", "other"]
    assert scores.of("other:t1", "new") is not None and not any("other:t1" in line for line in lines)


def test_what_is_known_of_the_same_items_and_documents_is_taken_over(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = exam(tmp_path)
    run.baseline(config)
    first = evaluated(run, config, Search("line 2"))
    longer = two_exams(tmp_path)
    old = Artifact(run.out / "baseline", run.inputs["baseline"].manifest)
    run.baseline(longer, "baseline.redo", old)
    search, measured = Search("line 4"), list[str]()
    measure = stage._measured
    monkeypatch.setattr(stage, "_measured", lambda *given: (measured.append(given[0].label), measure(*given))[1])
    damaged = run.out / "evaluate" / "held_out" / "step-000005.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    manifest = evaluated(run, longer, search, Artifact(run.out / "evaluate", first), "again")
    assert {one.probe for one in search.asked} == {"other"} and measured == ["held_out", "other"]
    hits = [json.loads(line) for line in (run.out / "again" / "contamination.jsonl").read_text().splitlines()]
    assert [(hit["probe"], hit["id"]) for hit in hits] == [("exam", "line 2"), ("other", "line 4")]
    assert manifest.counts["contamination"]["probes"]["exam"] == first.counts["contamination"]["probes"]["exam"]
    record = run.out / "evaluate" / "contamination.jsonl"
    record.write_bytes(record.read_bytes().replace(b"line 2", b"line 3"))
    search = Search("line 2")
    evaluated(run, longer, search, Artifact(run.out / "evaluate", first), "third")
    assert {one.probe for one in search.asked} == {"exam", "other"}


def test_who_is_not_looked_for_is_told(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = two_exams(tmp_path)
    run.baseline(config)
    (tmp_path / "exam.jsonl").unlink()
    linked = stage.table_file(config.probes[1], 5)
    (run.out / "evaluate" / linked).parent.mkdir(parents=True)
    (run.out / "evaluate" / linked).write_bytes((run.out / "baseline" / "exam.parquet").read_bytes())
    search = Search()
    more = {"kept_out": frozenset({"other"}), "not_scanned": ("rows",)}
    counts = evaluated(run, config, search, **more).counts["contamination"]
    assert counts["kept_out"] == ["other"] and search.asked == [] and counts["probes"] == {}
    assert "cannot be read" in counts["failed"]["exam"]
    said = capfd.readouterr().err
    assert "the items of probe `exam` failed: the test items in" in said
    assert "contamination: not looked through, since they have no text: rows" in said
