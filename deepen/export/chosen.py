"""The model that was chosen: a checkpoint, a blend of several models, or the base as it was."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from deepen.errors import DamageError
from deepen.formats.manifest import Artifact, StageJob
from deepen.formats.training.checkpoints import CheckpointInfo, list_checkpoints, verify
from deepen.formats.training.scores import Choice
from deepen.model.config import ResolvedBase

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def chosen_model(choice: Choice, job: StageJob, base: ResolvedBase) -> PreTrainedModel:
    """Its weights on the CPU; adapters still stand beside them, except in a blend. Raises ``DamageError``.

    Where the base stays it is the base as it was: tokens that it was never trained on would only harm it.
    """
    from deepen.model.adapters import merge_adapters
    from deepen.model.weights.blends import blend
    from deepen.model.weights.load import load_base_model

    if choice.step is None:
        return load_base_model(base, job.inputs["tokenize"], seed=job.seed)
    if not choice.blend:
        return _load(choice.step, job, base)

    def load(step: int | None) -> PreTrainedModel:
        return merge_adapters(_load(step, job, base))

    return blend([(partial(load, part.step), part.weight) for part in choice.blend])


def _load(step: int | None, job: StageJob, base: ResolvedBase) -> PreTrainedModel:
    """The run's model with the weights of a checkpoint; without one as training began with it."""
    from deepen.model.adapters import put_checkpoint
    from deepen.model.weights.load import load_run_model

    model = load_run_model(base, job.inputs["tokenize"], seed=job.seed)
    if step is not None:
        put_checkpoint(model, chosen_checkpoint(job.inputs["train"], step), base)
    return model


def chosen_checkpoint(train: Artifact, step: int) -> CheckpointInfo:
    """The checkpoint of ``step``, its bytes checked; raises ``DamageError``."""
    found = next((info for info in list_checkpoints(train.path / "checkpoints") if info.step == step), None)
    if found is None:
        raise DamageError(f"the chosen checkpoint of step {step} is gone from `{train.path}`", hint="run `train` again")
    wrong = verify(found)
    if wrong:
        raise DamageError(
            f"the chosen checkpoint is damaged: {wrong[0]}", hint="run `evaluate` and `select` again: they pass it over"
        )
    return found
