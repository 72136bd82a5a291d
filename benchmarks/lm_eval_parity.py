"""The probe `lm_eval` against the harness's own command, item by item, on real test sets.

    DEEPEN_TEST_DATA=... python -m benchmarks.lm_eval_parity [--items 100] [--model FOLDER]

Writes seven local tasks (ARC easy and challenge, HellaSwag, PIQA, PubMedQA, MMLU-Redux, SVAMP), runs
``lm_eval --model hf`` on the folder with ``--log_samples``, asks the same items through the probe, and compares every
answer and log-likelihood; ``multiple_choice`` is compared with the harness's ``acc`` and ``acc_norm`` on ARC easy.
Exits with 1 when an answer differs, or a log-likelihood by more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deepen.evaluate.documents.material import Material
from deepen.evaluate.probes.choices import MultipleChoice
from deepen.evaluate.probes.harness import LmEval
from deepen.model.config import ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import load_model, load_tokenizer

TOLERANCE = 1e-4
_CHOICE = {"output_type": "multiple_choice"}
_METRICS = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
_LETTERED = "{{question}}\n" + "".join(f"{x}. {{{{choices[{i}]}}}}\n" for i, x in enumerate("ABCD")) + "Answer:"
TASKS: dict[str, dict[str, Any]] = {
    "arc_easy": _CHOICE
    | {"doc_to_text": "{{query}}\nAnswer:", "doc_to_choice": "{{choices}}", "doc_to_target": "gold"},
    "arc_challenge": _CHOICE
    | {"doc_to_text": "{{query}}\nAnswer:", "doc_to_choice": "{{choices}}", "doc_to_target": "gold"},
    "hellaswag": _CHOICE
    | {"doc_to_text": "{{activity_label}}: {{ctx}}", "doc_to_choice": "{{endings}}", "doc_to_target": "label"},
    "piqa": _CHOICE
    | {"doc_to_text": "Question: {{goal}}\nAnswer:", "doc_to_choice": "{{[sol1, sol2]}}", "doc_to_target": "label"},
    "pubmedqa": _CHOICE
    | {
        "doc_to_text": "Abstract: {{CONTEXTS|join('\n')}}\nQuestion: {{QUESTION}}\nAnswer:",
        "doc_to_choice": ["yes", "no", "maybe"],
        "doc_to_target": "final_decision",
    },
    "mmlu_redux": _CHOICE
    | {"doc_to_text": _LETTERED, "doc_to_choice": ["A", "B", "C", "D"], "doc_to_target": "answer"},
    "svamp": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{context}}\nAnswer:",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n", "Question:"], "max_gen_toks": 24, "do_sample": False},
    },
}


def write_tasks(data: Path, folder: Path) -> list[str]:
    """One task file per set; returns the names of the tasks."""
    for name, task in TASKS.items():
        (source,) = (data / f"eval_{name}").glob(f"{name}.jsonl*")
        metrics = _METRICS if task["output_type"] == "multiple_choice" else [_METRICS[0] | {"metric": "exact_match"}]
        settings = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(source)}},
            "test_split": "test",
            "metric_list": metrics,
        }
        # JSON is YAML with every string in quotes: bare `yes` and `no` would be read as truth values.
        (folder / f"local_{name}.yaml").write_text(json.dumps(settings | task))
    return [f"local_{name}" for name in TASKS]


def by_the_command(model: Path, folder: Path, tasks: list[str], items: int) -> dict[str, list[dict[str, Any]]]:
    """What the harness's own command logged: by task the samples of the first ``items`` items."""
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model}", "--device",
        "cpu", "--batch_size", "8", "--tasks", *tasks, "--include_path", str(folder), "--limit", str(items),
        "--log_samples", "--output_path", str(folder / "out"),
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline, check=False)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    found = {}
    for task in tasks:
        (path,) = (folder / "out").rglob(f"samples_{task}_*.jsonl")
        found[task] = [json.loads(line) for line in path.read_text().split("\n") if line]
    return found


def open_model(folder: Path) -> tuple[LossModel, Material]:
    """The folder as we measure it."""
    size = len(load_tokenizer(folder))
    model = LossModel(load_model(ResolvedBase(folder.name, folder, None, "x"), vocabulary_size=size, seed=0))
    tokenizer = load_tokenizer(folder)
    begins = tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]
    return model.eval(), Material((), folder, tokenizer.bos_token_id if begins else None)


def compare(task: str, theirs: list[dict[str, Any]], ours: dict[str, dict[str, Any]]) -> tuple[int, int, float]:
    """Items, items whose value or answer differs, and the largest difference of a log-likelihood."""
    differ, largest = 0, 0.0
    for sample in theirs:
        row = ours[f"{task}:{sample['doc_id']}"]
        if sample["metrics"][0] == "exact_match":
            same = str(sample["filtered_resps"][0]) == row["answer"] and sample["exact_match"] == row["value"]
        else:
            scores = [float(response[0]) for response in sample["filtered_resps"]]
            largest = max(largest, *(abs(a + b) for a, b in zip(scores, row["nll"], strict=True)))
            same = float(sample["acc"]) == row["value"]
        differ += not same
    return len(theirs), differ, largest


def compare_choices(data: Path, theirs: list[dict[str, Any]], model: LossModel, material: Material) -> dict[str, int]:
    """Items on which `multiple_choice` differs from the harness's metrics on ARC easy."""
    path = str(data / "eval_arc_easy" / "arc_easy.jsonl")
    differ = {}
    for normalise, metric in (("none", "acc"), ("characters", "acc_norm")):
        probe = MultipleChoice(path=path, prompt="{query}\nAnswer:", answer="gold", normalise=normalise)  # type: ignore[arg-type]
        only = frozenset(f"line {sample['doc_id'] + 1}" for sample in theirs)
        rows = probe.prepare(Material(material.sources, material.tokenizer, material.begin_of_document_id, only=only))
        values = {row["id"]: row["value"] for row in rows(model, None).to_pylist()}
        differ[metric] = sum(values[f"line {s['doc_id'] + 1}"] != float(s[metric]) for s in theirs)
    return differ


def main() -> None:
    """Compare and print a table."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("--items", type=int, default=100, help="items of each task")
    arguments.add_argument("--model", type=Path, help="model folder; the tiny model of the test data if not given")
    options = arguments.parse_args()
    if "DEEPEN_TEST_DATA" not in os.environ:
        sys.exit("set DEEPEN_TEST_DATA to the folder of the test sets")
    data = Path(os.environ["DEEPEN_TEST_DATA"])
    folder = options.model or data / "model_tinystories_656k"
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        tasks = write_tasks(data, Path(scratch))
        started = time.perf_counter()
        theirs = by_the_command(folder, Path(scratch), tasks, options.items)
        their_seconds, started = time.perf_counter() - started, time.perf_counter()
        model, material = open_model(folder)
        only = frozenset(f"{task}:{sample['doc_id']}" for task in tasks for sample in theirs[task])
        probe = LmEval(tasks=tuple(tasks), include=scratch)
        narrowed = Material(material.sources, material.tokenizer, material.begin_of_document_id, only=only)
        ours = {row["id"]: row for row in probe.prepare(narrowed)(model, None).to_pylist()}
        print(f"harness {their_seconds:.0f} s, probe {time.perf_counter() - started:.0f} s, both with start")
        print(f"{'task':<22}{'items':>7}{'differ':>8}{'largest difference of a log-likelihood':>42}")
        for task in tasks:
            items, differ, largest = compare(task, theirs[task], ours)
            wrong += differ + (largest > TOLERANCE)
            print(f"{task:<22}{items:>7}{differ:>8}{largest:>42.2e}")
        for metric, differ in compare_choices(data, theirs["local_arc_easy"], model, material).items():
            wrong += differ
            print(f"multiple_choice against {metric} on arc_easy: {differ} items differ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
