"""Decisions in the loop: written first, done at their step, done again by whoever resumes, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepen.errors import RunError
from deepen.formats.files.records import read_records
from deepen.formats.tokens.order import Order, Segment, Segments, row_ids, source_of, write_order, write_segments
from deepen.formats.training.decisions import Decision, Ledger, open_ledger, read_decisions
from deepen.formats.training.scores import CheckpointScores, Score
from deepen.settings import Amount, Interval
from deepen.train.beside.hooks import Hooks
from deepen.train.faults import actions
from deepen.train.starting.resolved import prepare_continuation
from tests.train.conftest import CrashError, read_metrics, read_tensors

Run = Callable[..., Any]
Configure = Callable[..., Any]
Decide = Callable[[Sequence[CheckpointScores], Sequence[Decision]], Sequence[Decision]]
EVERY_TWO = {"save": {"every": "2 steps", "keep": 9, "milestones": None}}
EVERY = Interval((Amount(3, "steps"),))


def score(_model: Any, step: int, _tokens: int) -> list[Score]:
    return [
        Score(
            probe="held_out",
            ability="kept",
            value=1.0,
            baseline=1.0,
            difference=0.01 * step,
            higher_is_better=False,
            items=3,
        )  # fmt: skip
    ]


def at_step(step: int, action: str, **details: Any) -> Decide:
    """Decides once, after the evaluation of ``step``."""

    def decide(scores: Sequence[CheckpointScores], decisions: Sequence[Decision]) -> Sequence[Decision]:
        if scores[-1].step != step or any(d.action == action for d in decisions):
            return ()
        return (Decision(step=step, action=action, by="forgetting", reason="too much", details=details),)  # type: ignore[arg-type]

    return decide


def watch(decide: Decide | None, **more: Any) -> Hooks:
    return Hooks(evaluate=score, evaluate_every=EVERY, decide=decide, **more)


def same(one: Path, other: Path, step: int = 8) -> None:
    """Tensors, metrics, scores, decisions and what was set aside are equal, and no step is there twice."""
    assert read_tensors(one, step) == read_tensors(other, step)
    assert read_metrics(one) == read_metrics(other)
    for name in ("scores.jsonl", "decisions.jsonl"):
        assert list(read_records(one / name)) == list(read_records(other / name))
    assert [(r["step"], r["rolled_back_at"]) for r in read_records(one / "rolled_back.jsonl")] == [
        (r["step"], r["rolled_back_at"]) for r in read_records(other / "rolled_back.jsonl")
    ]
    steps = [record["step"] for record in read_metrics(one)]
    assert len(steps) == len(set(steps))


def test_a_lower_rate_holds_from_the_next_step_on_and_lasts(run: Run, settings: Configure, tmp_path: Path) -> None:
    config = settings(**EVERY_TWO)
    run(config, "plain", hooks=watch(None))
    run(config, "lower", hooks=watch(at_step(3, "lower_learning_rate", to=0.25)))
    plain, lower = ([r["learning_rate"] for r in read_metrics(tmp_path / name)] for name in ("plain", "lower"))
    assert lower == pytest.approx([*plain[:3], *(0.25 * rate for rate in plain[3:])], rel=1e-12)
    assert read_tensors(tmp_path / "plain", 3) == read_tensors(tmp_path / "lower", 3)
    assert read_tensors(tmp_path / "plain", 8) != read_tensors(tmp_path / "lower", 8)


def test_going_back_restores_the_model_and_passes_over_the_batches(
    run: Run, settings: Configure, tmp_path: Path
) -> None:
    manifest = run(settings(**EVERY_TWO), hooks=watch(at_step(6, "rewind", before=5)))
    out = tmp_path / "train"
    (decision,) = read_decisions(out / "decisions.jsonl")
    assert (decision.details["to"], decision.parent_step, decision.batch, decision.cannot) == (4, 4, 6, None)
    assert [record["step"] for record in read_metrics(out)] == [1, 2, 3, 4, 7, 8]
    aside = list(read_records(out / "rolled_back.jsonl"))
    assert [(r["step"], "scores" in r) for r in aside] == [(5, False), (6, False), (6, True)]
    model = {name: value for name, value in read_tensors(out, 4).items() if not name.startswith("random")}
    assert model == {name: value for name, value in read_tensors(out, 6).items() if not name.startswith("random")}
    counts = manifest.counts
    assert (counts["steps"], counts["skipped_batches"]) == (8, 2)
    rows = [(source["rows"], source["skipped_rows"]) for source in counts["sources"].values()]
    assert tuple(map(sum, zip(*rows, strict=True))) == (6 * 4, 2 * 4)
    assert [record["step"] for record in read_records(out / "scores.jsonl")] == [3, 6, 8]
    assert not (out / "checkpoints/step-000005").exists()


POINTS = ["decided", "set aside", "loaded", "passed over", "saved"]


def stop_at(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """The process ends at this point of the first decision that is carried out."""
    from deepen.train import loop
    from deepen.train.faults import settle as deciding

    def crash(*_args: Any, **_named: Any) -> Any:
        raise CrashError

    def after(work: Callable[..., Any]) -> Callable[..., Any]:
        def both(*args: Any, **named: Any) -> Any:
            work(*args, **named)
            raise CrashError

        return both

    match point:
        case "decided":
            monkeypatch.setattr(deciding, "carry_out", crash)
        case "set aside":
            monkeypatch.setattr(actions, "load_checkpoint", crash)
        case "loaded":
            monkeypatch.setattr(actions, "pass_over", crash)
        case "passed over":
            monkeypatch.setattr(actions, "pass_over", after(actions.pass_over))
        case "saved":
            monkeypatch.setattr(loop, "remove_rolled_back", _only_after_rewinds(after(actions.remove_rolled_back)))


def _only_after_rewinds(work: Callable[..., Any]) -> Callable[..., Any]:
    def when(directory: Path, ledger: Ledger, step: int) -> None:
        if ledger.rewinds():
            work(directory, ledger, step)

    return when


@pytest.mark.parametrize(
    ("action", "point"), [("lower_learning_rate", "decided"), *(("rewind", point) for point in POINTS)]
)
def test_who_dies_at_any_point_of_it_resumes_to_the_same(
    run: Run, settings: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, action: str
) -> None:
    config = settings(**EVERY_TWO)
    decide = at_step(6, action, **({"before": 5} if action == "rewind" else {"to": 0.5}))
    run(config, "whole", hooks=watch(decide))
    with monkeypatch.context() as broken:
        stop_at(broken, point)
        run(config, "broken", hooks=watch(decide))
    assert not (tmp_path / "broken/checkpoints/step-000008").exists()

    def never_again(scores: Sequence[CheckpointScores], decisions: Sequence[Decision]) -> Sequence[Decision]:
        assert scores[-1].step != 6, "what is recorded is not asked again"
        return decide(scores, decisions)

    run(config, "broken", hooks=watch(never_again))
    same(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("crash", [5, 7])
def test_decisions_between_and_after_survive_going_back_and_a_crash(
    run: Run, settings: Configure, tmp_path: Path, crash: int
) -> None:
    def decide(scores: Sequence[CheckpointScores], decisions: Sequence[Decision]) -> Sequence[Decision]:
        wishes: dict[int, Decide] = {
            3: at_step(3, "lower_learning_rate", to=0.5),
            6: at_step(6, "rewind", before=3),
        }
        return wishes.get(scores[-1].step, lambda *_: ())(scores, decisions)

    def dying(_model: Any, step: int, tokens: int) -> list[Score]:
        if step == crash:
            raise CrashError
        return score(_model, step, tokens)

    config = settings(**EVERY_TWO)
    run(config, "whole", hooks=watch(decide))
    every = replace(watch(decide), evaluate=dying, evaluate_every=Interval((Amount(1, "steps"),)))
    run(config, "broken", hooks=every)
    run(config, "broken", hooks=watch(decide))
    for name in ("whole", "broken"):
        rates = {record["step"]: record["learning_rate"] for record in read_metrics(tmp_path / name)}
        assert rates[8] < 0.5 * 1e-2, "the rate that was lowered in between stays lowered"
    assert read_tensors(tmp_path / "whole", 8) == read_tensors(tmp_path / "broken", 8)


def test_what_cannot_be_done_is_recorded_and_the_next_wish_is_tried(
    run: Run, settings: Configure, tmp_path: Path
) -> None:
    wishes = ("strengthen", "more_replay", "rewind", "lower_learning_rate")

    def decide(scores: Sequence[CheckpointScores], decisions: Sequence[Decision]) -> Sequence[Decision]:
        left = [wish for wish in wishes if wish not in [d.action for d in decisions]]
        details = {"to": 0.5, "before": 1, "by": 0.1}
        return [Decision(step=3, action=wish, by="forgetting", reason="", details=details) for wish in left[:1]]  # type: ignore[arg-type]

    def no_replay(decision: Decision) -> None:
        raise RunError("there is no replay source")

    run(settings(**EVERY_TWO), hooks=watch(decide, remix=no_replay))
    found = read_decisions(tmp_path / "train/decisions.jsonl")
    assert [(d.step, d.action, d.cannot) for d in found] == [
        (3, "strengthen", "training has no penalty `None`"),
        (3, "more_replay", "there is no replay source"),
        (3, "rewind", "there is no such checkpoint before step 1"),
        (3, "lower_learning_rate", None),
    ]


def test_a_stop_ends_the_run_early_and_it_counts_as_finished(run: Run, settings: Configure, tmp_path: Path) -> None:
    manifest = run(settings(**EVERY_TWO), hooks=watch(at_step(6, "stop")))
    assert manifest.counts["steps"] == 6 and (tmp_path / "train/checkpoints/step-000006").exists()
    assert manifest.counts["ended"] == "too much"


def web_only(out: Path, mix: Path) -> Callable[[Decision], None]:
    """Changes the mixture to rows of the second source alone."""

    def remix(decision: Decision) -> None:
        order, batches = Order.open(mix), 24 - decision.batch
        ids = row_ids(1, __import__("numpy").arange(batches * 4) % 30)
        number = len(list((out / "order").glob("*.json"))) + 1
        (out / "order").mkdir(exist_ok=True)
        write_order(out / f"order/{number:03d}.u64", [ids], out)
        segment = Segment(
            file=f"{number:03d}.u64", first_batch=decision.batch, num_batches=batches, sequence_length=16,
            rows_per_batch=4,
        )  # fmt: skip
        table = Segments(
            sources=order.sources, segments=(segment,), parent=order.digest(decision.batch),
            parent_step=decision.parent_step, reason=decision.reason,
        )  # fmt: skip
        write_segments(out / "order", table)
        (out / "order/segments.json").rename(out / f"order/{number:03d}.json")

    return remix


@pytest.mark.parametrize("point", [None, "decided", "remixed"])
def test_more_replay_changes_the_batches_from_there_on(
    run: Run, settings: Configure, tmp_path: Path, inputs: Any, monkeypatch: pytest.MonkeyPatch, point: str | None
) -> None:
    mix, config = inputs["mix"].path, settings(**EVERY_TWO)
    decide = at_step(3, "more_replay", by=0.5)
    manifest = run(config, "whole", hooks=watch(decide, remix=web_only(tmp_path / "whole", mix)))
    assert [change["first_batch"] for change in manifest.counts["order_changes"]] == [3]
    order = Order.open(mix, tmp_path / "whole/order/001.json")
    assert set(source_of(order.batch(3)).tolist()) == {1}
    assert {"web"} == set(read_metrics(tmp_path / "whole")[3]["loss_by_source"])
    if point is None:
        return
    with monkeypatch.context() as broken:
        if point == "decided":
            stop_at(broken, point)
        else:
            broken.setattr(actions, "describe_changes", lambda *_: (_ for _ in ()).throw(CrashError))
        run(config, "broken", hooks=watch(decide, remix=web_only(tmp_path / "broken", mix)))
    run(config, "broken", hooks=watch(decide, remix=web_only(tmp_path / "broken", mix)))
    same(tmp_path / "whole", tmp_path / "broken")


def test_what_rests_on_a_checkpoint_that_is_gone_is_void(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "decisions.jsonl")
    made = [Decision(step=s, action="stop", by="user", reason="", parent_step=p) for s, p in ((3, 2), (5, 4), (7, 6))]
    ledger.write(made)
    kept, void = open_ledger(ledger.path, 4)
    assert (kept.decisions, void) == (made[:2], made[2:])
    assert read_decisions(ledger.path) == made[:2]


def test_a_longer_continuation_forgets_what_was_decided_in_the_old_decay(
    run: Run, settings: Configure, tmp_path: Path
) -> None:
    schedule = {"use": "wsd", "warmup": "2 steps", "decay": "25%"}
    short, long = (settings(steps, schedule=schedule, **EVERY_TWO) for steps in (8, 16))
    assert run(short, "grown", hooks=watch(at_step(8, "stop"))).counts["ended"] == "too much"
    prepare_continuation(tmp_path / "grown", short, long)
    counts = run(long, "grown", hooks=watch(None)).counts
    assert counts["steps"] == 16 and "ended" not in counts
    assert read_decisions(tmp_path / "grown/decisions.jsonl") == []
