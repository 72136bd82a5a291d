from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from deepen.errors import RunError, TrainingError
from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact, StageJob
from deepen.formats.training.scores import CheckpointScores, Score
from deepen.model.config import ResolvedBase
from deepen.parallel.config import Compute
from deepen.settings import Amount, Interval
from deepen.train.batches.read import Batches
from deepen.train.beside.hooks import Hooks
from deepen.train.beside.interrupt import StopRequest
from deepen.train.loop import training_steps
from deepen.train.run import Run
from deepen.train.starting.build import prepare_run
from deepen.train.step import train_step
from tests.train.conftest import read_metrics

Configure = Callable[..., Any]


@pytest.fixture
def prepare(job: Callable[..., StageJob], base: ResolvedBase, settings: Configure) -> Callable[..., Run]:
    def build(name: str = "train", rows: int = 4, **changes: Any) -> Run:
        compute = Compute(device="cpu", threads=1, micro_batch_rows=rows)
        return prepare_run(settings(**changes), job(name), base, compute)

    return build


def test_micro_batches_do_not_change_the_update(prepare: Callable[..., Run]) -> None:
    updates = []
    for rows in (4, 3, 1):
        run = prepare(f"rows-{rows}", rows)
        run.trainee.model.double()
        result = train_step(run.trainee, run.batches[0], 1e-2)
        weights = torch.cat([parameter.flatten() for parameter in run.trainee.model.parameters()])
        updates.append((result.nll_B.sum(), result.gradient_norm, weights.detach().clone()))
    for nll, norm, weights in updates[1:]:
        assert nll == pytest.approx(updates[0][0], rel=1e-12) and norm == pytest.approx(updates[0][1], rel=1e-12)
        torch.testing.assert_close(weights, updates[0][2], rtol=0, atol=1e-9)


def test_a_step_is_that_of_a_loop_written_by_hand(prepare: Callable[..., Run]) -> None:
    run = prepare(rows=2, z_loss=0.0, schedule={"use": "wsd", "warmup": "0 steps", "decay": "1 step"}, clip=0.5)
    run.trainee.model.double()
    twin = prepare("twin").trainee
    model = twin.model.model.double()
    losses = []
    for number in range(7):
        batch = run.batches[number]
        tokens, labels, positions = map(torch.from_numpy, (batch.tokens_BT, batch.labels_BT, batch.positions_BT))
        logits = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in twin.optimizer.param_groups:
            group["lr"] = 1e-2
        twin.optimizer.step()
        twin.optimizer.zero_grad()
        losses.append(loss.item())
    steps = training_steps(run, StopRequest())
    assert [next(steps)["loss"] for _ in range(7)] == pytest.approx(losses, rel=1e-9)
    assert max(losses) - min(losses) > 0.01


def test_losses_are_recorded_per_source_and_per_byte(prepare: Callable[..., Run]) -> None:
    run = prepare()
    record = next(training_steps(run, StopRequest()))
    batch = run.batches[0]
    shares = [(batch.labels_BT[batch.source_B == s] != -100).sum() / (batch.labels_BT != -100).sum() for s in (0, 1)]
    by_source = record["loss_by_source"]
    assert by_source["papers"] * shares[0] + by_source["web"] * shares[1] == pytest.approx(record["loss"])
    # The fixture counts 3 bytes per token.
    assert record["bits_per_byte"] == pytest.approx(record["loss"] / np.log(2) / 3)
    assert record["step"] == 1 and record["tokens"] == (batch.documents_BT >= 0).sum()


def poison(run: Run, steps: set[int], by: float = float("nan")) -> None:
    """Multiply the loss of these steps (from 1); by default it is no number any more."""
    forward = run.trainee.model.forward

    def poisoned(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total, nll = forward(*values)
        factor = by if run.progress.step + 1 in steps else 1.0
        return total * factor, nll * factor

    run.trainee.model.forward = poisoned  # type: ignore[method-assign]


def test_a_step_that_is_not_finite_changes_nothing_and_is_recorded(prepare: Callable[..., Run], tmp_path: Path) -> None:
    run = prepare(log=100)
    poison(run, {3})
    steps = training_steps(run, StopRequest())
    next(steps), next(steps)
    before = [parameter.detach().clone() for parameter in run.trainee.model.parameters()]
    assert next(steps)["skipped"]
    assert all(map(torch.equal, before, run.trainee.model.parameters()))
    assert [next(steps)["skipped"] for _ in range(2)] == [None, None]
    assert run.progress.skipped_steps == 1 and sum(total.skipped_rows for total in run.progress.counts) == 4
    skipped = [record for record in read_metrics(tmp_path / "train") if record["skipped"]]
    assert [(record["step"], record["loss"]) for record in skipped] == [(3, None)]


def test_a_spike_is_passed_over_and_its_documents_are_named(prepare: Callable[..., Run], tmp_path: Path) -> None:
    run = prepare()
    poison(run, {4}, by=3.0)
    records = list(training_steps(run, StopRequest()))
    assert [record["step"] for record in records if record["skipped"]] == [4]
    (decision,) = read_records(tmp_path / "train/decisions.jsonl")
    assert decision["step"] == 4 and decision["batch"] == 3 and "above the first step" in decision["reason"]
    assert len(decision["documents"]) >= 4


def test_spikes_in_a_row_are_believed_and_null_lets_them_pass(prepare: Callable[..., Run]) -> None:
    late = set(range(3, 9))
    for settings, expected in (({"believe_after": 2}, [3, 4]), (None, [])):
        run = prepare(f"run-{settings}", skip_spikes=settings)
        poison(run, late, by=3.0)
        assert [record["step"] for record in training_steps(run, StopRequest()) if record["skipped"]] == expected


def test_five_in_a_row_end_the_run_and_name_documents(prepare: Callable[..., Run]) -> None:
    run = prepare()
    poison(run, {2, 3, 4, 5, 6})
    with pytest.raises(TrainingError, match=r"not finite in 5 steps in a row, up to step 6.*(papers|web):[0-9a-f]{32}"):
        list(training_steps(run, StopRequest()))


def test_bf16_trains_nearly_alike_with_weights_in_fp32(prepare: Callable[..., Run]) -> None:
    exact, rough = (
        [record["loss"] for record in training_steps(prepare(name, precision=name), StopRequest())]
        for name in ("fp32", "bf16")
    )
    assert exact != rough and exact == pytest.approx(rough, rel=5e-3)


def test_scored_models_are_kept_and_their_scores_written(run: Any, settings: Configure, tmp_path: Path) -> None:
    score = Score(
        probe="held_out", ability="new", value=1.0, baseline=2.0, difference=-0.5, higher_is_better=False, items=3
    )
    config = settings(save={"every": "1 step", "keep": 1, "milestones": None})
    manifest = run(config, hooks=Hooks(lambda *_: [score], Interval((Amount(3, "steps"),))))
    written = [CheckpointScores.model_validate(record) for record in read_records(tmp_path / "train/scores.jsonl")]
    assert [(found.step, found.scores) for found in written] == [(3, (score,)), (6, (score,)), (8, (score,))]
    kept = {entry.path.split("/")[1] for entry in manifest.files if "/" in entry.path}
    assert kept == {"step-000003", "step-000006", "step-000008"}


def test_holes_of_the_order_are_passed_over(prepare: Callable[..., Run]) -> None:
    from dataclasses import replace

    from deepen.formats.tokens.order import Hole

    run = prepare()
    order = replace(run.batches.order, holes=(Hole(first_batch=1, num_batches=3),))
    run = replace(run, batches=Batches(order, run.batches.sources))
    steps = training_steps(run, StopRequest())
    next(steps), next(steps)
    assert (run.progress.step, run.progress.batch_index) == (2, 5)


def test_manifest_counts_balance(run: Any, settings: Configure, inputs: dict[str, Artifact]) -> None:
    counts = run(settings()).counts
    batches = Batches.open(inputs["tokenize"].path, inputs["mix"].path)
    tokens = sum(int((batches[number].documents_BT >= 0).sum()) for number in range(8))
    assert sum(source["tokens"] for source in counts["sources"].values()) == tokens
    for source in counts["sources"].values():
        assert source["tokens"] == source["loss_tokens"] + source["masked"] + source["without_label"]
    assert (counts["steps"], counts["skipped_batches"]) == (8, 0)


def test_a_model_too_short_for_the_rows_and_a_short_order_are_refused(prepare: Callable[..., Run], base: Any) -> None:
    with pytest.raises(RunError, match="24 batches, the run needs 25"):
        prepare(steps=25)
    with pytest.raises(RunError, match="4 rows per batch"):
        prepare(batch_tokens=32, tokens=64)


def test_rows_longer_than_the_model_takes_are_refused(run: Any, settings: Configure, base: ResolvedBase) -> None:
    from dataclasses import replace

    assert base.init is not None
    short = replace(base, init=base.init.model_copy(update={"max_length": 8}))
    with pytest.raises(TrainingError, match="rows of 16 tokens are longer than the 8"):
        run(settings(), base=short)


def test_a_rate_relative_to_an_unknown_base_is_an_error(run: Any, settings: Configure) -> None:
    with pytest.raises(TrainingError, match="is not known"):
        run(settings(learning_rate="0.1x base"))
