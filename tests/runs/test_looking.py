"""Looking at a finished run: account, verify, show, trace, report, status."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepen.board.report import write_report
from deepen.errors import RunError
from deepen.formats.documents.documents import document_files, read_documents, read_tables
from deepen.formats.manifest import MANIFEST
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.runs.account import account
from deepen.runs.order.rows import open_order, shares_over_time
from deepen.runs.order.trace import trace
from deepen.runs.show.artifact import ShowOptions, show
from deepen.runs.verify import verify
from deepen.train.batches.read import IGNORED, Batches


@pytest.fixture
def run_copy(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "runs" / "tiny")


def test_the_account_balances_to_the_token(finished_run):
    lines = account(finished_run)
    assert {line.source for line in lines} == {"code", "prose", "other"}
    assert len(lines) >= 15
    assert [str(line) for line in lines if not line.balances] == []


def test_a_token_too_many_is_noticed(run_copy):
    path = run_copy / "train" / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["counts"]["sources"]["code"]["loss_tokens"] += 1
    del manifest["digest"]  # a mistake of ours, not of the disk
    path.write_text(json.dumps(manifest))
    assert [line.what for line in account(run_copy) if not line.balances] == ["tokens trained"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "pattern", ["tokenize/shards/code.bin", "train/checkpoints/*/model.safetensors", "export/*.safetensors"]
)
def test_one_flipped_bit_is_found_and_named(run_copy, pattern):
    assert verify(run_copy).damages == []
    damaged = sorted(run_copy.glob(pattern))[-1]
    flip(damaged)
    assert any(str(damaged.relative_to(run_copy)) in line for line in verify(run_copy).damages)


def test_show_opens_every_stage(finished_run):
    documents = list(show(finished_run / "curate", ShowOptions(sample=3)))
    assert len(documents) == 3 and documents[0]["text"]
    assert [record["stage"] for record in show(finished_run, ShowOptions())][0] == "ingest"
    assert list(show(finished_run / "evaluate", ShowOptions()))[-1]["scores"]
    assert next(show(finished_run / "select", ShowOptions()))["reason"]
    with pytest.raises(RunError, match="no artifact"):
        show(finished_run / "nothing", ShowOptions())


def test_a_batch_shows_the_documents_that_trace_finds_again(finished_run):
    rows = list(show(finished_run / "mix", ShowOptions(step=4)))
    assert len(rows) == 6
    segment = rows[2]["segments"][0]
    texts = {d.id: d.text for f in document_files(finished_run / "curate" / "documents") for d in read_documents(f)}
    assert segment["text"].removesuffix("<|endoftext|>") in texts[segment["document"]]
    visits = trace(finished_run, segment["document"]).visits
    first = segment["positions"][0]
    assert (4, 2, first, segment["start"], segment["tokens"]) in {
        (v.step, v.row, v.position, v.start, v.tokens) for v in visits
    }


def test_a_batch_shows_padding_and_where_there_is_no_loss(finished_run):
    rows = list(show(finished_run / "mix", ShowOptions(step=4)))
    for row in rows:
        assert row["tokens"] + row["padding"] == 32
        assert [piece["positions"][0] for piece in row["segments"]] == [
            sum(piece["tokens"] for piece in row["segments"][:number]) for number in range(len(row["segments"]))
        ]
        for piece in row["segments"]:
            end = piece["positions"][1]
            ends_document = piece["start"] + piece["tokens"] == piece["document_tokens"]
            assert piece["without_loss"] == ([[end - 1, end]] if ends_document else [])
    metrics = [json.loads(line) for line in (finished_run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["tokens"] for row in rows) == metrics[3]["tokens"] - metrics[2]["tokens"]


@pytest.mark.parametrize("isolated", [True, False])
def test_a_batch_shows_the_very_labels_that_training_has(run_copy, isolated):
    """Also with masked targets, and with documents that are joined."""
    shard = IndexedDataset.open(run_copy / "tokenize" / "shards" / "code")
    flags = np.ones(shard.num_tokens, np.uint8)
    flags[np.random.default_rng(1).integers(0, len(flags), len(flags) // 3)] = 0
    (run_copy / "tokenize" / "shards" / "code.trained").write_bytes(flags.tobytes())
    table = json.loads((run_copy / "mix" / "segments.json").read_text())
    table["segments"][0]["isolated"] = isolated
    (run_copy / "mix" / "segments.json").write_text(json.dumps(table))
    batches = Batches.open(run_copy / "tokenize", run_copy / "mix")
    for step in (1, 7):
        batch = batches[step - 1]
        for row in show(run_copy / "mix", ShowOptions(step=step)):
            silent = [place for piece in row["segments"] for a, b in piece["without_loss"] for place in range(a, b)]
            ignored = (batch.labels_BT[row["row"]] == IGNORED) & (batch.documents_BT[row["row"]] >= 0)
            assert silent == np.flatnonzero(ignored).tolist()
            assert row["loss_tokens"] == row["tokens"] - ignored.sum()


def documents_in(folder):
    return [d for path in sorted(folder.glob("*.parquet")) for table in read_tables(path) for d in table.to_pylist()]


def test_trace_takes_beginnings_and_locations(finished_run):
    document = next(d for f in document_files(finished_run / "curate" / "documents", "code") for d in read_documents(f))
    found = trace(finished_run, document.id)
    assert found.visits and found.reason == ""
    assert trace(finished_run, document.id[:12].upper()) == found
    assert trace(finished_run, f"code:{document.meta['location']}") == found


def test_trace_says_why_a_document_is_not_trained(run_copy):
    held_out = documents_in(run_copy / "curate" / "held_out")[0]
    assert "held out" in trace(run_copy, held_out["id"]).reason
    row = {"id": "0" * 32, "source": "code", "reason": "too_short", "value": 3.0, "detail": "", "text": "x"}
    path = run_copy / "curate" / "dropped" / "code-00000.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    assert trace(run_copy, "0" * 32).reason == "not trained: dropped because of too_short (3.0)"


def test_trace_of_an_unknown_document_says_so(finished_run):
    for document, message in (("f" * 32, "no document with id"), ("f" * 33, "is no document id"), ("x:1", "no source")):
        with pytest.raises(RunError, match=message):
            trace(finished_run, document)


def test_realised_shares_are_those_asked(finished_run):
    steps, shares = shares_over_time(open_order(finished_run), 100)
    assert steps == list(range(1, 11))
    assert sum(shares["code"]) / 10 == pytest.approx(0.6, abs=0.02)
    assert [a + b for a, b in zip(shares["code"], shares["prose"], strict=True)] == pytest.approx([1] * 10)


def test_the_report_is_one_file_without_outside_references(run_copy):
    page = write_report(run_copy).read_text()
    for title in (
        "Gain against forgetting",
        "Scores over time",
        "Training",
        "Mixture",
        "Funnel",
        "Token account",
        "Lineage",
    ):
        assert f"<h2>{title}</h2>" in page
    assert 'src="http' not in page and "href=" not in page.partition("</script>")[2]


def test_a_report_of_an_unfinished_run_shows_what_is_there(run_copy):
    for stage in ("train", "evaluate", "select", "export"):
        shutil.rmtree(run_copy / stage)
    page = write_report(run_copy).read_text()
    assert "<h2>Mixture</h2>" in page and "<h2>Training</h2>" not in page


LOOKING = ["status RUN", "account RUN", "verify RUN", "show RUN", "show RUN/curate", "show RUN/mix --step 2"]
LOOKING += ["report RUN", "check RUN", "plan RUN", "explain mix.packing"]
PROBE = """
import sys
from deepen.cli import main
try:
    main()
finally:
    print({"torch", "transformers"} & set(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("command", LOOKING)
def test_looking_loads_neither_torch_nor_transformers(run_copy, command):
    arguments = command.replace("RUN", str(run_copy)).split()
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "set()"), done.stderr


def test_checkpoints_and_what_they_are_kept_for_are_shown(finished_run, tmp_path):
    records = {record["checkpoint"]: record for record in show(finished_run / "train/checkpoints", ShowOptions())}
    last = max(records)
    assert {"latest", "newest", "milestone"} <= set(records[last]["roles"]) and records[last]["bytes"] > 1000
    assert sum("newest" in record["roles"] for record in records.values()) == 2  # `save.keep` of the recipe
    assert all(record["roles"] for record in records.values())
    unfinished = shutil.copytree(finished_run, tmp_path / "unfinished")
    manifest = json.loads((unfinished / "train" / MANIFEST).read_text())
    (unfinished / "train" / MANIFEST).rename(unfinished / "train/unfinished.json")
    assert manifest["config"]["train"]["save"]["keep"] == 2
    assert list(show(unfinished / "train/checkpoints", ShowOptions())) == list(records.values())
    command = [sys.executable, "-m", "deepen.cli", "status", str(unfinished)]
    shown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "140"})
    line = next(line for line in shown.stdout.splitlines() if last in line)
    assert "latest, newest, milestone" in line and "weights, optimizer" in line
