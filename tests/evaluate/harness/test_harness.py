"""The lm-evaluation-harness as a probe: parity with its own command, and what it must not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepen.errors import DeepenError
from deepen.evaluate.documents.material import Material
from deepen.evaluate.items.tables import summary
from deepen.evaluate.probes.choices import MultipleChoice
from deepen.evaluate.probes.harness import LmEval
from deepen.model.loss.model import LossModel

pytestmark = [pytest.mark.slow]
ROWS = [{"q": f"the cat {n}", "choices": ["sat", "fever", "mat"], "gold": n % 3} for n in range(24)]

LONG = "{{q}}{% if q == 'the cat 5' %}{{' fever' * 80}}{% endif %}"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A local task with two random examples before every question."""
    pytest.importorskip("lm_eval")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = {
        "task": "cats", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test", "fewshot_split": "test", "num_fewshot": 2, "output_type": "multiple_choice",
        "doc_to_text": "{{q}}", "doc_to_choice": "{{choices}}", "doc_to_target": "gold",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    }  # fmt: skip
    (tmp_path / "about_cats.yaml").write_text(json.dumps(settings, indent=1))
    return tmp_path / "about_cats.yaml"


@pytest.mark.filterwarnings("ignore")
def test_local_tasks_are_asked_with_the_same_prompts_every_time(
    task: Path, model: LossModel, material: Callable[..., Material]
) -> None:
    probe = LmEval(tasks=(str(task),))
    assert {Path(name).name for name in probe.files()} == {"about_cats.yaml", "rows.jsonl"}
    assert [Path(name).name for name in probe.item_files()] == ["rows.jsonl"]
    made = material(["x"])
    measure = probe.prepare(made)
    rows = {row["id"]: row for row in measure(model, None).to_pylist()}
    assert {row["id"]: row for row in measure(model, None).to_pylist()} == rows and len(rows) == 24
    few = frozenset({"cats:3", "cats:17"})
    subset = probe.prepare(replace(made, only=few))(model, None).to_pylist()
    assert {row["id"] for row in subset} == few
    for row in subset:  # random examples depend on the order of items, a subset must not see others
        assert row["nll"] == pytest.approx(rows[row["id"]]["nll"], rel=1e-5)
    scanned = {item.id: item for item in probe.items_to_scan()}
    assert set(scanned) == set(rows) and probe.is_all_in_files
    assert all(scanned[name].task == row["task"] for name, row in rows.items())
    assert scanned["cats:7"].texts == (ROWS[7]["q"], "sat", "fever", "mat")
    assert not LmEval(tasks=(str(task), "hellaswag")).is_all_in_files
    few_only = LmEval(tasks=(str(task),), limit=7)
    asked = {row["id"] for row in few_only.prepare(made)(model, None).to_pylist()}
    assert {item.id for item in few_only.items_to_scan()} == asked
    limited = LmEval(tasks=(str(task),), limit=7).prepare(made)(model, None)
    assert summary(limited)["items"] == 7 and set(limited["id"].to_pylist()) <= set(rows)


@pytest.mark.filterwarnings("ignore")
def test_without_examples_it_is_our_own_multiple_choice(
    task: Path, model: LossModel, material: Callable[..., Material]
) -> None:
    made = material(["x"], begin=None)
    settings: dict[str, Any] = {"path": str(task.parent / "rows.jsonl"), "prompt": "{q}", "answer": "gold"}
    for metric, normalise in (("acc", "none"), ("acc_norm", "characters")):
        theirs = LmEval(tasks=(str(task),), shots=0, metric=metric).prepare(made)(model, None).to_pylist()
        ours = MultipleChoice(**settings, normalise=normalise).prepare(made)(model, None).to_pylist()
        assert [row["value"] for row in theirs] == [row["value"] for row in ours]
        for one, other in zip(theirs, ours, strict=True):
            assert one["nll"] == pytest.approx(other["nll"], abs=1e-4)


def test_a_task_is_all_the_files_that_it_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ["rows = 1.jsonl", "more.csv", "shots.json", "texts.py", "shared.yaml", "deep.py"]
    for name in names:
        (tmp_path / name).write_text("")
    (tmp_path / "shared.yaml").write_text("include: cats.yml\ndoc_to_target: !function deep.target\n")
    (tmp_path / "cats.yml").write_text(
        "task: cats\ninclude: shared.yaml\ndoc_to_text: !function texts.prompt  \ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path}/rows = 1.jsonl\n    other: ['{tmp_path}/more.csv', \"{tmp_path}/none.csv\"]\n"
        f"    fewshot:\n      - {tmp_path}/shots.json\n"
    )
    found = LmEval(tasks=("~/cats.yml",)).files()
    assert sorted({Path(name).name for name in found}) == sorted([*names, "cats.yml"])
    assert all(Path(name).expanduser().is_file() for name in found)
    assert [Path(name).name for name in LmEval(tasks=("~/cats.yml",)).item_files()] == ["rows = 1.jsonl"]


@pytest.mark.filterwarnings("ignore")
def test_tasks_in_the_home_folder_are_found(
    task: Path, model: LossModel, material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(task.parent))
    for probe in (LmEval(tasks=("~/about_cats.yaml",)), LmEval(tasks=("cats",), include="~")):
        assert not probe.problems("p") and probe.prepare(material(["x"]))(model, None).num_rows == 24


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("output_type", ["multiple_choice", "generate_until"])
def test_prompts_that_do_not_fit_are_counted(
    task: Path, model: LossModel, material: Callable[..., Material], output_type: str
) -> None:
    settings = json.loads(task.read_text()) | {"output_type": output_type, "num_fewshot": 0, "doc_to_text": LONG}
    if output_type == "generate_until":
        settings |= {"doc_to_target": "mat", "generation_kwargs": {"until": ["."], "max_gen_toks": 4}}
        settings["metric_list"] = [{"metric": "exact_match"}]
        del settings["doc_to_choice"]
    task.write_text(json.dumps(settings, indent=1))
    table = LmEval(tasks=(str(task),)).prepare(material(["x"]))(model, None)
    rows = {row["id"]: row["cut_tokens"] for row in table.to_pylist()}
    assert rows["cats:5"] > 0 == rows["cats:1"] and summary(table)["cut"] == 1


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_asked_says_why(task: Path, model: LossModel, material: Callable[..., Material]) -> None:
    with pytest.raises(DeepenError, match="no metric `rouge`"):
        LmEval(tasks=(str(task),), metric="rouge").prepare(material(["x"]))(model, None)
    with pytest.raises(DeepenError, match="no filter `strict`"):
        LmEval(tasks=(str(task),), filter="strict").prepare(material(["x"]))(model, None)


@pytest.mark.skipif("DEEPEN_TEST_DATA" not in os.environ, reason="needs real test sets and a real model")
def test_every_item_agrees_with_the_harness_own_command() -> None:
    pytest.importorskip("lm_eval")
    command = [sys.executable, "-m", "benchmarks.lm_eval_parity", "--items", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
