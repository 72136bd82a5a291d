"""Memory that runs out: the same step with fewer rows at once, or an error that says what takes how much."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepen.errors import TrainingError
from deepen.formats.training.decisions import read_decisions
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import load_model
from deepen.parallel.config import Compute
from deepen.train.beside.hooks import Hooks
from deepen.train.faults.memory import is_out_of_memory
from tests.train.conftest import CrashError, read_metrics, read_tensors

Configure = Callable[..., Any]


def room_for(monkeypatch: pytest.MonkeyPatch, rows: int, first_calls: int = 0) -> None:
    """Training on more rows at once runs out of memory half-way through, after the first ``first_calls`` of them."""
    forward, calls = LossModel.forward, [0]

    def limited(self: LossModel, tokens_BT: torch.Tensor, *rest: Any) -> Any:
        made = forward(self, tokens_BT, *rest)
        calls[0] += self.training
        if self.training and calls[0] > first_calls and len(tokens_BT) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return made

    monkeypatch.setattr(LossModel, "forward", limited)


@pytest.fixture
def forgetful_base(tmp_path: Path) -> ResolvedBase:
    """A base with dropout, for which random numbers matter."""
    init = RandomInit(init="random", architecture="gpt2", hidden_size=16, layers=1, heads=2, max_length=32)
    model = load_model(ResolvedBase("r", None, init, ""), vocabulary_size=97, seed=0)
    model.config.resid_pdrop = model.config.embd_pdrop = 0.2
    model.save_pretrained(tmp_path / "base")
    return ResolvedBase("base", tmp_path / "base", None, "")


def test_the_step_is_done_again_with_fewer_rows_and_nothing_is_lost(
    run: Any, settings: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful_base: ResolvedBase
) -> None:
    run(settings(), "small", rows=1, base=forgetful_base)
    room_for(monkeypatch, 1)
    run(settings(), "shrunk", rows=4, base=forgetful_base)
    assert read_tensors(tmp_path / "small", 8) == read_tensors(tmp_path / "shrunk", 8)
    assert read_metrics(tmp_path / "small") == read_metrics(tmp_path / "shrunk")
    made = read_decisions(tmp_path / "shrunk/decisions.jsonl")
    assert [(d.step, d.action, d.by, d.details) for d in made] == [
        (0, "smaller_micro_batch", "memory", {"rows": 2, "from": 4}),
        (0, "smaller_micro_batch", "memory", {"rows": 1, "from": 2}),
    ]


def test_a_resumed_run_has_as_many_rows_at_each_step_without_running_out_again(
    run: Any, settings: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(save={"every": "2 steps", "keep": 9, "milestones": None})

    def dying(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            raise CrashError

    with monkeypatch.context() as limited:
        room_for(limited, 2, first_calls=4)
        run(config, "whole", rows=4)
    with monkeypatch.context() as limited:
        room_for(limited, 2, first_calls=4)
        assert run(config, "broken", rows=4, hooks=Hooks(log=dying)) is None
    run(config, "broken", rows=4)  # room enough now: it does as was recorded
    assert read_tensors(tmp_path / "whole", 8) == read_tensors(tmp_path / "broken", 8)
    assert len(read_decisions(tmp_path / "broken/decisions.jsonl")) == 1


@pytest.mark.parametrize("shrinks", [True, False])
def test_where_nothing_can_be_made_smaller_the_error_has_the_numbers(
    run: Any, settings: Configure, monkeypatch: pytest.MonkeyPatch, base: ResolvedBase, job: Any, shrinks: bool
) -> None:
    room_for(monkeypatch, 0)
    compute = Compute(device="cpu", threads=1, micro_batch_rows=4, shrink_on_oom=shrinks)
    with pytest.raises(TrainingError, match=f"memory ran out in step 1 with {1 if shrinks else 4} rows") as error:
        run(settings(precision="fp32"), compute=compute)
    hint = error.value.hint or ""
    for words in ("AdamW's moments", "compute.recompute: full", "train.precision: bf16", "mesh.shard: 2", "LoRA"):
        assert words in hint
    assert ("micro_batch_rows: 2" in hint) is not shrinks


def test_other_errors_are_not_taken_for_it(
    run: Any, settings: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(LossModel, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        run(settings())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))


LIMITED = """
import resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from deepen.formats.manifest import StageJob
from deepen.formats.tokens.order import Segment, Segments, row_ids, write_order, write_segments
import numpy as np
from tests.train import conftest
from deepen.train.starting import build

conftest.LENGTH, rows = 256, 32
root = Path({folder!r})
source = conftest.write_source(root, "papers", [300] * 120, 1)
ids = row_ids(0, np.arange(4 * rows))
write_order(root / "mix/order/000.u64", [ids], root)
segment = Segment(file="order/000.u64", first_batch=0, num_batches=4, sequence_length=256, rows_per_batch=rows)
write_segments(root / "mix", Segments(sources=("papers",), segments=(segment,)))
counts = {{"sources": {{"papers": source}}, "vocabulary_size": 97, "end_of_document_id": 0}}
inputs = {{"tokenize": conftest.artifact(root / "tokenize", counts), "mix": conftest.artifact(root / "mix", counts)}}
init = conftest.RandomInit(init="random", hidden_size=128, layers=4, heads=4, max_length=256)
config = conftest.TrainConfig.model_validate(
    {{"tokens": 4 * rows * 256, "batch_tokens": rows * 256, "learning_rate": 1e-3}}
)
compute = conftest.Compute(device="cpu", threads=1, micro_batch_rows=int(sys.argv[1]), background_saves=False)

prepare = build.prepare_run
def limited(*args, **named):
    run = prepare(*args, **named)
    if sys.argv[1] == "32":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, used + 400_000_000))
    return run
build.prepare_run = limited
job = StageJob(root / ("train" + sys.argv[1]), "run", inputs)
conftest.train(config, job, base=conftest.ResolvedBase("tiny", None, init, "base"), compute=compute)
"""


@pytest.mark.slow
def test_a_process_whose_memory_really_runs_out_trains_on(tmp_path: Path) -> None:
    code = LIMITED.format(root=str(Path(__file__).parents[3]), folder=str(tmp_path))
    for rows in ("32", "4"):
        done = subprocess.run([sys.executable, "-c", code, rows], capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
    made = read_decisions(tmp_path / "train32/decisions.jsonl")
    assert made and made[0].details == {"rows": 16, "from": 32} and "memory" in made[0].reason
    losses = [[record["loss"] for record in read_metrics(tmp_path / name)] for name in ("train32", "train4")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
