"""Building the penalties of a run: where its weights begin, how much they matter, and the base to compare with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepen.errors import TrainingError
from deepen.formats.manifest import StageJob
from deepen.formats.tokens.extension import new_rows_file
from deepen.model.compute.precision import keep_in_bf16
from deepen.model.config import ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.token_tables import new_row_ids
from deepen.model.weights.load import load_run_model
from deepen.parallel.kernels import choose_kernels
from deepen.progress import readable, say
from deepen.train.batches.read import Batches
from deepen.train.retention.config import Retention
from deepen.train.retention.importance import Measured, importance
from deepen.train.retention.penalties import Penalties, anchors_of
from deepen.train.step import Trainee


def build_penalties(
    retention: Retention, trainee: Trainee, job: StageJob, base: ResolvedBase, batches: Batches
) -> Penalties | None:
    """The penalties of a run whose model holds the weights that the run begins with; None when it has none.

    Raises ``TrainingError`` where there is no replay to measure on.
    """
    if not retention.strengths:
        return None
    model, is_replay_S = trainee.model.model, _is_replay(job, batches)
    values = None
    if retention.ewc is not None:
        values = importance(trainee, Measured(batches, is_replay_S, retention.ewc), job.out)
    file = new_rows_file(job.inputs["tokenize"].path)
    new_ids = None if file is None else new_row_ids(file)
    return Penalties(
        settings=retention.strengths,
        anchors=anchors_of(model, values, new_ids) if retention.anchors else (),
        base=_base(trainee, job, base) if retention.kl is not None else None,
        is_replay_S=is_replay_S,
    )


def _is_replay(job: StageJob, batches: Batches) -> npt.NDArray[np.bool_]:
    roles = job.inputs["mix"].counts["sources"]
    return np.array([roles[name]["role"] == "replay" for name in batches.order.sources])


def _base(trainee: Trainee, job: StageJob, base: ResolvedBase) -> LossModel:
    """A second copy of the base, whole in every process, in the precision that the model computes in."""
    if new_rows_file(job.inputs["tokenize"].path) is not None:
        raise TrainingError(
            "`train.retention.kl`: replay text is written with the new tokens, too, which the base cannot read",
            hint="use `train.retention.ewc` or `l2_sp`, or keep the vocabulary",
        )
    model = load_run_model(base, job.inputs["tokenize"], seed=job.seed)
    # As the model itself computes: rounded alike, the two agree exactly at the start, and the divergence begins at 0.
    if trainee.precision in ("bf16", "pure_bf16"):
        keep_in_bf16(model)
    model.to(trainee.device).eval().requires_grad_(False)
    loss_model = LossModel(model).eval()
    choose_kernels(loss_model, trainee.compute, trainee.process, trainee.precision)
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    say(f"train: predictions on replay are held near the base's, whose copy takes {readable(num_bytes)} bytes")
    return loss_model
