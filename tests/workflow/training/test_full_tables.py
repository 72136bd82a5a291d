"""`evaluate.full_every` in whole runs: the same results, measured once, by all processes; never of other weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepen.evaluate import stage
from deepen.evaluate.documents.likelihoods import read_likelihoods
from deepen.formats.files.records import read_records
from deepen.formats.manifest import open_artifact
from deepen.formats.training.checkpoints import list_checkpoints, read_state
from deepen.recipe.reading import load
from deepen.workflow.run import RunOptions, run_pipeline
from tests.parallel.runs import deepen, finish, machine, write_inputs

SETTINGS = "evaluate:\n  every: 20%\n  probes: [{{use: held_out, context: 32, in_loop_tokens: 200}}]{}\n"


def run(recipe: Path, name: str, last: str, **options: Any) -> Path:
    loaded = load(recipe, None, ["machine.workers=1"])
    directory = recipe.parent / "runs" / name
    run_pipeline(loaded.recipe, loaded.machine, directory, RunOptions(last=last, offline=True, **options))
    return directory


def with_settings(tiny: Path, full: str = "") -> Path:
    """The tiny recipe of ten steps, measured after every second."""
    tiny.write_text(tiny.read_text().split("evaluate:")[0] + SETTINGS.format(full))
    return tiny


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the stages after training measure, by title."""
    found: list[str] = []
    measure = stage._measured

    def counted(probe: Any, material: Any, model: Any, what: str) -> Any:
        found.append(what)
        return measure(probe, material, model, what)

    monkeypatch.setattr(stage, "_measured", counted)
    return found


def scores(directory: Path, room: str) -> list[dict[str, Any]]:
    return list(read_records(directory / room / "scores.jsonl"))


def test_what_training_measured_is_not_measured_again(
    tiny: Path, measured: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    plain = run(with_settings(tiny), "plain", "evaluate")
    assert measured == ["baseline", *(f"evaluate step {step}" for step in range(1, 11))]
    measured.clear()
    full = run(with_settings(tiny, "\n  full_every: 4 steps"), "full", "train")
    for info in list_checkpoints(full / "train/checkpoints"):
        assert set(read_state(info).get("tables", {})) == ({"held_out"} if info.step in (4, 8, 10) else set())
        weights = plain / "train/checkpoints" / info.path.name / "model.safetensors"
        assert (info.path / "model.safetensors").read_bytes() == weights.read_bytes(), "measuring changes nothing"
    (full / "train/probes/held_out/step-000008.parquet").write_bytes(b"damaged")
    measured.clear()
    run(tiny, "full", "evaluate")
    assert measured == [f"evaluate step {step}" for step in range(1, 10) if step != 4], "8 is damaged"
    assert "2 tables were measured by training" in capfd.readouterr().err
    assert scores(full, "evaluate") == scores(plain, "evaluate")
    for one, other in zip(scores(full, "train"), scores(plain, "train"), strict=True):
        for mine, theirs in zip(one["scores"], other["scores"], strict=True):
            assert (mine["items"], mine["value"]) == (theirs["items"], pytest.approx(theirs["value"], rel=1e-6))
    counts = open_artifact(full / "evaluate").counts["in_loop"]  # type: ignore[union-attr]
    assert (counts["measurements"], counts["in_full"]) == (5, 3) and counts["in_full_seconds"] > 0


def test_a_table_of_other_weights_is_not_taken(tiny: Path, measured: list[str]) -> None:
    """As after going back: the step was trained again, and its checkpoint names nothing."""
    directory = run(with_settings(tiny, "\n  full_every: 100%"), "full", "train")
    info = list_checkpoints(directory / "train/checkpoints")[-1]
    other = directory / "train/probes/held_out/step-000010.parquet"
    assert other.is_file()
    state = json.loads((info.path / "state.json").read_text())
    table = read_likelihoods(other)
    stage.write_likelihoods(other, table.slice(0, 3), other.parent)
    assert state["tables"]["held_out"]["hash"] != stage.entry_of(other, other.parent).hash
    measured.clear()
    run(tiny, "full", "evaluate")
    assert "evaluate step 10" in measured
    assert read_likelihoods(directory / "evaluate/held_out/step-000010.parquet").num_rows == table.num_rows


@pytest.mark.slow
def test_several_processes_measure_in_full_what_one_does(tmp_path: Path) -> None:
    found = {}
    for processes in (1, 2):
        root = tmp_path / str(processes)
        write_inputs(root)
        with_settings(root / "recipe.yaml", "\n  full_every: 4 steps")
        layout = f"launch: {{processes_per_node: {processes}}}\n" if processes > 1 else ""
        output = finish(deepen("run", "recipe.yaml", "--machine", str(machine(root, layout))), root)
        assert "3 tables were measured by training" in output
        tables = [read_likelihoods(path) for path in sorted((root / "runs/tiny/evaluate/held_out").glob("*.parquet"))]
        found[processes] = [(row["id"], row["nll"]) for table in tables for row in table.to_pylist()]
    for (one, alone), (other, together) in zip(found[1], found[2], strict=True):
        assert one == other and together == pytest.approx(alone, rel=1e-4)
