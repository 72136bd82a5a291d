"""What of the training settings cannot be combined with a mesh: said before anything is started. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from deepen.errors import Problem
from deepen.parallel.config import Mesh
from deepen.train.config import TrainConfig


def problems(config: TrainConfig, mesh: Mesh) -> list[Problem]:
    """Everything in the training settings that this mesh cannot do; paths are complete."""
    found = [*_sharing_matrices(config, mesh), *_sharing_rows(config, mesh), *_sharing_layers(config, mesh)]
    return [*found, *_near_the_base(config, mesh)]


def _sharing_matrices(config: TrainConfig, mesh: Mesh) -> Iterator[Problem]:
    if mesh.tensor > 1 and config.method.use != "full":
        yield Problem(
            "train.method", "adapters stand where `mesh.tensor` cuts matrices, and no plan says how to cut both",
            "use `mesh.shard`", config.method.use,
        )  # fmt: skip


def _sharing_rows(config: TrainConfig, mesh: Mesh) -> Iterator[Problem]:
    if mesh.context > 1 and config.neftune_alpha:
        yield Problem(
            "train.neftune_alpha", "the noise depends on the length of rows, which `mesh.context` cuts",
            "use `mesh.shard`", str(config.neftune_alpha),
        )  # fmt: skip


def _sharing_layers(config: TrainConfig, mesh: Mesh) -> Iterator[Problem]:
    if mesh.pipeline == 1:
        return
    multiples = config.rate_multiples
    if config.new_rows_first is not None:
        yield Problem("train.new_rows_first", *_TABLES, str(config.new_rows_first))
    for name in ("embeddings", "head", "new_rows"):
        if getattr(multiples, name) != 1:
            yield Problem(f"train.rate_multiples.{name}", *_TABLES, str(getattr(multiples, name)))
    if config.method.use != "full":
        yield Problem(
            "train.method", "adapters are not cut with the layers of `mesh.pipeline`", "use `mesh.shard`",
            config.method.use,
        )  # fmt: skip


def _near_the_base(config: TrainConfig, mesh: Mesh) -> Iterator[Problem]:
    kl, ewc = config.retention.kl, config.retention.ewc
    for name in ("context", "pipeline"):
        if kl is not None and getattr(mesh, name) > 1:
            message = f"predictions are compared with the base's row by row, and `mesh.{name}` cuts rows or layers"
            yield Problem("train.retention.kl", message, "use `mesh.shard` or `mesh.tensor`", f"{kl.strength:g}")
    if ewc is not None and mesh.pipeline > 1:
        message = "importance is measured and stored for all layers together, and no process of `mesh.pipeline` has all"
        remedy = "use `mesh.shard` or `mesh.tensor`, or `train.retention.l2_sp`"
        yield Problem("train.retention.ewc", message, remedy, f"{ewc.strength:g}")


_TABLES = ("no process of `mesh.pipeline` has both tables of the vocabulary", "use `mesh.shard`")
