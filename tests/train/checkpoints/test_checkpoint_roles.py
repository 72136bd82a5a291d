from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepen.errors import RunError
from deepen.formats.training.checkpoints import (
    CheckpointManifest,
    checkpoint_before,
    drop_optimizer,
    list_checkpoints,
    newest_intact,
    read_checkpoint,
    verify,
)
from deepen.formats.training.roles import candidates, role_records, roles
from deepen.formats.training.scores import Ability, Score
from deepen.settings import Amount, Interval
from deepen.train.beside.hooks import Hooks
from tests.train.conftest import read_metrics, read_tensors

Run = Callable[..., Any]
Configure = Callable[..., Any]

NEW = {1: -0.1, 2: -0.3, 3: -0.2, 4: -0.2, 5: -0.2, 6: -0.2, 7: -0.25, 8: -0.2}
KEPT = {1: 0.01, 2: 0.09, 3: 0.02, 4: 0.09, 5: 0.02, 6: 0.09, 7: 0.09, 8: 0.09}


def score(ability: Ability, difference: float) -> Score:
    return Score(
        probe="held_out", ability=ability, value=1.0, baseline=1.0, difference=difference, higher_is_better=False,
        items=1,
    )  # fmt: skip


def scored(every: int = 1, budget: float | None = 0.05) -> Hooks:
    """Scores from the tables above, in which 2 gained most, 1 forgot least, and 5 is the last within the budget."""
    evaluate = lambda _model, step, _tokens: [score("new", NEW[step]), score("kept", KEPT[step])]  # noqa: E731
    return Hooks(evaluate, Interval((Amount(every, "steps"),)), forgetting_budget=budget)


def steps_of(directory: Path) -> list[int]:
    return [info.step for info in list_checkpoints(directory / "checkpoints")]


def manifests(*steps: int, **marks: Any) -> list[CheckpointManifest]:
    """Manifests by step; ``marks`` are lists of steps, or numbers by step."""
    made = []
    for step in steps:
        values = {k: v.get(step) if isinstance(v, dict) else step in v for k, v in marks.items()}
        made.append(CheckpointManifest(step=step, fingerprint="", **{"milestone": False, **values}, files=()))
    return made


def test_roles_are_a_function_of_the_manifests() -> None:
    marks = {"milestone": [3], "good": [1, 4], "begins_decay": [2]}
    found = roles(manifests(1, 2, 3, 4, 5, 6, **marks, new={3: -0.1, 4: -0.1}, kept={3: 0.2, 4: 0.1}), keep=2)
    assert found == {
        1: (), 2: ("begins_decay",), 3: ("milestone", "best_new"), 4: ("best_kept", "last_good"),
        5: ("newest",), 6: ("latest", "newest"),
    }  # fmt: skip
    only_weights = roles(manifests(1, 2, 3, good=[1, 2, 3], weights_only=[2, 3]), keep=1)
    assert only_weights[1] == ("latest", "newest", "last_good")
    assert roles([], keep=3) == {}


def test_all_scored_checkpoints_stay_unless_only_the_best_are_asked_for(
    run: Run, settings: Configure, tmp_path: Path
) -> None:
    save = {"every": "100 steps", "keep": 1, "milestones": None}
    run(settings(save=save), "all", hooks=scored())
    run(settings(save=save | {"evaluated": "best"}), "best", hooks=scored())
    assert steps_of(tmp_path / "all") == list(range(1, 9))
    assert steps_of(tmp_path / "best") == [1, 2, 5, 8]
    assert [info.step for info in candidates(tmp_path / "best/checkpoints")] == [1, 2, 5, 8]
    named = {one["checkpoint"]: one["roles"] for one in role_records(tmp_path / "best/checkpoints", keep=1)}
    assert named == {
        "step-000001": ["best_kept"], "step-000002": ["best_new"], "step-000005": ["last_good"],
        "step-000008": ["latest", "newest", "milestone"],
    }  # fmt: skip


def test_candidates_do_not_depend_on_saves_by_the_clock(run: Run, settings: Configure, tmp_path: Path) -> None:
    for name, every in (("often", "1 step"), ("seldom", "100 steps")):
        save = {"every": every, "keep": 3, "milestones": "50%", "evaluated": "best"}
        run(settings(save=save), name, hooks=scored(every=3, budget=None))
    found = {name: [info.step for info in candidates(tmp_path / name / "checkpoints")] for name in ("often", "seldom")}
    assert found["often"] == found["seldom"] == [3, 4, 8]
    assert steps_of(tmp_path / "often") == [3, 4, 6, 7, 8]


def test_good_is_what_was_scored_within_the_budget_and_no_spike(run: Run, settings: Configure, tmp_path: Path) -> None:
    save = {"every": "1 step", "keep": 8, "milestones": None}
    spikes = {"deviations": 0.3, "at_least": 2, "window": 3, "believe_after": 3}

    def good(name: str) -> list[int]:
        infos = list_checkpoints(tmp_path / name / "checkpoints")
        return [info.step for info in infos if read_checkpoint(info).good]

    run(settings(save=save, skip_spikes=None), "plain")
    assert good("plain") == list(range(1, 9))
    run(settings(save=save, skip_spikes=None), "scored", hooks=scored(every=3))
    assert good("scored") == [3]
    text = [score("new", -0.1), score("kept", 0.0)]
    exam = {"probe": "exam", "higher_is_better": True, "unit": "accuracy", "significant": True}

    def forgets(_model: Any, step: int, _tokens: int) -> list[Score]:
        return [*text, text[1].model_copy(update={**exam, "difference": -0.5 if step > 4 else 0.0})]

    tasks = Hooks(forgets, Interval((Amount(2, "steps"),)), forgetting_budget=0.05)
    run(settings(save=save, skip_spikes=None), "tasks", hooks=tasks)
    assert good("tasks") == [2, 4], "kept text is not all that a budget is about"
    run(settings(save=save, skip_spikes=spikes), "spiky")
    skipped = [record["step"] for record in read_metrics(tmp_path / "spiky") if record["skipped"]]
    assert skipped and good("spiky") == [step for step in range(1, 9) if step not in skipped]


def test_milestones_give_their_optimizer_state_up_when_they_are_old(
    run: Run, settings: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save = {"every": "1 step", "keep": 2, "milestones": "25%", "milestones_weights_only": True}
    schedule = {"use": "wsd", "warmup": "1 step", "decay": "4 steps"}
    manifest = run(settings(save=save, schedule=schedule), "light", hooks=scored(every=6))
    run(settings(save=save | {"milestones_weights_only": False}, schedule=schedule), "whole", hooks=scored(every=6))
    checkpoints = tmp_path / "light/checkpoints"
    kinds = {info.step: read_checkpoint(info).weights_only for info in list_checkpoints(checkpoints)}
    assert kinds == {2: True, 4: False, 6: True, 7: False, 8: False}  # the decay begins at 4
    assert not any(verify(info) for info in list_checkpoints(checkpoints))
    assert not (checkpoints / "step-000002/optimizer.safetensors").exists()
    assert not any(entry.path == "checkpoints/step-000002/optimizer.safetensors" for entry in manifest.files)
    weights = (tmp_path / name / "checkpoints/step-000002/model.safetensors" for name in ("light", "whole"))
    assert len({path.read_bytes() for path in weights}) == 1
    assert [info.step for info in candidates(checkpoints)] == [2, 4, 6, 8]
    assert read_tensors(tmp_path / "light", 8) == read_tensors(tmp_path / "whole", 8)


def test_training_does_not_go_on_from_weights_alone(
    run: Run, settings: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(save={"every": "2 steps", "keep": 9, "milestones": None})
    run(config, "whole")
    run(config, "light", crash_at=7)
    checkpoints = tmp_path / "light/checkpoints"
    *_, last = list_checkpoints(checkpoints)
    drop_optimizer(last)
    assert last.step == 6 and verify(last) == []
    found = newest_intact(checkpoints, print)
    assert found is not None and found.step == 5
    assert "step-000006 holds weights only and is passed over" in capsys.readouterr().out
    run(config, "light")
    assert read_tensors(tmp_path / "light", 8) == read_tensors(tmp_path / "whole", 8)


def test_a_kill_while_the_optimizer_state_is_dropped_leaves_an_intact_checkpoint(
    run: Run, settings: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings(save={"every": "4 steps", "milestones": None}))
    info = list_checkpoints(tmp_path / "train/checkpoints")[0]

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        drop_optimizer(info)
    assert read_checkpoint(info).weights_only and not verify(info)
    assert (info.path / "optimizer.safetensors").exists()
    drop_optimizer(info)
    assert not (info.path / "optimizer.safetensors").exists() and not verify(info)


def test_a_way_back_is_the_newest_intact_one_before_and_good_if_asked(
    run: Run, settings: Configure, tmp_path: Path
) -> None:
    run(settings(save={"every": "1 step", "keep": 8, "milestones": None}), hooks=scored(every=2, budget=0.5))
    checkpoints = tmp_path / "train/checkpoints"
    infos = {info.step: info for info in list_checkpoints(checkpoints)}

    def before(step: int, *, good_only: bool) -> int | None:
        found = checkpoint_before(checkpoints, step, good_only=good_only)
        return None if found is None else found.step

    assert [before(step, good_only=False) for step in (1, 2, 8, 99)] == [None, 1, 7, 8]
    assert [before(step, good_only=True) for step in (2, 3, 8, 99)] == [None, 2, 6, 8]
    data = bytearray(infos[6].weights.read_bytes())
    data[-1] ^= 1
    infos[6].weights.write_bytes(data)
    drop_optimizer(infos[5])
    assert before(7, good_only=False) == before(8, good_only=True) == 4


def test_branch_refuses_weights_alone(run: Run, settings: Configure, tmp_path: Path) -> None:
    from deepen.workflow.commands.branch import _checkpoint

    run(settings(save={"every": "4 steps", "milestones": None}))
    drop_optimizer(list_checkpoints(tmp_path / "train/checkpoints")[0])
    with pytest.raises(RunError, match="step 4 holds weights only") as raised:
        _checkpoint(tmp_path / "train", 4)
    assert "8" in str(raised.value)
