"""A document that makes one run stumble is listed by it, and left out by the next."""

import json
import random

import pytest
from typer.testing import CliRunner

from deepen.cli import app
from deepen.errors import RecipeError
from deepen.formats.documents.documents import document_files, read_documents
from deepen.formats.manifest import open_artifact
from deepen.formats.training.decisions import read_decisions
from deepen.recipe.reading import load
from deepen.runs.account import account
from deepen.workflow.run import RunOptions, run_pipeline


def train(recipe, name, *sets, last="train"):
    loaded = load(recipe, None, ["machine.workers=1", "machine.compute.threads=1", *sets])
    run = recipe.parent / "runs" / name
    run_pipeline(loaded.recipe, loaded.machine, run, RunOptions(offline=True, last=last))
    return run


def test_what_one_run_stumbles_over_the_next_leaves_out(tiny):
    signs = random.Random(1)
    poison = "".join(chr(signs.randrange(0x4E00, 0x9FFF)) for _ in range(60))  # bytes that no other document has
    with (tiny.parent / "code.jsonl").open("a") as file:
        file.write(json.dumps({"text": poison}) + "\n")
    spikes = {"deviations": 3, "at_least": 8, "window": 16, "above_first": 9}
    sets = ("mix.domain_share=0.9", "train.tokens=3840", "train.batch_tokens=64")
    sets += (f"train.skip_spikes={json.dumps(spikes)}",)
    first = train(tiny, "first", *sets)
    assert any(d.action == "skip_batch" for d in read_decisions(first / "train/decisions.jsonl"))
    listed = CliRunner().invoke(app, ["quarantine", str(first)])
    records = [json.loads(line) for line in listed.stdout.splitlines()]
    texts = {d.id: d.text for path in document_files(first / "curate/documents", "code") for d in read_documents(path)}
    bad = {record["id"] for record in records}
    assert poison in [texts.get(name) for name in bad], "the planted document is among the suspects"

    (tiny.parent / "bad.jsonl").write_text(listed.stdout)
    second = train(tiny, "second", *sets, f'curate.quarantine=["{tiny.parent}/bad.jsonl"]')
    counts = open_artifact(second / "curate").counts["sources"]
    assert sum(source["dropped"].get("quarantined", 0) for source in counts.values()) == len(bad)
    kept = {d.id for path in document_files(second / "curate/documents", "code") for d in read_documents(path)}
    assert kept and not kept & bad
    assert [line for line in account(second) if not line.balances] == []
    shown = CliRunner().invoke(app, ["status", str(first)]).stdout
    assert "skip_batch" in shown and "decisions" in shown


def test_a_list_that_cannot_be_read_is_told_before_any_work(tiny):
    (tiny.parent / "bad.jsonl").write_text('{"id": "nonsense"}\n')
    with pytest.raises(RecipeError) as error:
        load(tiny, None, [f'curate.quarantine=["{tiny.parent}/bad.jsonl", "{tiny.parent}/none.jsonl"]'])
    found = error.value.problems
    assert [problem.path for problem in found] == ["curate.quarantine[0]", "curate.quarantine[1]"]
    assert "line 1" in found[0].message
