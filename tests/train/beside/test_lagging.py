"""Scores of another process: taken at a fixed step, however fast it is, and again by whoever resumes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from deepen.errors import DamageError, TrainingError
from deepen.formats.files.records import append_record, read_records
from deepen.formats.training.checkpoints import list_checkpoints, read_checkpoint
from deepen.formats.training.decisions import Decision, read_decisions
from deepen.formats.training.roles import candidates
from deepen.formats.training.scores import SCORES, CheckpointScores, Score
from deepen.formats.training.scores_beside import ScoresBeside, identity_of
from deepen.parallel.config import Compute
from deepen.settings import Amount, Interval
from deepen.train.beside import late_scores as lagging
from deepen.train.beside.hooks import Hooks, Lag
from deepen.train.beside.interrupt import StoppedError, StopRequest
from deepen.train.checkpoints.disk_room import room_needed
from deepen.train.faults import actions
from deepen.train.faults import settle as deciding
from deepen.train.starting.build import prepare_run
from tests.train.conftest import CrashError, read_metrics, read_tensors

Run = Callable[..., Any]
Configure = Callable[..., Any]
SAVE = {"every": "50 steps", "keep": 1, "milestones": None, "evaluated": "best"}
SETTINGS = {"schedule": {"use": "constant", "warmup": "1 steps"}, "save": SAVE}
STEPS = 14
LOSS = {2: 0.01, 4: 0.02, 6: 0.09, 8: 0.05, 10: 0.025, 12: 0.02, 14: 0.03}
"""Of the kept ability, by step; the budget is 3 %."""


def scores_of(step: int) -> tuple[Score, ...]:
    kinds = {"new": -0.1 * step, "kept": LOSS[step]}
    return tuple(
        Score(
            probe="held_out", ability=ability, value=1, baseline=1, difference=change, higher_is_better=False, items=3
        )  # type: ignore[arg-type]
        for ability, change in kinds.items()
    )


@contextmanager
def other_process(out: Path, seconds: float = 0.0) -> Iterator[None]:
    """Scores what awaits it, ``seconds`` after it appeared."""
    watch, done, ends = out.parent / "watch", set[str](), threading.Event()
    watch.mkdir(exist_ok=True)

    def work() -> None:
        while not ends.wait(0.01):
            for info in list_checkpoints(out / "checkpoints"):
                with suppress(DamageError):  # it was just removed
                    identity = identity_of(info)
                    if not read_checkpoint(info).awaits_scores or identity in done:
                        continue
                    done.add(identity)
                    time.sleep(seconds)
                    what = {"step": info.step, "tokens": 64 * info.step, "scores": scores_of(info.step)}
                    found = ScoresBeside(**what, tables={}, checkpoint=identity)
                    append_record(watch / SCORES, found.model_dump(mode="json"))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def decide(history: Sequence[CheckpointScores], decisions: Sequence[Decision]) -> Sequence[Decision]:
    """Over the budget: back to the last good checkpoint, with a lower rate."""
    kept = history[-1].of("held_out", "kept")
    if kept is None or kept.difference <= 0.03 or any(d.step >= history[-1].step for d in decisions):
        return ()
    wanted = (("lower_learning_rate", {"to": 0.5}), ("rewind", {"good_only": True}))
    return [Decision(step=0, action=action, reason="lost", details=details) for action, details in wanted]  # type: ignore[arg-type]


def watch(out: Path, wait_seconds: float = 600.0, **more: Any) -> Hooks:
    lag = Lag(3, wait_seconds, out.parent / "watch" / SCORES, "the other command")
    every = Interval((Amount(2, "steps"),))
    return Hooks(evaluate_every=every, lag=lag, decide=decide, forgetting_budget=0.03, **more)


def told(out: Path) -> list[Any]:
    """Everything that a run has written but its tensors and times."""
    decisions = read_decisions(out / "decisions.jsonl")
    manifests = [read_checkpoint(info) for info in list_checkpoints(out / "checkpoints")]
    return [
        read_metrics(out),
        list(read_records(out / "scores.jsonl")),
        [decision.model_copy(update={"parent_step": 0}) for decision in decisions],  # a stop makes one more checkpoint
        [(one.step, one.good, one.new, one.kept, one.awaits_scores) for one in manifests],
        [(record["step"], "scores" in record) for record in read_records(out / "rolled_back.jsonl")],
    ]


def same(one: Path, other: Path) -> None:
    assert read_tensors(one, STEPS) == read_tensors(other, STEPS)
    assert told(one) == told(other)


@pytest.fixture
def trained(run: Run, settings: Configure, tmp_path: Path) -> Callable[..., Path]:
    """Train in ``name``, scored by another process that takes ``seconds``."""

    def work(name: str, seconds: float | None = 0.0, **more: Any) -> Path:
        out = tmp_path / name / "train"
        out.parent.mkdir(exist_ok=True)
        config = settings(STEPS, **SETTINGS)
        if seconds is None:
            run(config, f"{name}/train", hooks=watch(out, **more))
            return out
        with other_process(out, seconds):
            run(config, f"{name}/train", hooks=watch(out, **more))
        return out

    return work


def test_scores_act_at_a_fixed_lag_whoever_is_faster(trained: Callable[..., Path]) -> None:
    fast, slow = trained("fast"), trained("slow", seconds=0.15)
    same(fast, slow)
    # Step 6 is found to be bad at step 9: back to step 4, the last good one; what step 8 was is nobody's business then.
    made = [(d.step, d.action, d.details["to"]) for d in read_decisions(fast / "decisions.jsonl") if d.cannot is None]
    assert made[:2] == [(9, "lower_learning_rate", 0.5), (9, "rewind", 4)]
    known = {record["step"]: record["known_at"] for record in read_records(fast / "scores.jsonl")}
    assert {2: 5, 4: 7}.items() <= known.items() and not {6, 8} & set(known)
    rates = {record["step"]: record["learning_rate"] for record in read_metrics(fast)}
    assert rates[10] == pytest.approx(rates[3] / 2, rel=1e-9)


def test_without_the_other_process_training_saves_and_says_what_to_start(
    trained: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = trained("expected")
    with pytest.raises(TrainingError, match="scores of step 2 did not come within 0 s; everything is saved") as error:
        trained("late", seconds=None, wait_seconds=0.4)
    assert "start `the other command`" in str(error.value.hint)
    assert "waiting for the scores of step 2 from `the other command`" in capsys.readouterr().err
    late = trained("late", seconds=0.0)
    assert [info.step for info in list_checkpoints(late / "checkpoints")][0] == 2
    same(expected, late)


def test_who_is_stopped_while_waiting_goes_on_as_if_nothing_had_been(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained("expected")
    wait = lagging._wait_for

    def stopped(run: Any, info: Any, stop: StopRequest) -> CheckpointScores:
        stop.requested |= info.step == 6
        return wait(run, info, stop)

    with monkeypatch.context() as patch, pytest.raises(StoppedError, match="stopped after step 9 of 14"):
        patch.setattr(lagging, "_look", lambda directory, info: None if info.step == 6 else look(directory, info))
        patch.setattr(lagging, "_wait_for", stopped)
        trained("stopped")
    same(expected, trained("stopped"))


look = lagging._look


@pytest.mark.parametrize(
    ("where", "name", "call"),
    [
        (lagging, "_write_down", 1),  # the first scores are known and not written
        (lagging, "mark_scored", 3),  # written, and the checkpoint not marked: a bad one
        (deciding, "carry_out", 1),  # decided, and not done
        (actions, "set_aside", 1),  # half way back
        (actions, "pass_over", 1),
        (lagging, "mark_scored", 4),  # after all that
    ],
)
def test_killed_anywhere_it_decides_the_same(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, where: Any, name: str, call: int
) -> None:
    expected = trained("expected")
    work, calls = getattr(where, name), 0

    def crash(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise CrashError
        return work(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, crash)
        killed = trained("killed")
    assert calls == call and not (killed / "manifest.json").exists()
    same(expected, trained("killed"))


def test_what_awaits_its_scores_stays_and_then_only_if_it_is_the_best(trained: Callable[..., Path]) -> None:
    with pytest.raises(TrainingError):
        trained("early", seconds=None, wait_seconds=0.0)
    directory = trained("all") / "checkpoints"
    manifests = {info.step: read_checkpoint(info) for info in list_checkpoints(directory)}
    assert {step for step, one in manifests.items() if one.awaits_scores} == {12, 14}  # known after the last step
    assert set(manifests) == {2, 10, 12, 14}  # least forgotten, most learnt, and what nobody has judged
    assert manifests[10].good and manifests[10].scored_late and manifests[10].kept == 0.025
    assert not manifests[12].good
    assert {12, 14} <= {info.step for info in candidates(directory)}


def test_a_checkpoint_that_cannot_be_scored_is_not_waited_for(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(directory: Path, info: Any) -> CheckpointScores | None:
        if info.step == 4:
            (info.path / "model.safetensors").write_bytes(b"")
        return None if info.step == 4 else look(directory, info)

    monkeypatch.setattr(lagging, "_look", broken)
    out = trained("broken")
    aside = [record for record in read_records(out / "rolled_back.jsonl") if "scores" in record]
    records = {record["step"]: record for record in aside}
    assert "model.safetensors" in records[4]["failed"]["checkpoint"] and records[4]["scores"] == []
    assert "step 4 has no scores" in capsys.readouterr().err
    made = [(d.step, d.action, d.details["to"]) for d in read_decisions(out / "decisions.jsonl") if d.cannot is None]
    assert made[1] == (9, "rewind", 2)  # the last good one that is left


def test_room_is_kept_for_what_waits_for_its_scores(
    job: Callable[..., Any], base: Any, settings: Configure, tmp_path: Path
) -> None:
    config = settings(STEPS, **SETTINGS)
    rooms = []
    for how in (watch(tmp_path / "train"), Hooks()):
        run = prepare_run(config, job(), base, Compute(device="cpu", threads=1), how)
        rooms.append(room_needed(run, config.save))
    assert rooms[0].at_once == rooms[1].at_once + 2 * rooms[0].checkpoint  # every 2 steps, 3 steps later
