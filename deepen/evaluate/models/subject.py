"""The model under evaluation: the base, and the checkpoints' weights put into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from deepen.formats.manifest import Artifact
from deepen.formats.training.checkpoints import CheckpointInfo
from deepen.model.adapters import merge_adapters, put_checkpoint
from deepen.model.compute.copies import make_copies
from deepen.model.config import ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.weights.blends import blend
from deepen.model.weights.load import load_base_model, load_run_model
from deepen.parallel.config import Compute
from deepen.parallel.process import set_up


def open_base(base: ResolvedBase, tokenize: Artifact, *, seed: int, compute: Compute) -> LossModel:
    """The untouched base in float32 on its device; a random base is the one that training starts from (same seed).

    When the vocabulary grew, it is the base as it was before.
    """
    return _on_device(load_base_model(base, tokenize, seed=seed), compute)


def open_run_model(base: ResolvedBase, tokenize: Artifact, *, seed: int, compute: Compute) -> LossModel:
    """The model that training begins with, in float32 on its device: what the weights of checkpoints are put into."""
    return _on_device(load_run_model(base, tokenize, seed=seed), compute)


def _on_device(model: PreTrainedModel, compute: Compute) -> LossModel:
    return LossModel(model).to(set_up(compute).device).eval()


def share_scoring(model: LossModel, compute: Compute) -> LossModel:
    """The model with the copies that the machine file asks for; to be called again when its weights have changed."""
    num_models = compute.scoring_copies
    if num_models == "auto":
        on_gpu = next(model.parameters()).device.type == "cuda"
        num_models = torch.cuda.device_count() if on_gpu else 1
    make_copies(model, num_models)
    return model


def put_weights(model: LossModel, checkpoint: CheckpointInfo, base: ResolvedBase) -> None:
    """Replace the weights by those of a checkpoint, in place; adapters are put beside the weights of ``base``.

    Raises ``DamageError`` when they do not fit.
    """
    put_checkpoint(model.model, checkpoint, base)
    model.eval()  # adapters that came just now, too


def open_blend(
    parts: Sequence[tuple[CheckpointInfo | None, float]], fresh: Callable[[], LossModel], base: ResolvedBase
) -> LossModel:
    """The weighted sum of checkpoints; None is the model that ``fresh`` gives, as training begins with it.

    Adapters are merged first: sums of their factors would be no sums of models.
    """

    def load(checkpoint: CheckpointInfo | None) -> PreTrainedModel:
        model = fresh()
        if checkpoint is not None:
            put_weights(model, checkpoint, base)
        return merge_adapters(model.model)

    return LossModel(blend([(partial(load, checkpoint), weight) for checkpoint, weight in parts])).eval()
