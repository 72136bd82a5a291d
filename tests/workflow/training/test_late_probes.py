"""Probes that are added to a finished run, changed and removed: nothing up to training notices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deepen.board.report import write_report
from deepen.cli import app
from deepen.curate.contamination.decontaminate import Decontaminate
from deepen.errors import RunError
from deepen.evaluate import stage
from deepen.evaluate.documents.likelihoods import read_likelihoods
from deepen.formats.documents.document_ids import pack_ids
from deepen.formats.documents.documents import Document, document_files, read_documents
from deepen.formats.files.records import read_records
from deepen.formats.manifest import open_artifact
from deepen.formats.training.checkpoints import list_checkpoints, remove_checkpoint
from deepen.formats.training.scores import CheckpointScores
from deepen.formats.training.scores_beside import read_scores_beside
from deepen.recipe.reading import load
from deepen.runs.order.trace import Visit, trace
from deepen.runs.order.trained_documents import trained_among
from deepen.runs.verify import verify
from deepen.workflow.inputs.find import with_probe_items
from deepen.workflow.run import RunOptions, run_pipeline
from deepen.workflow.stages import STAGES
from deepen.workflow.training import contamination

BEFORE = ("ingest", "curate", "tokenize", "mix", "train")
AFTER = ("baseline", "evaluate", "select", "export")
PLANTED = {"long": (5, 20), "run": (3, 12), "phrase": (4, 10), "not trained": (1, 18)}
"""Item and the words of a trained document that are its question."""
PROBE = "{use: multiple_choice, name: exam, path: PATH, in_loop: false}"


@pytest.fixture
def recipe(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run; returns the path of its recipe."""
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(finished_run, copy)
    text = (finished_run.parent.parent / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is measured: probe and model."""
    done: list[tuple[str, str]] = []
    measure = stage._measured

    def noted(probe: Any, material: Any, model: Any, what: str) -> Any:
        done.append((probe.label, what))
        return measure(probe, material, model, what)

    monkeypatch.setattr(stage, "_measured", noted)
    return done


def planted(run: Path) -> dict[str, Document]:
    """By item the document that it stands in: three that were trained, and one that the order did not come to."""
    documents = [one for path in document_files(run / "curate" / "documents") for one in read_documents(path)]
    in_order: dict[bool, list[Document]] = {True: [], False: []}
    for one in documents[::3]:
        in_order[bool(trace(run, one.id).visits)].append(one)
    return dict(zip(PLANTED, [*in_order[True][:3], in_order[False][0]], strict=True))


def items(run: Path) -> list[dict[str, Any]]:
    """Items of which four stand in documents, three of them in trained ones."""
    documents = planted(run)
    rows = [
        {
            "id": name,
            "question": " ".join(documents[name].text.split()[slice(*words)]).upper(),
            "choices": ["time", "person"],
            "answer": number % 2,
        }
        for number, (name, words) in enumerate(PLANTED.items())
    ]
    unlike = [" ".join(f"w{n}q{k}" for k in range(15)) for n in range(8)]
    rows += [{"id": f"new {n}", "question": unlike[n], "choices": ["time", "way"], "answer": n % 2} for n in range(8)]
    return rows


def add(recipe: Path, probe: str = PROBE, others: str = "held_out") -> Path:
    """Add a late probe to the recipe; returns the file of its items."""
    exam = recipe.parent / "exam.jsonl"
    exam.write_text("".join(json.dumps(row) + "\n" for row in items(recipe.parent / "runs" / "tiny")))
    text = recipe.read_text().split("evaluate:")[0]
    probes = f"[{others}, {probe.replace('PATH', str(exam))}]"
    recipe.write_text(f"{text}evaluate: {{every: 50%, probes: {probes}}}\n")
    return exam


def run(recipe: Path, *sets: str, **options: Any) -> Path:
    loaded = load(recipe, None, ["machine.workers=1", *sets])
    directory = recipe.parent / "runs" / "tiny"
    run_pipeline(loaded.recipe, loaded.machine, directory, RunOptions(offline=True, **options))
    return directory


def state(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file up to training."""
    files = [path for name in BEFORE for path in sorted((directory / name).rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def fingerprints(directory: Path) -> dict[str, str]:
    return {name: open_artifact(directory / name).fingerprint for name in STAGES}  # type: ignore[union-attr]


def scores(directory: Path) -> list[CheckpointScores]:
    records = read_records(directory / "evaluate" / "scores.jsonl")
    return [CheckpointScores.model_validate(record, strict=False) for record in records]


def steps(directory: Path) -> list[str]:
    return [f"evaluate step {one.step}" for one in scores(directory)]


def mean_of(table: Path, left_out: set[str]) -> float:
    values = [row["value"] for row in read_likelihoods(table).to_pylist() if row["id"] not in left_out]
    return float(sum(values) / len(values))


def test_a_probe_comes_after_training_is_edited_and_goes(
    recipe: Path, measured: list[tuple[str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    directory = recipe.parent / "runs" / "tiny"
    before, first = state(directory), fingerprints(directory)
    weights = (directory / "export" / "model.safetensors").stat()
    exam = add(recipe)

    run(recipe)
    assert measured == [("exam", what) for what in ["baseline", *steps(directory)]]
    said = capfd.readouterr().err
    assert "baseline: only what comes after training changed (baseline.probes" in said
    assert f"{len(steps(directory))} tables were measured by the evaluation before" in said
    _check_hits(directory, said)
    assert state(directory) == before
    later = fingerprints(directory)
    assert {name for name in STAGES if later[name] != first[name]} == set(AFTER)
    assert not verify(directory).damages
    assert "the model is the one that was exported before" in said
    assert (directory / "export" / "model.safetensors").stat().st_ino == weights.st_ino
    card = (directory / "export" / "README.md").read_text()
    assert "In the training text stand 3 of 12 items of exam." in card and "score without those items" in card
    train = open_artifact(directory / "train")
    assert train is not None and train.manifest.inputs["baseline"].fingerprint == first["baseline"]
    assert "exam: 3 of 12 items stand in trained documents" in write_report(directory).read_text()

    measured.clear()
    rows = [json.loads(line) for line in exam.read_text().splitlines()]
    exam.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    run(recipe)
    assert measured == [("exam", what) for what in ["baseline", *steps(directory)]]
    assert {hit["id"] for hit in read_records(directory / "evaluate" / "contamination.jsonl")} == {"run", "phrase"}
    assert scores(directory)[0].of("exam", "new").items == 11  # type: ignore[union-attr]

    measured.clear()
    run(recipe)
    assert not measured
    recipe.write_text(recipe.read_text().split("evaluate:")[0] + "evaluate: {every: 50%}\n")
    run(recipe)
    assert not measured and fingerprints(directory) == first and state(directory) == before
    assert not (directory / "baseline" / "exam.parquet").exists() and not (directory / "evaluate" / "exam").exists()


def _check_hits(directory: Path, said: str) -> None:
    hits = {hit["id"]: hit for hit in read_records(directory / "evaluate" / "contamination.jsonl")}
    found = {name: (hit["measure"], hit["value"]) for name, hit in hits.items()}
    assert found == {"long": ("13_gram", 3), "run": ("8_grams", 1.0), "phrase": ("phrase", 6)}
    documents = planted(directory)
    assert hits["long"]["first"] == [documents["long"].id] and hits["long"]["documents"] == 1
    assert hits["run"]["first"] == [documents["run"].id] and documents["phrase"].id in hits["phrase"]["first"]
    assert all(trace(directory, name).visits for hit in hits.values() for name in hit["first"])
    for one in scores(directory):
        (without,) = one.without_hits
        score = one.of("exam", "new")
        tables = [directory / "evaluate" / "exam" / f"step-{one.step:06d}.parquet", directory / "baseline/exam.parquet"]
        assert score is not None and (score.items, without.items) == (12, 9)
        for table, (all_items, left) in zip(
            tables, [(score.value, without.value), (score.baseline, without.baseline)], strict=True
        ):
            assert all_items == pytest.approx(mean_of(table, set()))
            assert left == pytest.approx(mean_of(table, set(hits)))
        assert without.significant is None
    counts = open_artifact(directory / "evaluate").counts["contamination"]  # type: ignore[union-attr]
    assert counts["probes"]["exam"]["tasks"] == {"exam": {"items": 12, "hits": 3}}
    assert "contamination: exam: 3 of 12 items stand in trained documents (13_gram 1, 8_grams 1, phrase 1)" in said
    assert "(" in said and "12 items), without them" in said


def test_what_changed_beside_a_late_probe_is_still_refused(recipe: Path) -> None:
    add(recipe, others="{use: held_out, context: 16}")
    with pytest.raises(RunError, match="was made from something else"):
        run(recipe)
    add(recipe, PROBE.replace("false", "true"))  # in the loop: training depends on it
    with pytest.raises(RunError, match="baseline.probes"):
        run(recipe)


def test_blends_are_tried_later_and_checkpoints_are_not_measured_again(
    recipe: Path, measured: list[tuple[str, str]]
) -> None:
    before = state(recipe.parent / "runs" / "tiny")
    directory = run(recipe, "evaluate.blends.interpolate=3")
    assert state(directory) == before
    assert [what for _, what in measured] == ["evaluate 0.5 x step 10 + 0.5 x base"]
    assert open_artifact(directory / "select").counts["candidates"] > len(scores(directory))  # type: ignore[union-attr]


def test_the_word_probes_stands_for_those_in_the_loop(recipe: Path) -> None:
    exam = add(recipe)
    text = recipe.read_text().replace("exact_duplicates]", "exact_duplicates, {use: decontaminate, against: [probes]}]")
    loop = recipe.parent / "loop.jsonl"
    shutil.copy(exam, loop)
    in_loop = f"{{use: multiple_choice, name: loop, path: {loop}}}"
    recipe.write_text(text.replace("[held_out,", f"[held_out, {in_loop},"))
    resolved = with_probe_items(load(recipe).recipe)
    step = resolved.curate.steps[-1]
    assert isinstance(step, Decontaminate) and step.against == (str(loop),)
    assert contamination.kept_out(resolved) == {"loop"}
    looser = step.model_copy(update={"any_13_gram": False})
    curate = resolved.curate.model_copy(update={"steps": (looser,)})
    assert contamination.kept_out(resolved.model_copy(update={"curate": curate})) == set()


def test_a_search_that_fails_fails_alone_and_can_be_left_out(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, measured: list[tuple[str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    add(recipe)

    def broken(*_arguments: Any, **_more: Any) -> Callable[..., Any]:
        raise ZeroDivisionError("no words")

    monkeypatch.setattr("deepen.curate.contamination.scan.scan_documents", broken)
    directory = run(recipe, last="evaluate")
    counts = open_artifact(directory / "evaluate").counts["contamination"]  # type: ignore[union-attr]
    assert counts["failed"] == {"exam": "ZeroDivisionError: no words"} and counts["probes"] == {}
    assert "the search for `contamination` failed: ZeroDivisionError" in capfd.readouterr().err
    assert all(one.without_hits == () and one.of("exam", "new") for one in scores(directory))
    measured.clear()
    run(recipe, "evaluate.contamination_scan=false", last="evaluate")
    counts = open_artifact(directory / "evaluate").counts  # type: ignore[union-attr]
    assert not measured and counts.get("contamination") is None


def test_a_run_that_refers_to_what_is_replaced_keeps_its_own(recipe: Path) -> None:
    directory = recipe.parent / "runs" / "tiny"
    other = recipe.parent / "runs" / "other"
    loaded = load(recipe, None, ["machine.workers=1", "name=other"])
    run_pipeline(loaded.recipe, loaded.machine, other, RunOptions(last="baseline", offline=True))
    before = open_artifact(other / "baseline")
    assert before is not None and before.path == (directory / "baseline").resolve()
    add(recipe)
    run(recipe, last="baseline")
    after = open_artifact(other / "baseline")
    assert after is not None and after.path == other / "baseline" and after.fingerprint == before.fingerprint
    assert (other / "baseline" / "held_out.parquet").is_file() and not verify(other / "baseline").damages


def test_what_was_interrupted_goes_on_and_leaves_the_old_result_until_it_is_done(
    recipe: Path, measured: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, first = recipe.parent / "runs" / "tiny", fingerprints(recipe.parent / "runs" / "tiny")
    add(recipe)
    measure = stage._measured

    def interrupted(*given: Any) -> Any:
        if len(measured) == 4:
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(stage, "_measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    assert fingerprints(directory)["evaluate"] == first["evaluate"] and not verify(directory / "evaluate").damages
    monkeypatch.setattr(stage, "_measured", measure)
    done = len(measured)
    run(recipe, last="evaluate")
    assert len(set(measured)) == len(measured) == 1 + len(scores(directory)) and done == 4
    assert not (directory / "evaluate.redo").exists() and not (directory / "evaluate" / "contamination.tmp").exists()
    assert {hit["id"] for hit in read_records(directory / "evaluate" / "contamination.jsonl")} == {
        "long", "run", "phrase",
    }  # fmt: skip


@pytest.mark.parametrize("num_steps", [1, 4, 10])
def test_documents_are_trained_that_trace_finds_in_the_steps(finished_run: Path, num_steps: int) -> None:
    files = document_files(finished_run / "curate" / "documents")
    names = [one.id for path in files for one in read_documents(path)][::4] + ["f" * 32]
    expected = [any(visit.step <= num_steps for visit in _visits(finished_run, name)) for name in names]
    found = trained_among(pack_ids(names), run=finished_run, num_steps=num_steps)
    assert found.tolist() == expected and 0 < sum(expected) < len(names)


def _visits(directory: Path, name: str) -> tuple[Visit, ...]:
    return () if name == "f" * 32 else trace(directory, name).visits


def test_watching_scores_late_probes_for_the_evaluation_and_not_for_training(
    recipe: Path, measured: list[tuple[str, str]]
) -> None:
    directory = recipe.parent / "runs" / "tiny"
    for name in ("evaluate", "select", "export"):
        shutil.rmtree(directory / name)
    for info in list_checkpoints(directory / "train" / "checkpoints")[2:]:
        remove_checkpoint(info)
    done = CliRunner().invoke(app, ["evaluate", str(directory), "--watch"])
    assert done.exit_code == 0, done.output
    add(recipe)
    run(recipe, last="baseline")
    measured.clear()
    done = CliRunner().invoke(app, ["evaluate", str(directory), "--watch"])
    assert done.exit_code == 0 and "exam new" in done.stdout, done.output
    assert {label for label, _ in measured} == {"exam"}  # the other tables are there
    records = list(read_records(directory / "watch" / "scores.jsonl"))
    half = len(records) // 2
    assert [one["scores"] for one in records[:half]] == [one["scores"] for one in records[half:]]
    assert all({score["probe"] for score in one["late"]} == {"exam"} for one in records[half:])
    for one in read_scores_beside(directory / "watch").values():
        assert one.everything.of("exam", "new") and not one.plain.of("exam", "new")
    again = CliRunner().invoke(app, ["evaluate", str(directory), "--watch", "--json"])
    assert json.loads(again.stdout)["scored"] == []
    measured.clear()
    run(recipe, last="evaluate")
    assert not measured and all(one.of("exam", "new") for one in scores(directory))


@pytest.mark.slow
def test_several_processes_train_without_late_probes(recipe: Path) -> None:
    add(recipe)
    directory = recipe.parent / "runs" / "tiny"
    shutil.rmtree(directory)
    sets = ["machine.launch.processes_per_node=2", "machine.compute.threads=1"]
    run(recipe, *sets)
    train, baseline = (open_artifact(directory / name) for name in ("train", "baseline"))
    assert train is not None and baseline is not None
    assert train.manifest.inputs["baseline"].fingerprint == baseline.core != baseline.fingerprint
    assert not any(name == "probe_files:exam" for name in train.manifest.inputs)
    for record in read_records(directory / "train" / "scores.jsonl"):
        assert "exam" not in {score["probe"] for score in record["scores"]}
    assert all(one.of("exam", "new") for one in scores(directory))
    before = fingerprints(directory)
    recipe.write_text(recipe.read_text().split("evaluate:")[0] + "evaluate: {every: 50%}\n")
    run(recipe, *sets)
    assert fingerprints(directory)["train"] == before["train"]
