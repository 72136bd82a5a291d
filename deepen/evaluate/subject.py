"""The model under evaluation: the base, and the checkpoints' weights put into it."""

from __future__ import annotations

from deepen.formats.checkpoints import CheckpointInfo
from deepen.formats.manifest import Artifact
from deepen.model.config import ResolvedBase
from deepen.model.load import load_model, load_weights
from deepen.model.loss import LossModel
from deepen.parallel.config import Compute
from deepen.parallel.process import set_up


def open_base(base: ResolvedBase, tokenize: Artifact, *, seed: int, compute: Compute) -> LossModel:
    """The untouched base in float32 on its device; a random base is the one that training starts from (same seed)."""
    device = set_up(compute).device
    model = load_model(base, vocabulary_size=tokenize.counts["vocabulary_size"], seed=seed)
    loss_model = LossModel(model).to(device)
    return loss_model.eval()


def put_weights(model: LossModel, checkpoint: CheckpointInfo) -> None:
    """Replace the weights by those of a checkpoint, in place; raises ``DamageError`` when they do not fit."""
    load_weights(model.model, checkpoint.weights)
