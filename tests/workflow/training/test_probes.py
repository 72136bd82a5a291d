"""Probes in a whole run: items kept out of training, the base measured before money is spent, changed files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deepen.cli import app
from deepen.errors import DeepenError, RunError, SourceError
from deepen.formats.files.records import read_records
from deepen.formats.manifest import open_artifact
from deepen.recipe.reading import load
from deepen.workflow.run import RunOptions, run_pipeline

ITEM = "zebras quietly paint seventeen orange windows behind the old harbour every second tuesday of march"


@pytest.fixture
def examined(tiny: Path) -> Path:
    """The tiny recipe with an exam whose one item stands in the training text."""
    rows = [
        {"id": str(n), "question": f"time {n}", "choices": ["person", "year way"], "answer": n % 2} for n in range(20)
    ]
    rows[3]["question"] = ITEM
    exam = tiny.parent / "exam.jsonl"
    exam.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = tiny.parent / "code.jsonl"
    code.write_text(code.read_text() + json.dumps({"text": f"time person year {ITEM} way day thing"}) + "\n")
    text = tiny.read_text()
    text = text.replace("exact_duplicates]", "exact_duplicates, {use: decontaminate, against: [probes]}]")
    text += f"  probes: [held_out, {{use: multiple_choice, name: exam, path: {exam}}}]\n"
    tiny.write_text(text.replace("evaluate: {every: 50%}", "evaluate:\n  every: 50%"))
    return tiny


def run(recipe: Path, **options: object) -> Path:
    loaded = load(recipe, None, ["machine.workers=1"])
    directory = recipe.parent / "runs" / "tiny"
    run_pipeline(loaded.recipe, loaded.machine, directory, RunOptions(offline=True, **options))  # type: ignore[arg-type]
    return directory


def test_the_base_is_measured_as_the_command_line_says(tiny: Path) -> None:
    """What goes with every stage goes with ``--base-only``, and a share that is none is refused."""
    arguments = ["evaluate", str(tiny), "--base-only", "--runs", str(tiny.parent / "runs"), "--offline"]
    refused = CliRunner().invoke(app, [*arguments, "--part", "5/2"])
    assert isinstance(refused.exception, DeepenError) and "5/2" in str(refused.exception)
    assert not (tiny.parent / "runs" / "tiny" / "baseline").exists()
    done = CliRunner().invoke(app, [*arguments, "--part", "1/2"])
    assert done.exit_code == 0 and not (tiny.parent / "runs" / "tiny" / "baseline").exists()
    last = CliRunner().invoke(app, [*arguments, "--part", "2/2"])
    assert last.exit_code == 0 and "bits per byte" in last.stdout


def test_the_documented_recipe_for_biographies_trains_on_all_of_them(tiny: Path) -> None:
    folder, docs = tiny.parent, Path(__file__).parents[3] / "docs" / "biographies.md"
    made = CliRunner().invoke(app, ["biographies", str(folder / "bios"), "--people", "20"])
    assert made.exit_code == 0
    documented = docs.read_text().split("```yaml\n")[1].split("```")[0]
    (folder / "web.jsonl").write_text((folder / "code.jsonl").read_text())
    text = documented.replace("bios/", f"{folder}/bios/").replace("path: web", f"path: {folder}/web")
    before, own = tiny.read_text().split("ingest:")
    tiny.write_text(before + text + own[own.index("tokenize:") : own.index("evaluate:")])
    counts = open_artifact(run(tiny, last="curate") / "curate").counts["sources"]
    for source, number in (("people", 100), ("questions", 60)):
        assert counts[source]["documents_kept"] + counts[source]["held_out"] == number


def test_probes_without_files_cannot_be_kept_out(examined: Path) -> None:
    examined.write_text(examined.read_text().split("  probes:")[0])
    with pytest.raises(SourceError, match=r"against: \[probes\]"):
        run(examined, last="curate")


def test_the_base_is_measured_before_anything_is_trained(examined: Path) -> None:
    runs = examined.parent / "runs"
    arguments = [
        "evaluate",
        str(examined),
        "--base-only",
        "--runs",
        str(runs),
        "--offline",
        "--set",
        "machine.workers=1",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "baseline: exam: 0." in done.stdout and "baseline: code (new)" in done.stdout
    assert (runs / "tiny" / "baseline" / "exam.parquet").is_file() and not (runs / "tiny" / "train").exists()
    counts = open_artifact(runs / "tiny" / "curate").counts  # type: ignore[union-attr]
    assert "contaminated_13_gram" in json.dumps(counts)


@pytest.mark.slow
def test_a_run_scores_every_probe_and_notices_changed_items(examined: Path) -> None:
    directory = run(examined, last="evaluate")
    records = list(read_records(directory / "evaluate" / "scores.jsonl"))
    assert {"exam", "held_out"} <= {score["probe"] for score in records[-1]["scores"]}
    in_loop = list(read_records(directory / "train" / "scores.jsonl"))
    assert "exam" in {score["probe"] for score in in_loop[-1]["scores"]}
    assert (directory / "train" / "probes" / "subsets.json").is_file()
    exam = examined.parent / "exam.jsonl"
    moved = examined.parent / "moved.jsonl"
    exam.rename(moved)
    examined.write_text(examined.read_text().replace("exam.jsonl", "moved.jsonl"))
    text = examined.read_text().replace(", {use: decontaminate, against: [probes]}", "")
    examined.write_text(text)
    held_out = (directory / "baseline" / "held_out.parquet").read_bytes()
    run(examined, last="baseline", redo=True)  # curation has other steps now
    rows = moved.read_text().splitlines()
    moved.write_text("\n".join(rows[:15]) + "\n")
    with pytest.raises(RunError, match="probe_files:exam"):
        run(examined, last="baseline")
    run(examined, last="baseline", redo=True)
    counts = open_artifact(directory / "baseline").counts  # type: ignore[union-attr]
    assert counts["probes"]["exam"]["items"] == 15 and held_out
