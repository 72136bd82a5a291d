"""bf16 training with a measurement in the middle, whose precision is that of the weights."""

from __future__ import annotations

from typing import Any

import torch

from deepen.model.generate import Decoding, generate
from deepen.model.loss.model import LossModel
from deepen.parallel.config import Compute, Mesh
from deepen.parallel.process import set_up
from deepen.parallel.shards.full_precision import in_full_precision
from deepen.train.step import Trainee, train_step
from tests.parallel.networks import batch_of, network, trainee_of


def nats(model: LossModel) -> list[float]:
    """Of each row of a held-out batch."""
    batch = batch_of(999, 5)
    inputs = (torch.from_numpy(values) for values in (batch.tokens_BT, batch.labels_BT, batch.positions_BT))
    model.eval()
    found: list[float] = model.token_nll(*inputs).sum(1).tolist()
    model.train()
    return found


def measured_at(steps: tuple[int, ...], mesh: dict[str, Any] | None) -> dict[str, list[float]]:
    """Six steps in bf16; before those of ``steps`` the model is measured, in full precision and in training's."""
    process = set_up(Compute(device="cpu", threads=1), None if mesh is None else Mesh.model_validate(mesh))
    trainee: Trainee = trainee_of(network("qwen2", torch.float32), process, "bf16")
    found: dict[str, list[float]] = {"full": [], "as trained": [], "losses": [], "first": []}
    for step in range(6):
        if step in steps:
            with in_full_precision(trainee.model):
                found["full"] += nats(trainee.model)
                if mesh is None or "pipeline" not in mesh:
                    generate(trainee.model, [[5, 6], [7]], Decoding(3))
            found["as trained"] += nats(trainee.model)
            if step == 0:
                found["first"] = found["full"][:]  # of weights that no rounding of a step has parted yet
        found["losses"].append(train_step(trainee, batch_of(step % 3, 5), 1e-2).loss)
    return found
