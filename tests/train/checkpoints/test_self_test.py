from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepen.errors import TrainingError
from deepen.formats.training.checkpoints import list_checkpoints
from deepen.formats.training.scores import Score
from deepen.model.config import ResolvedBase
from deepen.parallel.config import Compute
from deepen.settings import Amount, Interval
from deepen.train.beside.hooks import Hooks
from deepen.train.beside.interrupt import StopRequest
from deepen.train.checkpoints import disk_room as room_module
from deepen.train.checkpoints import self_test as tested
from deepen.train.checkpoints.disk_room import DiskRoom, check_room, room_needed
from deepen.train.checkpoints.files import Marks, snapshot_of
from deepen.train.checkpoints.self_test import digests, self_test
from deepen.train.config import Save
from deepen.train.loop import training_steps
from deepen.train.run import Run
from deepen.train.starting.build import prepare_run
from tests.train.conftest import read_tensors

Prepare = Callable[..., Run]


@pytest.fixture
def prepare(job: Any, base: ResolvedBase, settings: Any) -> Prepare:
    def build(hooks: Hooks | None = None, **changes: Any) -> Run:
        compute = Compute(device="cpu", threads=1)
        return prepare_run(settings(**changes), job(), base, compute, hooks or Hooks())

    return build


def state_of(run: Run) -> dict[str, str]:
    return digests(snapshot_of(run.trainee.model.model, run.trainee.optimizer, {"step": 0}, Marks()))


def test_the_run_is_afterwards_as_it_was_and_so_is_the_folder(
    prepare: Prepare, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = prepare()
    before = state_of(run)
    self_test(run)
    assert state_of(run) == before and len(before) > 5 and not run.trainee.optimizer.state
    assert list((tmp_path / "train/checkpoints").iterdir()) == []
    assert "bytes was written and read back in" in capsys.readouterr().err


def test_the_self_test_changes_no_bit_of_training(run: Any, settings: Any, tmp_path: Path) -> None:
    for name, on in (("with", True), ("without", False)):
        run(settings(save={"self_test": on}), name)
    assert read_tensors(tmp_path / "with", 8) == read_tensors(tmp_path / "without", 8)


def test_it_runs_before_the_first_step_only_and_can_be_turned_off(
    run: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    really_test = tested.self_test
    monkeypatch.setattr(tested, "self_test", lambda run: (calls.append(run.progress.step), really_test(run)))
    config = settings(save={"every": "2 steps", "milestones": None})
    run(config, "broken", crash_at=5)
    run(config, "broken")
    run(settings(save={"self_test": False}), "off")
    assert calls == [0]


def test_a_disk_that_changes_a_bit_is_found(prepare: Prepare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = prepare()
    really_write = tested.write_checkpoint

    def write_on_a_bad_disk(folder: Path, snapshot: Any) -> Any:
        info = really_write(folder, snapshot)
        data = bytearray(info.weights.read_bytes())
        data[-3] ^= 4
        info.weights.write_bytes(data)
        return info

    monkeypatch.setattr(tested, "write_checkpoint", write_on_a_bad_disk)
    with pytest.raises(TrainingError, match="1 of .* tensors came back different, .* first") as raised:
        self_test(run)
    assert "self_test: false" in str(raised.value)
    assert list((tmp_path / "train/checkpoints").iterdir()) == []


@pytest.mark.parametrize("forgotten", ["exp_avg", "step"])
def test_a_moment_that_saving_forgets_is_found(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    run = prepare()

    def load_without(info: Any, model: Any, optimizer: Any, rank: int = 0) -> Any:
        state = load(info, model, optimizer)
        for moments in optimizer.state.values():
            moments[forgotten] = torch.zeros_like(moments[forgotten])
        return state

    load = tested.load_checkpoint
    monkeypatch.setattr(tested, "load_checkpoint", load_without)
    with pytest.raises(TrainingError, match=f"came back different, optimizer/{forgotten}/"):
        self_test(run)


def test_a_trained_weight_that_is_not_saved_is_found(prepare: Prepare) -> None:
    run = prepare()
    model = run.trainee.model.model
    model.extra = torch.nn.Parameter(torch.ones(3))  # type: ignore[assignment]
    really = model.state_dict
    model.state_dict = lambda **how: {k: v for k, v in really(**how).items() if k != "extra"}  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="1 trained weights would not be saved, extra first"):
        self_test(run)


def test_a_weight_of_a_kind_that_cannot_be_stored_is_found(prepare: Prepare) -> None:
    run = prepare()
    run.trainee.model.model.register_buffer("odd", torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TrainingError, match="failed with KeyError: torch.complex64"):
        self_test(run)


def test_a_disk_that_takes_no_checkpoint_ends_the_run_before_its_first_step(
    run: Any, settings: Any, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(TrainingError, match="self-test of checkpoints.*File too large"):
            run(settings())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "train/metrics.jsonl").exists()


def test_room_is_estimated_from_the_checkpoints_that_will_lie_there(prepare: Prepare, tmp_path: Path) -> None:
    watch = Hooks(lambda *_: list[Score](), Interval((Amount(3, "steps"),)))
    save = {"every": "1 step", "keep": 2, "milestones": "2 steps"}
    ready = prepare(hooks=watch, save=save)
    room = room_needed(ready, Save.model_validate(save))
    assert room.at_once == 3 * room.checkpoint and room.milestones == 4 * room.checkpoint  # 2, 3, 4, 6
    light = room_needed(ready, Save.model_validate(save | {"milestones_weights_only": True}))
    assert light.milestones == pytest.approx(room.milestones / 3)
    list(training_steps(ready, StopRequest()))
    infos = list_checkpoints(tmp_path / "train/checkpoints")
    assert [info.step for info in infos] == [2, 3, 4, 6, 7, 8]
    whole = sum(path.stat().st_size for info in infos for path in info.path.glob("*.safetensors"))
    assert whole / 6 == pytest.approx(room.checkpoint, rel=0.25)  # names, and the random state, of a tiny model


def test_too_little_room_is_refused_or_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    room = DiskRoom(checkpoint=100, at_once=400, milestones=1000)
    check_room(tmp_path, room, lambda _: 1400)
    assert capsys.readouterr().err == ""
    check_room(tmp_path, room, lambda _: 1399)
    assert "checkpoints of 1.4k bytes, there is room for 1.4k" in capsys.readouterr().err
    with pytest.raises(TrainingError, match=r"room for 399 bytes.*take 400 \(100 each\)"):
        check_room(tmp_path, room, lambda _: 399)
    (tmp_path / "step-000003").mkdir()
    for name in ("manifest.json", "model.safetensors"):
        (tmp_path / "step-000003" / name).write_bytes(b" " * 150)
    check_room(tmp_path, room, lambda _: 100)  # 300 of the 400 are there


def test_a_run_without_room_is_refused_before_its_first_step(
    run: Any, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(_: Path) -> Any:
        return type("Usage", (), {"free": 1000})

    monkeypatch.setattr(room_module.shutil, "disk_usage", full)
    with pytest.raises(TrainingError, match="room for 1k bytes"):
        run(settings())
    assert not (tmp_path / "train/metrics.jsonl").exists()
