"""Short runs with one feature each, on any mesh: what a feature does must not depend on the layout."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from deepen.evaluate.documents.windows import Encoded, likelihoods
from deepen.formats.training.adapters import Adapters
from deepen.model.adapters import add_adapters
from deepen.model.compute.precision import keep_in_bf16
from deepen.model.compute.recompute import add_recompute
from deepen.model.loss.model import LossModel
from deepen.model.neftune import add_noise
from deepen.model.token_tables import token_tables
from deepen.model.weights.pieces import local_part
from deepen.parallel.config import Compute, Mesh
from deepen.parallel.process import set_up
from deepen.train.retention.importance import clip_, fisher_diagonal, one_row, read_importance, write_importance
from deepen.train.retention.penalties import Penalties, anchors_of
from deepen.train.schedule.new_rows import RowHold
from deepen.train.schedule.optimizer import build_optimizer
from deepen.train.schedule.parts import RowRate, freeze, rate_multiples
from deepen.train.step import Trainee, train_step
from tests.parallel.networks import CONFIG, VOCABULARY, batch_of, network, trainee_of

STEPS = 6
NEW_IDS = torch.tensor([3, 50, VOCABULARY + 1, VOCABULARY + 4])


def grown(model: PreTrainedModel) -> None:
    """A vocabulary of five more tokens, so that no number of processes divides it."""
    with torch.random.fork_rng():
        model.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
        torch.manual_seed(11)
        for table in token_tables(model).values():
            table.data[VOCABULARY:] = 0.1 * torch.randn_like(table.data[VOCABULARY:])


def adapters(model: PreTrainedModel) -> None:
    add_adapters(model, Adapters(rank=4, alpha=8.0, tables=("input",), base="x"), seed=3)
    model.to(torch.float64)


def frozen(model: PreTrainedModel) -> None:
    freeze(model, ["model.layers.0.*", "model.embed_tokens.*"])


FEATURES: dict[str, Callable[[PreTrainedModel], Any]] = {
    "plain": lambda model: None,
    "grown": grown,
    "new_rows_first": grown,
    "row_rate": grown,
    "multiples": lambda model: None,
    "lora": adapters,
    "freeze": frozen,
    "recompute": lambda model: add_recompute(model, "full"),
    "selective": lambda model: add_recompute(model, "selective"),
    "pure_bf16": keep_in_bf16,
    "bf16": lambda model: None,
    "l2_sp": grown,
    "ewc": grown,
    "kl": lambda model: None,
    "neftune": lambda model: add_noise(model.get_input_embeddings(), 5.0),
}


def run_feature(feature: str, family: str, mesh: dict[str, Any] | None) -> dict[str, list[float]]:
    """Losses, norms, nats of each row of the last batch, and held-out likelihoods after ``STEPS`` steps."""
    process = set_up(Compute(device="cpu", threads=1), None if mesh is None else Mesh.model_validate(mesh))
    model = network(family, torch.float32 if "bf16" in feature else torch.float64)
    FEATURES[feature](model)
    trainee = trainee_of(model, process, feature if "bf16" in feature else "fp32")
    trainee = _near_the_base(feature, family, _with_groups(feature, trainee))
    results = []
    for step in range(STEPS):
        if step == STEPS // 2 and trainee.hold is not None:
            trainee = replace(trainee, optimizer=trainee.hold.release(), hold=None)
        results.append(train_step(trainee, batch_of(step % 3, 5), 1e-2))
    return {
        "losses": [result.loss for result in results],
        "norms": [result.gradient_norm for result in results],
        "rows": results[-1].nll_B.tolist(),
        "held_out": held_out(trainee.model),
        "penalties": [value for result in results[1:] for value in result.penalties.values()],
    }


def _near_the_base(feature: str, family: str, trainee: Trainee) -> Trainee:
    """With a penalty on leaving the base; importance is measured on five rows, written, and read again."""
    if feature not in ("l2_sp", "ewc", "kl"):
        return trainee
    model, values, base = trainee.model.model, None, None
    if feature == "ewc":
        values = _measured(trainee)
    if feature == "kl":
        base = LossModel(network(family, torch.float64)).eval()
    ids = NEW_IDS if feature != "kl" else None
    penalties = Penalties(
        {feature: 30.0 if feature == "ewc" else 2.0},
        anchors_of(model, values, ids) if feature != "kl" else (),
        base,
        np.array([False, True]),
    )
    return replace(trainee, penalties=penalties)


def _measured(trainee: Trainee) -> dict[str, torch.Tensor]:
    process = trainee.process
    batch = batch_of(7, 5)
    values, num_rows, num_tokens = fisher_diagonal(trainee, (one_row(batch, at) for at in range(5)))
    assert num_rows == 5 and num_tokens == int((batch.labels_BT >= 0).sum())
    clip_(values, 99.0, process)
    with tempfile.TemporaryDirectory() as own:
        folder = Path(process.from_main(own))
        write_importance(folder, values, {}, process)
        found = read_importance(folder, trainee.model.model)
        process.barrier()
    for name, value in values.items():
        assert torch.equal(local_part(found[name]), local_part(value)), name
    return found


def _with_groups(feature: str, trainee: Trainee) -> Trainee:
    """Optimizer and rows as the feature has them."""
    model = trainee.model.model
    if feature == "multiples":
        multiples = rate_multiples(model, embeddings=0.5, head=2.0)
        return replace(trainee, optimizer=build_optimizer(model, CONFIG, multiples))
    if feature == "row_rate":
        return replace(trainee, row_rate=RowRate(list(token_tables(model).values()), NEW_IDS, 3.0))
    if feature == "new_rows_first":
        hold = RowHold(model, NEW_IDS, trainee.optimizer)
        return replace(trainee, optimizer=hold.optimizer, hold=hold)
    return trainee


def held_out(model: LossModel) -> list[float]:
    """Nats of documents of many lengths, in windows, as the probe measures them."""
    random = np.random.default_rng(9)
    documents = [Encoded(random.integers(1, 90, length).astype(np.int32), 1, length) for length in (2, 9, 31, 40, 77)]
    found: list[float] = likelihoods(model, documents, context=24, stride=0.5).tolist()
    return found
