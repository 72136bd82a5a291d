"""Every option does something: changed, it changes what a run leaves, or the test that shows it is named here.

A new option fails this test until it has its place, and until docs/train.md (docs/parallel.md for meshes) speaks of it.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from deepen.model.config import RandomInit, ResolvedBase
from deepen.parallel.config import Compute, Mesh
from deepen.settings import Settings
from deepen.train.config import TrainConfig
from deepen.train.faults.divergence import Divergence, LossTrend
from deepen.train.faults.spikes import RecentSteps, SkipSpikes, spike
from tests.train.conftest import LENGTH, ROWS, read_metrics, read_tensors

ROOT = Path(__file__).parents[2]
Run = Callable[..., Any]

MOVES_WEIGHTS: dict[str, dict[str, Any]] = {
    "learning_rate": {"learning_rate": 2e-2},
    "schedule.use": {"schedule": {"use": "constant"}},
    "schedule.warmup": {"schedule": {"use": "cosine", "warmup": "4 steps"}},
    "schedule.floor": {"schedule": {"use": "cosine", "floor": "0.9x"}},
    "rate_multiples.embeddings": {"rate_multiples": {"embeddings": 0.5}},
    "freeze": {"freeze": ["model.layers.0.*"]},
    "neftune_alpha": {"neftune_alpha": 5.0},
    "precision": {"precision": "pure_bf16"},
    "weight_decay": {"weight_decay": 0.9},
    "betas": {"betas": [0.5, 0.6]},
    "epsilon": {"epsilon": 0.1},
    "clip": {"clip": 0.01},
    "z_loss": {"z_loss": 0.5},
}
"""Options whose change must change the weights after eight steps."""

LEAVES_OTHER_FILES: dict[str, dict[str, Any]] = {
    "tokens": {"tokens": 6 * ROWS * LENGTH},
    "save.every": {"save": {"every": "2 steps", "keep": 9, "milestones": None}},
    "save.keep": {"save": {"every": "1 step", "keep": 2, "milestones": None}},
    "save.milestones": {"save": {"every": "1 step", "keep": 1, "milestones": "3 steps"}},
    "save.milestones_weights_only": {
        "save": {"every": "1 step", "keep": 1, "milestones": "2 steps", "milestones_weights_only": True}
    },
    "log": {"log": 3, "save": {"milestones": None}},
}
"""Options whose change must change which records and files a run leaves."""

BATCHES = "tests/train/batches/"
CHECKPOINTS = "tests/train/checkpoints/"
SCHEDULE = "tests/train/schedule/"
DIVERGENCE = "tests/train/faults/test_divergence.py::"
MANY_SKIPPED = DIVERGENCE + "test_many_skipped_steps_lead_back_and_name_the_documents"
IN_ORDER = DIVERGENCE + "test_answers_come_in_their_order_and_what_cannot_be_done_is_passed_over"
RETENTION = "tests/train/retention/test_retention.py::test_penalties_change_the_run_and_the_first_loss_stays"
COMPUTE = "tests/train/test_compute.py::"
COPIES = "tests/evaluate/during_training/test_copies.py::"
PARITY = "tests/parallel/axes/test_parity.py::"
MEMORY = "tests/train/faults/test_memory.py::"
SAVING = CHECKPOINTS + "test_saving.py::"
ROLES = CHECKPOINTS + "test_checkpoint_roles.py::"
SHOWN_BY = {
    "batch_tokens": "tests/train/test_config.py::test_steps_round_up_and_rows_to_the_nearest",
    "base_peak_learning_rate": "tests/train/test_config.py::test_a_multiple_of_the_base_uses_the_recipe_then_the_table",
    "base_final_learning_rate": "tests/train/test_config.py::test_the_final_rate_of_the_base_is_another_starting_point",
    "objective": SCHEDULE + "test_methods.py::test_sft_refuses_domain_documents_without_answers",
    "method.use": SCHEDULE + "test_methods.py::test_only_adapters_move_and_they_learn",
    "rate_multiples.head": "tests/train/test_options.py::test_a_head_of_its_own_moves_by_its_own_rate",
    "rate_multiples.new_rows": SCHEDULE + "test_groups.py::test_rows_move_a_multiple_of_what_the_optimizer_did",
    "new_rows_first": SCHEDULE + "test_new_rows.py::",
    "new_rows_learning_rate": SCHEDULE + "test_new_rows.py::",
    **{f"retention.{name}": RETENTION for name in ("l2_sp", "ewc", "kl")},
    "skip_spikes.believe_after": "tests/train/test_loop.py::test_spikes_in_a_row_are_believed_and_null_lets_them_pass",
    "skip_spikes.rewind.after": MANY_SKIPPED,
    "skip_spikes.rewind.within": MANY_SKIPPED,
    "skip_spikes.rewind.steps_before": MANY_SKIPPED,
    "skip_spikes.rewind.most": MANY_SKIPPED,
    "divergence.lower_to": DIVERGENCE + "test_a_rate_that_is_far_too_high_is_answered_until_the_run_stops",
    "divergence.lower_times": IN_ORDER,
    "divergence.rewinds": IN_ORDER,
    "save.evaluated": ROLES + "test_all_scored_checkpoints_stay_unless_only_the_best_are_asked_for",
    "save.self_test": CHECKPOINTS + "test_self_test.py::test_it_runs_before_the_first_step_only_and_can_be_turned_off",
    "compute.device": "tests/parallel/test_process.py::",
    "compute.threads": "tests/parallel/test_process.py::",
    "compute.micro_batch_rows": BATCHES + "test_micro_batches.py::",
    "compute.shrink_on_oom": MEMORY + "test_where_nothing_can_be_made_smaller_the_error_has_the_numbers",
    "compute.background_saves": SAVING + "test_background_writes_the_same_bytes_and_trains_the_same",
    "compute.recompute": COMPUTE + "test_recomputing_is_used_and_changes_no_bit",
    "compute.compile": COMPUTE + "test_compiled_training_resumes_bit_equal_and_counts_what_it_compiles",
    "compute.attention": COMPUTE + "test_attention_by_boundaries_is_used_and_trains_alike",
    "compute.loss_kernel": "tests/model/loss/test_loss_kernels.py::",
    "compute.deterministic": "tests/parallel/test_process.py::",
    "compute.prefetch_batches": BATCHES + "test_prefetch.py::test_a_run_waits_less_and_is_the_same",
    "compute.scoring_copies": COPIES + "test_any_number_of_copies_makes_the_same_files",
    **{f"mesh.{name}": PARITY for name in Mesh.model_fields if name != "timeout_seconds"},
    "mesh.reduce_dtype": "tests/parallel/test_features.py::",
    "mesh.timeout_seconds": "tests/parallel/processes/test_drills.py::",
}
"""The test that fails if the option does nothing; a file alone where several of its tests do."""


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All options with their paths, defaults followed down."""
    for name, field in model.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, Settings) and type(default).model_fields:
            yield from leaves(type(default), f"{prefix}{name}.")
        else:
            yield prefix + name


OPTIONS = [*leaves(TrainConfig), *leaves(Compute, "compute."), *leaves(Mesh, "mesh.")]


@pytest.mark.parametrize("option", MOVES_WEIGHTS)
def test_a_changed_option_changes_the_weights(
    run: Run, settings: Callable[..., TrainConfig], tmp_path: Path, option: str
) -> None:
    run(settings(precision="fp32"), "default")
    run(settings(**{"precision": "fp32"} | MOVES_WEIGHTS[option]), "changed")
    assert read_tensors(tmp_path / "default", 8) != read_tensors(tmp_path / "changed", 8)


def test_a_head_of_its_own_moves_by_its_own_rate(
    run: Run, settings: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    init = RandomInit(init="random", hidden_size=16, layers=2, heads=2, max_length=32, tied=False)
    untied = ResolvedBase("untied", None, init, "untied")
    run(settings(precision="fp32"), "default", base=untied)
    run(settings(precision="fp32", rate_multiples={"head": 0.5}), "changed", base=untied)
    assert read_tensors(tmp_path / "default", 8) != read_tensors(tmp_path / "changed", 8)


@pytest.mark.parametrize("option", LEAVES_OTHER_FILES)
def test_a_changed_option_leaves_other_files(
    run: Run, settings: Callable[..., TrainConfig], tmp_path: Path, option: str
) -> None:
    changed = LEAVES_OTHER_FILES[option]
    before = {"save": {**changed.get("save", {})}}
    before["save"].pop(option.removeprefix("save."), None)
    run(settings(**before if before["save"] else {}), "default")
    run(settings(**changed), "changed")
    assert left_by(tmp_path / "default") != left_by(tmp_path / "changed")


def left_by(out: Path) -> tuple[list[int], list[str]]:
    """Steps that have a record, and the files of checkpoints."""
    files = sorted(path.relative_to(out).as_posix() for path in out.glob("checkpoints/*/*"))
    return [record["step"] for record in read_metrics(out)], files


def steps_of(losses: list[float], settings: SkipSpikes) -> list[bool]:
    """Whether each loss is passed over, one after the other."""
    recent, found = RecentSteps(settings.window), []
    for loss in losses:
        reason = spike(settings, recent, loss, 1.0)
        found.append(reason is not None)
        if reason is None:
            recent.add(loss, 1.0)
    return found


@pytest.mark.parametrize("changes", [{"deviations": 1.0}, {"at_least": 8}, {"above_first": 0.01}, {"window": 64}])
def test_numbers_of_spikes_decide(changes: dict[str, Any]) -> None:
    """A loud stretch, a jump in it before there are 64 steps, then a quiet one with a smaller jump."""
    random = np.random.default_rng(2)
    losses = [*(2.0 + random.normal(0, 0.2, 120)), *(2.0 + random.normal(0, 0.02, 100))]
    losses[40] += 1.6
    losses[200] += 0.35
    assert steps_of(losses, SkipSpikes()) != steps_of(losses, SkipSpikes(**changes))


@pytest.mark.parametrize("changes", [{"smoothing": 5}, {"rise": 1.0}, {"deviations": 500.0}, {"steps": 20}])
def test_numbers_of_divergence_decide(changes: dict[str, Any]) -> None:
    assert first_alarm(Divergence()) != first_alarm(Divergence(**changes))


def first_alarm(settings: Divergence) -> float:
    """The first step at which a slowly rising, noisy loss counts as divergence."""
    trend, random = LossTrend(), np.random.default_rng(0)
    for step in range(1, 701):
        loss = 2.5 + 0.002 * max(0, step - 200) + random.normal(0, 0.05)
        trend.add(settings, step, np.array([1000.0 * loss]), np.array([1000.0]))
        if trend.diverges(settings):
            return step
    return math.inf


def test_every_option_has_its_place() -> None:
    here = {f"skip_spikes.{name}" for name in ("deviations", "at_least", "above_first", "window")}
    here |= {f"divergence.{name}" for name in ("smoothing", "rise", "deviations", "steps")}
    placed = {*MOVES_WEIGHTS, *LEAVES_OTHER_FILES, *SHOWN_BY, *here}
    assert set(OPTIONS) - placed == set(), "options without a test that shows what they do"
    assert placed - set(OPTIONS) == set(), "options that are no more"


@pytest.mark.parametrize("option", SHOWN_BY)
def test_the_named_test_is_there_and_speaks_of_the_option(option: str) -> None:
    file, _, function = SHOWN_BY[option].partition("::")
    source = (ROOT / file).read_text()
    names = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert function in names or function == "", f"{file} has no {function}"


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_documented(option: str) -> None:
    page = "parallel.md" if option.startswith("mesh.") else "train.md"
    assert f"{option.rpartition('.')[2]}" in (ROOT / "docs" / page).read_text()
