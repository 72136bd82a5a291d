"""Checkpoints of weights only, and only the best of the scored, through the whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepen.errors import RunError
from deepen.formats.files.records import read_records
from deepen.formats.training.checkpoints import list_checkpoints, read_checkpoint
from deepen.formats.training.roles import candidates
from deepen.recipe.reading import load
from deepen.runs.account import account
from deepen.runs.verify import verify
from deepen.settings import Amount
from deepen.workflow.commands.branch import Branch, branch_run
from deepen.workflow.run import RunOptions, run_pipeline

SAVE = (
    "train.save={every: 1 steps, keep: 1, milestones: 30%, milestones_weights_only: true, evaluated: best}",
    "evaluate.every=2 steps",
)


def run(recipe: Path, name: str, *sets: str, **options: Any) -> Any:
    loaded = load(recipe, None, ["machine.workers=1", "machine.compute.threads=1", *SAVE, *sets])
    return run_pipeline(loaded.recipe, loaded.machine, recipe.parent / "runs" / name, RunOptions(**options))


def test_what_stays_is_scored_and_chosen_from(tiny: Path) -> None:
    done = run(tiny, "tiny")
    checkpoints = done["train"].path / "checkpoints"
    kinds = {info.step: read_checkpoint(info) for info in list_checkpoints(checkpoints)}
    assert {3, 6, 8, 10} <= set(kinds) and len(kinds) <= 4 + 3  # 30 %, the decay, the end; at most three of the scored
    assert kinds[3].weights_only and not kinds[8].weights_only and kinds[8].begins_decay
    scored = [record["step"] for record in read_records(done["evaluate"].path / "scores.jsonl")]
    assert scored == [info.step for info in candidates(checkpoints)]
    first = {step: found.new for step, found in kinds.items() if found.new is not None}
    everyone = {record["step"]: record["scores"] for record in read_records(done["train"].path / "scores.jsonl")}
    new = {
        step: next(s["difference"] for s in scores if (s["probe"], s["ability"]) == ("held_out", "new"))
        for step, scores in everyone.items()
    }
    best = min(new, key=lambda step: (new[step], step))
    assert set(everyone) == {2, 4, 6, 8, 10} and best in first and first[best] == new[best]
    assert done["export"].path.is_dir()
    assert verify(tiny.parent / "runs/tiny").damages == []
    assert all(line.balances for line in account(tiny.parent / "runs/tiny"))
    with pytest.raises(RunError, match="step 3 holds weights only"):
        branch_run(tiny.parent / "runs/tiny", Branch(3, Amount(2, "steps")))


@pytest.mark.slow
def test_a_run_without_old_optimizer_states_continues_exactly(tiny: Path) -> None:
    run(tiny, "tiny", last="train")
    longer = "train.tokens=3840"
    continued, at_once = run(tiny, "tiny", longer, extend=True, last="train"), run(tiny, "long", longer, last="train")
    last = [artifacts["train"].path / "checkpoints/step-000020" for artifacts in (continued, at_once)]
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = ((path / name).read_bytes() for path in last)
        assert one == other
