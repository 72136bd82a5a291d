"""What the report says of the choice where a blend was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepen.board.outcomes import outcome_sections
from deepen.formats.files.atomic import write_json
from deepen.formats.files.records import write_records
from deepen.formats.manifest import Artifact
from deepen.formats.training.scores import BlendPart, CheckpointScores, Score
from deepen.select.config import BestNewWithinBudget
from deepen.select.stage import candidates_of, chosen
from tests.board.test_probes import artifact

BLEND = (BlendPart(step=20, weight=0.5), BlendPart(step=None, weight=0.5))


def scores(new: float, kept: float, **changes: Any) -> CheckpointScores:
    found = [
        Score(probe="held_out", ability=ability, value=1 + change, baseline=1.0, difference=change,
              interval=(change - 0.001, change + 0.001), higher_is_better=False, items=9)
        for ability, change in (("new", new), ("kept", kept))
    ]  # fmt: skip
    return CheckpointScores(step=20, tokens=200, scores=tuple(found), **changes)


def stages(run: Path) -> dict[str, Artifact]:
    """A run whose checkpoint forgets too much, and whose blend does not; halves differ from the whole."""
    every = [scores(-0.3, 0.1), scores(-0.2125, 0.0125, blend=BLEND)]
    half = [scores(-0.31, 0.11), scores(-0.22, 0.01, blend=BLEND)]
    found = {"baseline": artifact(run / "baseline", {"failed": {}, "probes": {}})}
    found |= {name: artifact(run / name, {"failed": {}}) for name in ("evaluate", "select")}
    for name, records in (("scores", every[:1]), ("candidates", every)):
        lines = (one.model_dump(mode="json") for one in records)
        write_records(run / f"evaluate/{name}.jsonl", lines, run / "evaluate")
    choice = chosen(BestNewWithinBudget(), candidates_of(half, 0.03), 0.03)
    write_json(run / "select/choice.json", choice.model_dump(mode="json"))
    return found


def test_the_scores_of_a_chosen_blend_are_shown_and_the_plane_is_by_all_documents(tmp_path: Path) -> None:
    run = tmp_path / "runs/one"
    run.mkdir(parents=True)
    recipe = {"name": "one", "evaluate": {"forgetting": {"budget": 0.03}}}
    plane, over_time, *_ = outcome_sections(run, recipe, stages(run))
    assert "0.5 x step 20 + 0.5 x base" in over_time.body and "-21.25%" in over_time.body
    assert "0.2125" in plane.body and "0.0125" in plane.body, "not the half that the choice was made on"
