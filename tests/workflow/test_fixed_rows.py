"""Fixed rows the whole way: through training and the account, found again by `show` and `trace`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from deepen.errors import RecipeError, RunError
from deepen.formats.documents.documents import document_id
from deepen.formats.manifest import open_artifact
from deepen.recipe.reading import load
from deepen.runs.account import account
from deepen.runs.order.trace import trace
from deepen.runs.show.artifact import ShowOptions, show
from deepen.workflow.run import RunOptions, run_pipeline
from tests.tiny_runs import sentences, write_jsonl

RECIPE = """\
name: fixed
base: {{run: {base}}}
ingest: {{sources: [{{name: code, role: domain, path: {root}/code.jsonl}}]}}
curate: {{steps: [normalize], held_out: {{share: 5%, at_least: 5 documents, cap: 2k tokens}}}}
mix:
  sequence_length: 32
  domain_share: 0.5
  max_epochs: 16
  fixed_rows: [{{name: ready, role: replay, path: {root}/rows, tokenizer: base}}]
train: {{tokens: 1920, batch_tokens: 192, learning_rate: 1e-3}}
evaluate: {{every: 50%}}
"""


def write_rows(folder, tokenizer, seed):
    """Questions and answers, padded to 32 tokens, as Colossal-LLaMA prepares them."""
    ids, labels = [], []
    for text in sentences("ready", 40, seed):
        row = tokenizer.encode(text).ids[:24]
        ids.append(row + [0] * (32 - len(row)))
        labels.append([-100] * 6 + row[6:] + [-100] * (32 - len(row)))
    table = pa.table({"input_ids": ids, "labels": labels, "seq_category": ["a"] * len(ids)})
    folder.mkdir(exist_ok=True)
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


def run_recipe(root, **options):
    loaded = load(root / "recipe.yaml", None, ["machine.workers=1"])
    return run_pipeline(loaded.recipe, loaded.machine, root / "runs/fixed", RunOptions(offline=True, **options))


@pytest.fixture(scope="module")
def root(tmp_path_factory, finished_run):
    root = tmp_path_factory.mktemp("fixed")
    write_jsonl(root / "code.jsonl", sentences("code", 60))
    write_rows(root / "rows", Tokenizer.from_file(str(finished_run / "tokenize/tokenizer/tokenizer.json")), seed=1)
    (root / "recipe.yaml").write_text(RECIPE.format(base=finished_run, root=root))
    run_recipe(root)
    return root


def test_they_are_trained_with_masked_labels_and_the_account_balances(root):
    lines = account(root / "runs/fixed")
    assert all(line.balances for line in lines)
    assert {"rows read", "positions read", "tokens to pack", "tokens trained"} <= {
        line.what for line in lines if line.source == "ready"
    }
    trained = open_artifact(root / "runs/fixed/train").counts["sources"]["ready"]
    assert trained["rows"] > 0
    assert trained["masked"] == 5 * trained["rows"]  # the first of six has no label that asks for it
    assert trained["loss_tokens"] == 18 * trained["rows"]


def test_their_bits_per_byte_are_logged(root):
    records = [json.loads(line) for line in (root / "runs/fixed/train/metrics.jsonl").read_text().splitlines()]
    found = [record["bits_per_byte_by_source"]["ready"] for record in records if "bits_per_byte_by_source" in record]
    assert found
    assert all(0.5 < value < 10 for value in found)


def test_show_and_trace_find_them(root):
    run = root / "runs/fixed"
    row = next(row for row in show(run / "mix", ShowOptions(step=1)) if row["source"] == "ready")
    [piece] = row["segments"]
    assert piece["without_loss"] == [[0, 5], [23, 24]]
    assert (row["tokens"], row["padding"], piece["text"].startswith("ready")) == (24, 8, True)
    traced = trace(run, piece["document"])
    assert traced.source == "ready"
    assert 1 in [visit.step for visit in traced.visits]
    first = trace(run, "ready:data-00000-of-00001.arrow:0")
    assert first.document == document_id("ready", "data-00000-of-00001.arrow:0")


def test_the_model_card_says_that_they_were_not_curated(root):
    card = (root / "runs/fixed/export/README.md").read_text()
    assert "| ready | replay |" in card
    assert "not curated" in card


def test_moved_rows_are_the_same_and_changed_ones_are_not(root, tmp_path, finished_run):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    shutil.move(copy / "rows", copy / "elsewhere")
    recipe = (copy / "recipe.yaml").read_text().replace(f"{root}/rows", f"{copy}/elsewhere")
    (copy / "recipe.yaml").write_text(recipe.replace(str(root), str(copy)))
    before = open_artifact(copy / "runs/fixed/mix").fingerprint
    assert run_recipe(copy)["mix"].fingerprint == before
    write_rows(copy / "elsewhere", Tokenizer.from_file(str(finished_run / "tokenize/tokenizer/tokenizer.json")), seed=2)
    with pytest.raises(RunError, match="fixed_rows:ready: has other contents"):
        run_recipe(copy)


def test_what_cannot_work_is_found_before(root, tmp_path):
    recipe = (root / "recipe.yaml").read_text().replace("sequence_length: 32", "sequence_length: [{length: 32}]")
    wrong = recipe.replace("name: ready", "name: code").replace("rows, tokenizer: base", "nowhere, tokenizer: ./no")
    wrong = wrong.replace("  max_epochs: 16", "  order: megatron") + "tokenize: {vocabulary: {train: 300}}\n"
    (tmp_path / "recipe.yaml").write_text(wrong)
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "recipe.yaml")
    paths = {problem.path for problem in caught.value.problems}
    assert paths >= {f"mix.fixed_rows[0].{key}" for key in ("name", "path", "tokenizer")} | {"mix.fixed_rows"}
    messages = [problem.message for problem in caught.value.problems if problem.path == "mix.fixed_rows"]
    assert len(messages) == 2


def mix_in(folder, **environment):
    """Run `deepen mix` in ``folder``, with the file events of ``tests/kills`` counted; returns the exit code."""
    kills = Path(__file__).parents[1] / "kills"
    values = {**os.environ, "PYTHONPATH": f"{kills}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", **environment}
    command = [sys.executable, "-m", "deepen.cli", "mix", "recipe.yaml", "--offline", "--set", "machine.workers=1"]
    return subprocess.run(command, cwd=folder, env=values, capture_output=True, timeout=900).returncode


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.stem != "manifest"}


@pytest.mark.slow
def test_a_kill_while_they_are_written_leaves_no_trace(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("train", "evaluate", "select", "export"))
    mix = tmp_path / "copy/runs/fixed/mix"
    shutil.rmtree(mix)
    log = tmp_path / "events"
    assert mix_in(tmp_path / "copy", DEEPEN_KILL_UNDER=str(mix), DEEPEN_KILL_LOG=str(log)) == 0
    events = log.read_text().splitlines()
    for needle in ("ready.bin", "ready.idx", "ready.trained", "ready.npy", "ready.rows.npy"):
        shutil.rmtree(mix)
        at = next(number for number, event in enumerate(events, 1) if event.startswith("os.rename") and needle in event)
        killed = mix_in(tmp_path / "copy", DEEPEN_KILL_UNDER=str(mix), DEEPEN_KILL_AT=str(at))
        assert killed == -signal.SIGKILL
        assert mix_in(tmp_path / "copy") == 0
        assert contents(mix) == contents(root / "runs/fixed/mix")
