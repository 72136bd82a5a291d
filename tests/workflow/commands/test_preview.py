"""Looking at curation: pairs of copies, a dry run on a sample, examples in the report."""

import json
import subprocess
import sys

import pytest

from deepen.board.masking import masked
from deepen.board.report import write_report
from deepen.recipe.reading import load
from deepen.runs.show.artifact import ShowOptions, show
from deepen.workflow.commands.preview_curation import preview_curate
from deepen.workflow.run import RunOptions, run_pipeline

STEPS = "curate.steps=[normalize, {use: length, min: 100}, exact_duplicates, near_duplicates]"


def deepen(*arguments):
    command = [sys.executable, "-m", "deepen.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.fixture
def copies(tiny, tmp_path):
    """The recipe with near copies in one source, and one document that names a person."""
    path = tmp_path / "code.jsonl"
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    texts += [f"{text} and so on" for text in texts[:20]] + ["call ann@example.org or +49 (89) 1234-5678"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return load(tiny, None, [STEPS, "machine.workers=1"])


@pytest.fixture
def curated(copies, tmp_path):
    run = tmp_path / "runs" / "tiny"
    run_pipeline(copies.recipe, copies.machine, run, RunOptions(last="curate", offline=True))
    return run


@pytest.mark.parametrize("wanted", ["near_duplicates", "near_duplicate"])
def test_copies_are_shown_with_what_they_are_copies_of(curated, wanted):
    rows = list(show(curated / "curate", ShowOptions(sample=4, dropped=wanted)))
    assert len(rows) == 4
    for row in rows:
        assert row["copy_of"]["id"] == row["detail"] and row["value"] >= 0.8
        assert row["copy_of"]["text"].split()[:20] == row["text"].split()[:20]


def test_pairs_stand_side_by_side_in_the_terminal(curated):
    done = deepen("show", curated / "curate", "--dropped", "near_duplicates", "--sample", 1)
    assert "similarity" in done.stdout and "dropped: code" in done.stdout and "kept: code" in done.stdout
    record = json.loads(deepen("show", curated / "curate", "--dropped", "all", "--json", "--sample", 1).stdout)
    assert {"id", "reason", "value", "text"} <= set(record)


def test_an_unknown_reason_names_the_known_ones(curated, capsys):
    assert list(show(curated / "curate", ShowOptions(dropped="boredom"))) == []
    assert "near_duplicate" in capsys.readouterr().err


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_counts_the_first_documents_and_writes_nothing(copies, tmp_path):
    before = contents(tmp_path)
    preview = preview_curate(copies.recipe, tmp_path / "runs" / "tiny", 90)
    assert contents(tmp_path) == before
    assert {name: count["documents_in"] for name, count in preview.counts.items()} == {
        "code": 30, "prose": 30, "other": 30,
    }  # fmt: skip


def test_a_dry_run_samples_a_finished_ingest_evenly(copies, curated, tmp_path, capsys):
    before = contents(tmp_path)
    preview = preview_curate(copies.recipe, curated, 240)
    assert contents(tmp_path) == before and "sampling the finished ingest" in capsys.readouterr().err
    assert preview.counts["code"]["documents_in"] == 80 and preview.counts["prose"]["documents_in"] == 60
    assert preview.counts["code"]["dropped"]["near_duplicate"] > 5
    assert {(row["source"], row["reason"]) for row in preview.examples} >= {("code", "near_duplicate")}


def test_a_dry_run_shows_even_what_would_stop_the_stage(tiny, tmp_path):
    loaded = load(tiny, None, ["curate.steps=[{use: length, min: 90000}]"])
    counts = preview_curate(loaded.recipe, tmp_path / "runs/tiny", 30).counts
    assert all(count["dropped"] == {"too_short": 10} for count in counts.values())


def test_a_dry_run_from_the_command_line(copies, tiny, tmp_path):
    arguments = ("curate", tiny, "--set", STEPS, "--runs", tmp_path / "runs", "--dry-run", 300)
    done = deepen(*arguments)
    assert done.returncode == 0 and "nothing is written" in done.stdout and "near_duplicate" in done.stdout
    assert "too_short" in done.stdout and "[e-mail]" in done.stdout and "example.org" not in done.stdout
    counts = json.loads(deepen(*arguments, "--json").stdout)["counts"]
    assert set(counts) == {"code", "prose", "other"} and not (tmp_path / "runs").exists()


def test_the_report_has_an_example_of_every_drop(curated):
    page = write_report(curated).read_text()
    assert "near_duplicate" in page and "call [e-mail] or [number]" in page
    assert "example.org" not in page and "1234-5678" not in page


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("write to Ann.Lee+x@mail.example.co.uk now", "write to [e-mail] now"),
        ("tel. 089/123 45 67, fax (089) 1234568", "tel. [number], fax [number]"),
        ("+1-555-010-9999 and 4111 1111 1111 1111", "[number] and [number]"),
        ("in 2024, 12 of 340 (3.5 %)", "in 2024, 12 of 340 (3.5 %)"),
        ("फ़ोन ०१२३४५६७८९", "फ़ोन [number]"),
    ],
)
def test_addresses_and_telephone_numbers_are_covered(text, covered):
    assert masked(text) == covered
