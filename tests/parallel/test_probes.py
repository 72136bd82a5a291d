"""Probes in the loop on 1, 2 and 4 processes: the same tables and scores, and faults that all processes share."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.conftest import LIMIT_SECONDS
from tests.evaluate.conftest import tokenizer_folder as tokenizer_folder  # a fixture
from tests.parallel.gang import run_gang
from tests.parallel.probes import Found, measure, write_inputs
from tests.parallel.runs import WORDS, deepen, finish, machine
from tests.parallel.runs import write_inputs as write_run

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "DDP2": (2, {"replicate": 2}),
    "FSDP2": (2, {"shard": 2}),
    "TP2": (2, {"tensor": 2}),
    "CP2": (2, {"context": 2}),
    "PP2": (2, {"pipeline": 2}),
    "offload": (2, {"shard": 2, "offload": True}),
    "FSDP4": (4, {"shard": 4}),
    "HSDP-2x2": (4, {"replicate": 2, "shard": 2}),
    "TP2xFSDP2": (4, {"tensor": 2, "shard": 2}),
    "CP2xFSDP2": (4, {"context": 2, "shard": 2}),
    "CP2xTP2": (4, {"context": 2, "tensor": 2}),
    "PP2xFSDP2": (4, {"pipeline": 2, "shard": 2}),
    "PP2xDDP2": (4, {"pipeline": 2, "replicate": 2}),
}
QUICK = ("FSDP2", "TP2", "CP2", "PP2")
BOUND = 1e-9


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("probes")
    write_inputs(root, tokenizer_folder)
    return str(root), str(tokenizer_folder)


@pytest.fixture(scope="module")
def alone(inputs: tuple[str, str]) -> Found:
    return measure(*inputs, None)


def check(layouts: list[str], inputs: tuple[str, str], alone: Found, folder: Path) -> None:
    for world_size in sorted({LAYOUTS[name][0] for name in layouts}):
        (folder / str(world_size)).mkdir()
        jobs = {name: (measure, (*inputs, LAYOUTS[name][1])) for name in layouts if LAYOUTS[name][0] == world_size}
        for name, ranks in run_gang(world_size, jobs, folder / str(world_size)).items():
            assert len(ranks) == world_size
            for found in ranks:
                assert_same(found, alone, name)


@pytest.mark.slow
@pytest.mark.skipif("DEEPEN_TEST_DATA" not in os.environ, reason="needs the real pretrained model")
def test_a_pretrained_model_says_the_same_on_any_layout(tmp_path: Path) -> None:
    folder = str(Path(os.environ["DEEPEN_TEST_DATA"]) / "model_tinystories_656k")
    tokenizer = tmp_path / "stage" / "tokenizer"
    shutil.copytree(folder, tokenizer)
    write_inputs(tmp_path, tokenizer, model=folder)
    inputs = (str(tmp_path), str(tokenizer))
    alone = measure(*inputs, None, real=folder)
    (tmp_path / "2").mkdir()
    (tmp_path / "4").mkdir()
    for world_size in (2, 4):
        jobs = {
            name: (measure_real, (*inputs, mesh, folder))
            for name, (size, mesh) in LAYOUTS.items()
            if size == world_size
        }
        for name, ranks in run_gang(world_size, jobs, tmp_path / str(world_size)).items():
            for found in ranks:
                assert_same(found, alone, name)


def measure_real(root: str, tokenizer: str, mesh: dict[str, Any], folder: str) -> Found:
    return measure(root, tokenizer, mesh, real=folder)


def assert_same(found: Found, alone: Found, name: str) -> None:
    assert found.failed == alone.failed == []
    assert (found.greedy, found.likeliest) == (alone.greedy, alone.likeliest), name
    assert found.tables.keys() == alone.tables.keys()
    for label, rows in alone.tables.items():
        for row, expected in zip(found.tables[label], rows, strict=True):
            for column, value in expected.items():
                near = value if column != "nll" or value is None else pytest.approx(value, rel=BOUND)
                assert row[column] == near, (name, label, column)
    for score, other in zip(found.scores, alone.scores, strict=True):
        assert (score.probe, score.value, score.difference) == (
            other.probe, pytest.approx(other.value, rel=BOUND), pytest.approx(other.difference, rel=BOUND, abs=BOUND),
        ), name  # fmt: skip
        assert score.interval == (other.interval and pytest.approx(other.interval, rel=BOUND, abs=BOUND))


def test_probes_do_not_depend_on_the_layout(inputs: tuple[str, str], alone: Found, tmp_path: Path) -> None:
    check(list(QUICK), inputs, alone, tmp_path)


@pytest.mark.slow
def test_probes_do_not_depend_on_any_layout(inputs: tuple[str, str], alone: Found, tmp_path: Path) -> None:
    check([name for name in LAYOUTS if name not in QUICK], inputs, alone, tmp_path)


def test_what_is_compared_says_something(alone: Found) -> None:
    assert len({tuple(one) for one in alone.greedy}) == 3 and all(alone.greedy)
    assert len({row["answer"] for row in alone.tables["exact_answer"]}) > 3
    assert len({row["answer"] for row in alone.tables["multiple_choice"]}) > 3
    assert {
        "held_out",
        "multiple_choice",
        "cloze",
        "exact_answer",
        "facts",
        "arithmetic",
        "instructions",
        "samples",
    } <= {score.probe.split(":")[0] for score in alone.scores}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tasks_of_the_harness_do_not_depend_on_the_layout(tmp_path: Path, tokenizer_folder: Path) -> None:
    pytest.importorskip("lm_eval")
    write_inputs(tmp_path, tokenizer_folder, *(more := [harness_probe(tmp_path)]))
    inputs = (str(tmp_path), str(tokenizer_folder))
    alone = measure(*inputs, None, *more)
    assert {row["task"] for row in alone.tables["lm_eval"]} == {"chosen", "written", "likely"}
    assert len({row["answer"] for row in alone.tables["lm_eval"] if row["task"] == "written"}) > 3
    (tmp_path / "gang").mkdir()
    jobs = {name: (measure, (*inputs, LAYOUTS[name][1], *more)) for name in QUICK}
    for name, ranks in run_gang(2, jobs, tmp_path / "gang").items():
        for found in ranks:
            assert_same(found, alone, name)


def harness_probe(folder: Path) -> dict[str, Any]:
    """Local tasks of all kinds of requests: choices, answers written out, likelihoods with what is likeliest."""
    kinds: dict[str, dict[str, Any]] = {
        "chosen": {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "answer"},
        "written": {"output_type": "generate_until", "doc_to_target": "{{choices[answer]}}", "generation_kwargs":
                    {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}},
        "likely": {"output_type": "loglikelihood", "doc_to_target": "{{choices[answer]}}"},
    }  # fmt: skip
    for name, kind in kinds.items():
        metric = "exact_match" if name == "written" else "acc"
        settings = {
            "task": name, "dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}", "num_fewshot": 0,
            "dataset_kwargs": {"data_files": {"test": str(folder / "exam.jsonl")}}, **kind,
            "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(settings))
    return {"use": "lm_eval", "tasks": [str(folder / f"{name}.yaml") for name in kinds]}


WRONG = {"raise": "only this one", "prepare": "no such file", "hang": "longer than its limit"}


def test_what_goes_wrong_on_one_process_is_given_up_on_all(tmp_path: Path, tokenizer_folder: Path) -> None:
    jobs: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    for how in WRONG:
        bad = {"use": "tests.parallel.probes:Unlucky", "how": how, "time_limit": f"{LIMIT_SECONDS}s"}
        root = tmp_path / how
        root.mkdir()
        write_inputs(root, tokenizer_folder, bad)
        jobs[how] = (measure, (str(root), str(tokenizer_folder), {"shard": 2}, bad))
    found = run_gang(2, jobs, tmp_path)  # which ends: nobody waits for the one that hangs
    for how, reason in WRONG.items():
        for one in found[how]:
            assert len(one.failed) == 1 and reason in one.failed[0], (how, one.failed)
            assert {score.probe.split(":")[0] for score in one.scores} >= {"held_out", "facts"}


PROBES = """\
evaluate:
  every: 50%
  panel: offline
  probes:
    - {use: held_out, context: 32}
    - {use: samples, max_tokens: 8}
    - {use: multiple_choice, path: exam.jsonl, in_loop_items: 9}
"""


@pytest.mark.slow
def test_a_run_of_several_processes_measures_what_one_does(tmp_path: Path) -> None:
    """Started as users start it: subsets, records and texts, in fp32."""
    found = {}
    for processes in (1, 2, 4):
        train = trained(tmp_path / str(processes), processes, PROBES)
        records = [json.loads(line) for line in (train / "scores.jsonl").read_text().splitlines()]
        found[processes] = {
            (record["step"], score["probe"], score["ability"]): score["value"]
            for record in records
            for score in record["scores"]
        }
        texts = sorted(path.name for path in (train / "probes/samples").iterdir())
        assert texts == ["step-000005.md", "step-000010.md"]
    assert {probe.split(":")[0] for _, probe, _ in found[1]} >= {"held_out", "arithmetic", "instructions", "samples"}
    for processes in (2, 4):
        assert found[processes].keys() == found[1].keys()
        for name, value in found[1].items():
            assert found[processes][name] == pytest.approx(value, rel=1e-4, abs=0.02), (processes, name)


@pytest.mark.slow
def test_several_processes_size_their_subsets_once_for_all(tmp_path: Path) -> None:
    train = trained(tmp_path, 2, PROBES.replace("every: 50%", "every: 50%\n  overhead: 1%"))
    chosen = json.loads((train / "probes/subsets.json").read_text())
    assert chosen["sizing"]["measurements"] == 2 and chosen["sizing"]["expected_seconds"] > 0
    assert chosen["sizing"]["share"] < 1 and len(chosen["ids"]["arithmetic"]["addition"]) == 8


def trained(root: Path, processes: int, evaluation: str) -> Path:
    """A tiny run on so many processes; returns the directory of its training."""
    write_run(root)
    rows = [{"question": f"{word} code", "choices": WORDS[:3], "answer": n % 3} for n, word in enumerate(WORDS)]
    (root / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = (root / "recipe.yaml").read_text().replace("evaluate: {every: 50%}\n", evaluation)
    (root / "recipe.yaml").write_text(recipe.replace("max_length: 32", "max_length: 128"))
    file = machine(root, f"launch: {{processes_per_node: {processes}}}\n")
    finish(deepen("train", "recipe.yaml", "--machine", str(file), "--offline"), root)
    train = root / "runs/tiny/train"
    assert not (train / "probes/failed.jsonl").exists()
    return train
