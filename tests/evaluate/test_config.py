"""Settings of evaluation, and that reading them stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from deepen.evaluate.config import EvaluateConfig, HeldOut, problems
from deepen.plug import identity
from deepen.recipe.models import Recipe
from deepen.workflow.setup import recipe_in_loop
from deepen.workflow.stages import evaluation_identity


def read(**values: object) -> EvaluateConfig:
    return EvaluateConfig.model_validate(values)


def test_probes_are_read_by_name_or_with_parameters() -> None:
    assert read(probes=["held_out"]).probes == (HeldOut(),)
    assert read(probes=[{"use": "held_out", "in_loop_tokens": "10k tokens"}]).probes[0].in_loop_tokens == 10_000


@pytest.mark.parametrize("probes", [["held_in"], [{"use": "held_out", "stride": 0}], [{"use": "held_out", "x": 1}]])
def test_probes_that_cannot_be_meant_are_refused(probes: list[object]) -> None:
    with pytest.raises(ValidationError):
        read(probes=probes)


def test_the_baseline_does_not_depend_on_budget_and_interval() -> None:
    other = read(every="10%", forgetting={"budget": "1%"})
    assert identity(other.baseline) == identity(EvaluateConfig().baseline)
    assert identity(read(probes=[{"use": "held_out", "context": 64}]).baseline) != identity(EvaluateConfig().baseline)


def test_an_interval_that_never_fires_is_a_problem() -> None:
    found = problems(read(every="500 steps"), total_steps=100, tokens_per_step=1000)
    assert [problem.path for problem in found] == ["evaluate.every"]
    assert problems(read(every="500 steps or 30min"), total_steps=100, tokens_per_step=1000) == []
    assert problems(read(), total_steps=100, tokens_per_step=1000) == []


def test_a_probe_listed_twice_is_a_problem() -> None:
    found = problems(read(probes=["held_out", "held_out"]), total_steps=100, tokens_per_step=1000)
    assert [(problem.path, problem.value) for problem in found] == [("evaluate.probes", "held_out")]


@pytest.mark.parametrize("room", ["evaluate", "select", "export"])
def test_settings_and_stage_are_read_without_torch(room: str) -> None:
    code = (
        f"import deepen.{room}.config, deepen.{room}.stage, sys; "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ({"lag": "10 steps"}, []),
        ({"lag": "2%"}, []),
        ({"lag": "30min"}, ["evaluate.lag"]),
        ({"lag": "0.1%"}, ["evaluate.lag"]),
        ({"lag": "100 steps"}, ["evaluate.lag"]),
        ({"lag": "10 steps", "every": "10min"}, ["evaluate.every"]),
        ({"lag": "10 steps", "overhead": "3%"}, ["evaluate.overhead"]),
        ({"wait": "10 steps"}, ["evaluate.wait"]),
    ],
)
def test_a_lag_that_cannot_work_is_a_problem(values: dict[str, object], places: list[str]) -> None:
    found = problems(read(**values), total_steps=100, tokens_per_step=1000)
    assert [problem.path for problem in found] == places


def test_how_long_to_wait_is_no_part_of_what_a_run_is() -> None:
    recipe = Recipe.model_validate({"name": "tiny", "base": "base", "ingest": {"sources": [SOURCE]}, "train": TRAIN})
    waiting = recipe.model_copy(update={"evaluate": read(wait="9h")})
    lagging = recipe.model_copy(update={"evaluate": read(lag="9 steps")})
    assert evaluation_identity(waiting) == evaluation_identity(recipe) != evaluation_identity(lagging)


def test_training_knows_nothing_of_probes_that_come_after_it() -> None:
    recipe = Recipe.model_validate({"name": "tiny", "base": "base", "ingest": {"sources": [SOURCE]}, "train": TRAIN})
    late = {"use": "samples", "in_loop": False}
    later = recipe.model_copy(update={"evaluate": read(probes=["held_out", late], contamination_scan=False)})
    assert evaluation_identity(later) != evaluation_identity(recipe)
    assert evaluation_identity(recipe_in_loop(later)) == evaluation_identity(recipe)
    assert [probe.label for probe in later.evaluate.late_probes] == ["samples"]
    inside = recipe.model_copy(update={"evaluate": read(probes=["held_out", "samples"])})
    assert evaluation_identity(recipe_in_loop(inside)) == evaluation_identity(inside)
    assert not problems(later.evaluate, total_steps=100, tokens_per_step=1000)
    (found,) = problems(read(probes=[late]), total_steps=100, tokens_per_step=1000)
    assert "none is measured during training" in found.message


SOURCE = {"name": "code", "role": "domain", "path": "code.jsonl"}
TRAIN = {"tokens": "1M tokens", "batch_tokens": "1k tokens"}
