"""A run whose base is never whole in any process: built of placeholders, spread, and then filled from files.

What is checked of a model before training (its loss, its isolation of documents) holds for an architecture and not for
its size, so it is checked on a small sibling of the base.
"""

from __future__ import annotations

from deepen.formats.manifest import StageJob
from deepen.model.config import ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.weights.streaming import can_stream, sibling, stream_weights
from deepen.parallel.config import Compute
from deepen.parallel.kernels import choose_kernels
from deepen.parallel.process import Process
from deepen.progress import say
from deepen.train.config import TrainConfig
from deepen.train.schedule.methods import Full


def streams(config: TrainConfig, job: StageJob, base: ResolvedBase, process: Process) -> bool:
    """Whether a run's base is read piece by piece: where the model is cut between processes, and its weights are those
    of a folder under the same names. Adapters and random networks are made whole first."""
    if process.mesh is None or base.path is None or not isinstance(config.method, Full):
        return False
    sizes = process.mesh.sizes
    if not (process.is_sharded or sizes.tensor > 1) or sizes.pipeline > 1:
        return False
    if can_stream(base, job.inputs["tokenize"]):
        return True
    say(f"train: the files of `{base.name}` name its weights differently: every process loads all of them once")
    return False


def checked_in_place_of(loss_model: LossModel, base: ResolvedBase, compute: Compute, process: Process) -> LossModel:
    """A small model with the architecture and the kernels of ``loss_model``, which has no numbers yet."""
    small = LossModel(sibling(base).to(process.device), z_loss=loss_model.loss.rules.z_loss)
    precision = "bf16" if process.device.type == "cuda" else "fp32"  # decides on kernels only
    choose_kernels(small, compute, process, precision)
    return small


def fill_in(loss_model: LossModel, job: StageJob, base: ResolvedBase, process: Process, *, resumes: bool) -> None:
    """Make room for what this process holds of a spread model and read it; of a run that ``resumes`` the checkpoint has
    it all."""
    assert process.mesh is not None, "a model of one process is whole"
    device = "cpu" if process.mesh.settings.offload else process.device
    stream_weights(
        loss_model.model, base, job.inputs["tokenize"], lambda: loss_model.to_empty(device=device), read=not resumes
    )
