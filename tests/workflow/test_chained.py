"""Two recipes as a chain: knowledge first (grown vocabulary, new rows first, replay), then answers (sft, NEFTune).

The second stands on the first one's export, with all weights trained or with adapters, and kills leave no trace.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen.errors import RecipeError, TrainingError
from deepen.formats.files.records import read_records
from deepen.formats.manifest import open_artifact
from deepen.formats.training.checkpoints import list_checkpoints
from deepen.recipe.reading import load
from deepen.runs.account import account
from deepen.runs.show.artifact import ShowOptions, show
from deepen.runs.verify import verify
from deepen.settings import parse_amount
from deepen.workflow.commands.branch import Branch, branch_run
from deepen.workflow.commands.prove import prove_recipe
from deepen.workflow.run import RunOptions, run_pipeline
from tests.tiny_runs import sentences, write_jsonl

DATA = os.environ.get("DEEPEN_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="DEEPEN_TEST_DATA is not set")
TIMES = {
    "tokens_per_second", "data_wait_seconds", "memory_bytes", "elapsed_seconds", "checkpoint_stall_seconds",
    "model_flops_per_second", "mfu",
}  # fmt: skip

ANSWERS = """\
name: answers
base: {{run: {base}}}
ingest:
  sources:
    - {{name: talks, role: domain, path: {root}/talks.jsonl}}
    - {{name: prose, role: replay, path: {root}/prose.jsonl}}
curate: {{steps: [normalize], held_out: {{share: 5%, at_least: 4 documents, cap: 2k tokens}}}}
mix: {{sequence_length: 32, domain_share: 0.8, max_epochs: 16}}
train:
  tokens: 960
  batch_tokens: 192
  learning_rate: 1e-2
  objective: sft
  neftune_alpha: 5
  method: {{use: lora, rank: 4, train_head: true}}
evaluate: {{every: 50%, forgetting: {{budget: 100%}}}}
select: last
export: {{adapter: true}}
"""


def answers_recipe(root: Path, base: Path) -> Path:
    talks = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"item {n} is a case."}]}
        for n in range(60)
    ]
    (root / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    write_jsonl(root / "prose.jsonl", sentences("prose", 40))
    (root / "answers.yaml").write_text(ANSWERS.format(base=base, root=root))
    return root / "answers.yaml"


def run_here(recipe: Path, *sets: str, name: str = "answers", last: str = "export") -> Path:
    loaded = load(recipe, None, ["machine.workers=1", f"name={name}", *sets])
    out = recipe.parent / "runs" / name
    run_pipeline(loaded.recipe, loaded.machine, out, RunOptions(last=last, offline=True))
    return out


def counts(run: Path, stage: str) -> dict[str, Any]:
    found = open_artifact(run / stage)
    assert found is not None
    return found.counts


def test_answers_are_learned_beside_a_frozen_earlier_run(finished_run: Path, tmp_path: Path) -> None:
    run = run_here(answers_recipe(tmp_path, finished_run))
    trained = counts(run, "train")
    assert (trained["objective"], trained["method"], trained["adapters"]["rank"]) == ("sft", "lora", 4)
    assert trained["sources"]["talks"]["masked"] > 0 and trained["sources"]["prose"]["masked"] == 0
    assert all(line.balances for line in account(run)) and not verify(run).damages
    assert any(record.get("method") == "lora" for record in show(run, ShowOptions()))
    exported = counts(run, "export")
    assert exported["step"] == 5 and exported["largest_merge_difference"] <= 1e-5
    assert (run / "export/adapter/adapter_model.safetensors").is_file()
    base, model = (load_file(folder / "export/model.safetensors") for folder in (finished_run, run))
    assert {name for name in model if torch.equal(model[name], base[name])} == {name for name in base if "norm" in name}


@pytest.mark.slow
def test_the_export_of_adapters_is_a_base_like_any_other(finished_run: Path, tmp_path: Path) -> None:
    run = run_here(answers_recipe(tmp_path, finished_run))
    again = run_here(answers_recipe(tmp_path, run), "train.method=full", "export.adapter=false", name="again")
    assert counts(again, "export")["step"] == 5


@pytest.mark.slow
def test_a_branch_and_all_proofs_beside_adapters(finished_run: Path, tmp_path: Path) -> None:
    recipe = answers_recipe(tmp_path, finished_run)
    steady = ["train.schedule={use: constant, warmup: 1 steps}", "train.save={every: 1 steps, keep: 9}"]
    run = run_here(recipe, *steady)
    branch, _ = branch_run(run, Branch(3, parse_amount("2 steps"), "branch"))
    assert counts(branch, "train")["adapters"] == counts(run, "train")["adapters"]
    assert counts(branch, "export")["largest_merge_difference"] <= 1e-5
    at_three = (load_file(one / "train/checkpoints/step-000003/model.safetensors") for one in (run, branch))
    first, second = at_three
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    loaded = load(recipe, None, ["machine.workers=1"])
    found = prove_recipe(loaded.recipe, loaded.machine, run.with_name("proven"), RunOptions(last="mix", offline=True))
    assert {proof.name for proof in found if proof.passed} >= {"save, stop and resume", "export and reload"}
    assert not [proof for proof in found if proof.passed is False]


def test_sft_refuses_what_it_cannot_teach(finished_run: Path, tmp_path: Path) -> None:
    recipe = answers_recipe(tmp_path, finished_run)
    with pytest.raises(RecipeError) as refused:
        load(recipe, None, ["mix.packing=concatenate", "tokenize.template=none", "train.freeze=['*norm*']"])
    assert {problem.path for problem in refused.value.problems} == {"mix.packing", "tokenize.template", "train.freeze"}
    recipe.write_text(recipe.read_text().replace("role: replay", "role: domain").replace("domain_share: 0.8, ", ""))
    with pytest.raises(TrainingError, match="documents of `prose` have no answers"):
        run_here(recipe, last="train")


KNOWLEDGE = """\
name: knowledge
base: {data}/model_tinystories_656k
ingest:
  sources:
    - {{name: trials, role: domain, path: trials.jsonl, licence: CC0-1.0}}
    - {{name: prose, role: replay, path: prose.jsonl, licence: CC0-1.0}}
curate: {{steps: [normalize], held_out: {{share: 5%, at_least: 4 documents, cap: 2k tokens}}}}
tokenize: {{vocabulary: {{extend: 100}}, report: false}}
mix: {{sequence_length: 128, domain_share: 0.7}}
train:
  tokens: 8192
  batch_tokens: 1024
  learning_rate: {rate}
  new_rows_first: 25%
  method: {method}
  save: {{every: 1 steps, keep: 2}}
evaluate: {{every: 50%, forgetting: {{budget: 100%}}, probes: [{{use: held_out, context: 128, in_loop_tokens: 500}}]}}
"""
TAUGHT = """\
name: answers
base: {{run: runs/knowledge}}
ingest:
  sources:
    - {{name: questions, role: domain, path: questions.jsonl, licence: CC-BY-4.0}}
    - {{name: prose, role: replay, path: prose.jsonl, licence: CC0-1.0}}
curate: {{steps: [normalize], held_out: {{share: 5%, at_least: 4 documents, cap: 2k tokens}}}}
tokenize: {{report: false}}
mix: {{sequence_length: 128, domain_share: 0.8}}
train:
  tokens: 8192
  batch_tokens: 1024
  learning_rate: {rate}
  objective: sft
  neftune_alpha: 5
  method: {method}
  save: {{every: 1 steps, keep: 2}}
evaluate: {{every: 50%, forgetting: {{budget: 100%}}, probes: [{{use: held_out, context: 128, in_loop_tokens: 500}}]}}
"""


def records_of(name: str, count: int) -> list[dict[str, Any]]:
    with zstandard.open(f"{DATA}/{name}/corpus.jsonl.zst", "rb") as raw:
        return [json.loads(line) for line in islice(io.TextIOWrapper(raw, encoding="utf-8"), count)]


def write_chain(root: Path, method: str) -> Path:
    """Real corpora, small: trials to learn from, prose to remember, questions with answers."""
    root.mkdir()
    for name, corpus in (("trials", "medical_trials_fulltext"), ("prose", "gutenberg_and_speeches")):
        texts = [record["text"] for record in records_of(corpus, 12)]
        pieces = [text[at : at + 800] for text in texts for at in range(0, min(len(text), 8000), 800)]
        write_jsonl(root / f"{name}.jsonl", pieces[:80])
    with (root / "questions.jsonl").open("w") as file:
        for record in records_of("medical_qa_nih", 120):
            question, answer = record["question"], record["text"].removeprefix(record["question"]).strip()[:500]
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    full = method == "full"
    values = {"data": DATA, "method": method, "rate": "1e-3" if full else "1e-2"}
    (root / "knowledge.yaml").write_text(KNOWLEDGE.format(**values))
    (root / "answers.yaml").write_text(TAUGHT.format(**values))
    (root / "machine.yaml").write_text("workers: 1\ncompute: {threads: 1}\n")
    return root


def start(root: Path, recipe: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deepen.cli", "run", f"{recipe}.yaml", "--machine", "machine.yaml", "--offline"]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output


def kill_in_training(root: Path, recipe: str, after_step: int) -> None:
    """SIGKILL as soon as the checkpoint of a step is there, with more steps to come."""
    process, checkpoints = start(root, recipe), root / "runs" / recipe / "train/checkpoints"
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and process.poll() is None:
        if any(info.step >= after_step for info in list_checkpoints(checkpoints)):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == -signal.SIGKILL, output
    assert list_checkpoints(checkpoints)[-1].step < 8 and open_artifact(root / "runs" / recipe / "train") is None


def results(run: Path) -> dict[str, Any]:
    """What must not depend on kills: every tensor of milestones and export, every number of every step."""
    milestones = [info for info in list_checkpoints(run / "train/checkpoints") if info.step in (4, 8)]
    files = [file for info in milestones for file in sorted(info.path.glob("*.safetensors"))]
    tensors = {
        f"{file.parent.name}/{file.name}:{name}": tensor.view(-1).view(torch.uint8).numpy().tobytes()
        for file in [*files, run / "export/model.safetensors"]
        for name, tensor in load_file(file).items()
    }
    steps = read_records(run / "train/metrics.jsonl")
    numbers = [{key: value for key, value in record.items() if key not in TIMES} for record in steps]
    assert len(milestones) == 2 and len(numbers) == 8
    return {"tensors": tensors, "numbers": numbers, "scores": list(read_records(run / "evaluate/scores.jsonl"))}


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("method", ["full", "{use: lora, rank: 8}"])
def test_the_whole_chain_and_a_kill_in_each_half(tmp_path: Path, method: str) -> None:
    whole, broken = write_chain(tmp_path / "whole", method), write_chain(tmp_path / "broken", method)
    for recipe, step in (("knowledge", 1), ("answers", 3)):
        finish(start(whole, recipe))
        kill_in_training(broken, recipe, step)
        finish(start(broken, recipe))
        assert results(whole / "runs" / recipe) == results(broken / "runs" / recipe)
    knowledge, answers = whole / "runs/knowledge", whole / "runs/answers"
    assert counts(knowledge, "train")["new_rows_steps"] == 2 and counts(knowledge, "tokenize")["new_tokens"] == 100
    for run, probe_must_fall in ((knowledge, 0.02), (answers, 0.02)):
        assert counts(run, "export")["step"] is not None
        last = list(read_records(run / "evaluate/scores.jsonl"))[-1]["scores"]
        new = next(score for score in last if score["ability"] == "new" and ":" not in score["probe"])
        assert new["interval"][1] < -probe_must_fall
        assert all(line.balances for line in account(run)) and not verify(run).damages
    trained = counts(answers, "train")
    assert trained["sources"]["questions"]["masked"] > 0 and trained["objective"] == "sft"
    if method != "full":
        assert counts(knowledge, "train")["adapters"]["tables"], "tables of a grown vocabulary are trained whole"
        assert counts(answers, "train")["adapters"]["tables"] == []
        assert counts(answers, "export")["largest_merge_difference"] <= 1e-4
    model, tokenizer = (kind.from_pretrained(answers / "export") for kind in (AutoModelForCausalLM, AutoTokenizer))
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is a fever?"}], tokenize=False, add_generation_prompt=True
    )
    tokens = tokenizer(asked, return_tensors="pt", add_special_tokens=False).input_ids
    assert model(tokens).logits.isfinite().all() and "taught to answer" in (answers / "export/README.md").read_text()
