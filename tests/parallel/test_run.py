"""A whole run on 1, 2, 3 and 4 processes: the same documents at the same step, the same records, the same scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deepen.formats.files.records import read_records
from deepen.formats.manifest import StageJob
from deepen.formats.training.scores import Score
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.parallel.axes.rows import NO_ROW, rows_of
from deepen.parallel.config import Compute, Mesh
from deepen.parallel.process import Process
from deepen.settings import Amount, Interval
from deepen.train import step as step_module
from deepen.train.batches.read import Batch
from deepen.train.beside.hooks import Hooks
from deepen.train.config import TrainConfig
from deepen.train.stage import train
from deepen.train.step import Trainee
from tests.parallel.gang import run_gang
from tests.train.conftest import LENGTH, ROWS, make_inputs

STEPS = 6


def trained_rows(trainee: Trainee, batch: Batch) -> list[list[int]]:
    """Token ids of the rows that this process computes of a batch."""
    mine = rows_of(len(batch.tokens_BT), trainee.process)
    return [batch.tokens_BT[row].tolist() for row in mine if row != NO_ROW]


def whole_run(folder: str, mesh: dict[str, Any] | None) -> list[list[list[int]]]:
    """Train in ``folder``/NUMBER; returns the rows of each step that this process computed."""
    out = Path(folder)
    seen: list[list[list[int]]] = []
    plain = step_module.gradients

    def noting(trainee: Trainee, batch: Batch, num_valid: int) -> Any:
        seen.append(trained_rows(trainee, batch))
        return plain(trainee, batch, num_valid)

    def evaluate(model: LossModel, _step: int, _tokens: int) -> list[Score]:
        tokens_BT = torch.arange(3 * 7).view(3, 7) % 90
        positions_BT = torch.arange(7).expand(3, 7)
        nll = float(model.token_nll(tokens_BT, tokens_BT.roll(-1, 1), positions_BT).double().sum())
        return [Score(probe="held_out", ability="new", value=nll, baseline=nll + 1, difference=-1.0,
                      interval=(-2.0, 0.0), items=3, higher_is_better=False)]  # fmt: skip

    config = TrainConfig.model_validate(
        {"tokens": STEPS * ROWS * LENGTH, "batch_tokens": ROWS * LENGTH, "learning_rate": 1e-2, "precision": "fp32"}
    )
    init = RandomInit(init="random", hidden_size=16, layers=2, heads=2, max_length=32)
    step_module.gradients = noting
    try:
        train(
            config,
            StageJob(out / "train", "run", make_inputs_once(out.parent)),
            base=ResolvedBase("tiny", None, init, "base"),
            compute=Compute(device="cpu", threads=1, micro_batch_rows=2),
            hooks=Hooks(evaluate, Interval((Amount(3, "steps"),))),
            mesh=None if mesh is None else Mesh.model_validate(mesh),
        )
    finally:
        step_module.gradients = plain
    return seen


def make_inputs_once(root: Path) -> Any:
    """The inputs of all runs under ``root``; every process makes them in a folder of its own, alike."""
    import os

    return make_inputs(root / f"inputs-{os.getpid()}")


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    return list(read_records(folder / "train" / name))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[list[int]]]]:
    folder = tmp_path_factory.mktemp("alone") / "run"
    return folder, whole_run(str(folder), None)


@pytest.mark.parametrize(
    ("world_size", "mesh"),
    [
        (3, {"shard": 3}),
        pytest.param(2, {"replicate": 2}, marks=pytest.mark.slow),
        pytest.param(4, {"replicate": 2, "context": 2}, marks=pytest.mark.slow),
        pytest.param(4, {"shard": 4}, marks=pytest.mark.slow),
    ],
)
def test_many_processes_make_the_run_of_one(
    alone: tuple[Path, list[list[list[int]]]], tmp_path: Path, world_size: int, mesh: dict[str, Any]
) -> None:
    folder = tmp_path / "run"
    seen = run_gang(world_size, {"run": (whole_run, (str(folder), mesh))}, tmp_path)["run"]
    context = mesh.get("context", 1)
    for step in range(STEPS):
        together = [row for rank in seen[::context] for row in rank[step]]
        assert sorted(together) == sorted(alone[1][step]), f"other documents in step {step + 1}"
        assert len({len(rank[step]) for rank in seen}) <= 2
    for name, values in (("metrics.jsonl", ("loss", "gradient_norm")), ("scores.jsonl", ())):
        ours, theirs = records(folder, name), records(alone[0], name)
        assert [record["step"] for record in ours] == [record["step"] for record in theirs]
        for record, expected in zip(ours, theirs, strict=True):
            assert record["tokens"] == expected["tokens"]
            for value in values:
                assert record[value] == pytest.approx(expected[value], rel=2e-5)
            for score, other in zip(record.get("scores", []), expected.get("scores", []), strict=True):
                assert score["value"] == pytest.approx(other["value"], rel=2e-5)
    made, expected_manifest = (json.loads((path / "train/manifest.json").read_text()) for path in (folder, alone[0]))
    assert made["counts"]["sources"] == expected_manifest["counts"]["sources"]


def test_rows_are_dealt_out_once_and_evenly() -> None:
    from deepen.parallel.axes.rows import deal

    for num_rows in range(1, 12):
        for num_shares in range(1, 6):
            shares = [deal(num_rows, num_shares, index) for index in range(num_shares)]
            assert len({len(share) for share in shares}) == 1
            assert sorted(row for share in shares for row in share if row != NO_ROW) == list(range(num_rows))


def test_a_process_alone_takes_all_rows() -> None:
    assert rows_of(5, Process(torch.device("cpu"), 1)).tolist() == [0, 1, 2, 3, 4]
