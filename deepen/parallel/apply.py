"""A model spread over processes: what is applied to it, in which order, and why in this one.

Every layout keeps the interface of ``LossModel``: whole rows in, the loss and every token's likelihood out. The loss of
a call is this process's part of a sum over the processes of the ``gradients`` group; likelihoods are complete.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from deepen.model.closeness import Closeness
from deepen.model.loss import IGNORED, LossModel
from deepen.model.recompute import decoder_layers
from deepen.parallel.context import SharedRows, attend_together, begin_rows
from deepen.parallel.gradients import add_up
from deepen.parallel.overlap import Overlap
from deepen.parallel.pipeline import PipelinedModel
from deepen.parallel.process import Process, ProcessMesh
from deepen.parallel.rows import NO_ROW, collect, rows_of
from deepen.parallel.tensor import share_matrices


class SpreadModel(LossModel):
    """A ``LossModel`` over several processes; all of them call it together."""

    def __init__(self, whole: LossModel, process: Process) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(whole.__dict__)  # the same model and rules; only how it is called differs
        self.process = process
        self.partial: list[nn.Module] = []
        """Modules whose gradients are parts of a sum over the tensor group."""
        self.overlap: Overlap | None = None
        """Adds up the gradients of whole copies; made at the first step, when all parameters are what they stay."""

    def forward(
        self, tokens_BT: Tensor, labels_BT: Tensor, positions_BT: Tensor, near: Closeness | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``LossModel.forward`` on this process's rows; the loss is that of its part of them.

        ``near`` speaks of whole rows, so it does not go with rows that are cut (``mesh.context``).
        """
        rows, (tokens_BQ, labels_BQ, positions_BQ) = self._part(tokens_BT, labels_BT, positions_BT)
        assert near is None or rows is None, "refused before the start"
        total, nll_BQ = super().forward(tokens_BQ, labels_BQ, positions_BQ, near)
        return total, self._whole(nll_BQ, rows, labels_BT.shape)

    @torch.no_grad()
    def token_nll(self, tokens_BT: Tensor, labels_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """As ``LossModel.token_nll``; every process gives the same rows, each computes some and gets the rest."""
        num_rows = len(tokens_BT)
        indices = torch.from_numpy(rows_of(num_rows, self.process))
        labels = labels_BT[indices]
        labels[indices == NO_ROW] = IGNORED
        mine = (tokens_BT[indices], labels, positions_BT[indices])
        device = self.process.device
        rows, inputs = self._part(*(values.to(device) for values in mine))
        nll_BT = self._whole(super().token_nll(*inputs), rows, labels.shape)
        return collect(nll_BT, num_rows, self.process).to(tokens_BT.device)

    def _part(self, *values_BT: Tensor) -> tuple[SharedRows | None, tuple[Tensor, ...]]:
        """This process's stretches of tokens, labels and positions."""
        mesh = _mesh(self.process)
        if mesh.sizes.context == 1:
            return None, values_BT
        length = values_BT[0].shape[1]
        missing = -length % (2 * mesh.sizes.context)
        if missing:  # rows of an evaluation are as long as their texts
            tokens, labels, positions = (nn.functional.pad(values, (0, missing)) for values in values_BT)
            labels[:, length:] = IGNORED
            positions[:, length:] = torch.arange(missing, device=positions.device)
            values_BT = (tokens, labels, positions)
        rows = begin_rows(values_BT[2], mesh.context)
        return rows, tuple(values[:, rows.mine] for values in values_BT)

    def _whole(self, nll_BQ: Tensor, rows: SharedRows | None, shape: torch.Size) -> Tensor:
        """Likelihoods of whole rows from those of each process's stretches."""
        if rows is None:
            return nll_BQ
        nll_BT = nll_BQ.new_zeros(rows.documents_BT.shape)
        nll_BT[:, rows.mine] = nll_BQ
        dist.all_reduce(nll_BT, group=rows.group)
        return nll_BT[:, : shape[1]]

    def begin_gradients(self) -> None:
        """Before the first micro-batch of a step."""
        group = _mesh(self.process).gradients
        if self.overlap is None and not self.process.is_sharded and group.size() > 1:
            self.overlap = Overlap(self.parameters(), group)

    def before_backward(self, *, is_last: bool) -> None:
        """Say whether a micro-batch is its step's last: gradients are added up over processes then, or each time."""
        settings = _mesh(self.process).settings
        if isinstance(self, FSDPModule) and settings.reduce == "last":
            self.set_requires_gradient_sync(is_last)
            if not settings.reshard:
                self.set_reshard_after_backward(is_last)
        if self.overlap is not None and is_last:
            self.overlap.begin()

    def finish_gradients(self) -> None:
        """After the last micro-batch: make the gradients of this process those of the whole batch."""
        if self.overlap is not None:
            self.overlap.finish()
        partial = [p.grad for module in self.partial for p in module.parameters() if p.grad is not None]
        add_up(partial, _mesh(self.process).tensor)


def spread(loss_model: LossModel, process: Process, precision: str = "fp32") -> LossModel:
    """The model to train on ``process``: the same one when it is alone, else spread over the mesh, in place.

    Every process must hold the same weights (or placeholders on the meta device, to be filled in afterwards).
    """
    if process.mesh is None:
        return loss_model
    mesh = process.mesh
    if mesh.sizes.pipeline > 1:
        stage = PipelinedModel(loss_model, process)
        if process.is_sharded:
            _shard(stage, mesh, precision)
        return stage
    model = SpreadModel(loss_model, process)
    # Tensor first: FSDP then cuts what is left of each matrix, and gathers no more than that.
    if mesh.sizes.tensor > 1:
        model.partial = share_matrices(model.model, mesh.devices["tensor"])
    # Context next: it changes what attention does, not what is stored.
    if mesh.sizes.context > 1:
        attend_together(model.model)
    # FSDP last: it takes parameters as it finds them, and its hooks must be outermost.
    if process.is_sharded:
        _shard(model, mesh, precision)
    return model


def _shard(model: SpreadModel | PipelinedModel, mesh: ProcessMesh, precision: str) -> None:
    """FSDP2 on each layer and on the rest, which is the loss model itself: the head is then at hand when the loss is
    computed. An untied embedding is a unit of its own, since two tables in one would double the largest buffer."""
    settings = mesh.settings
    devices = mesh.devices["replicate", "shard"] if mesh.sizes.replicate > 1 else mesh.devices["shard"]
    on_gpu = model.process.device.type == "cuda"

    def shard(module: nn.Module, *, reshard: bool) -> None:
        fully_shard(
            module,
            mesh=devices,
            reshard_after_forward=reshard,
            mp_policy=_mixed_precision(mesh, precision),
            offload_policy=CPUOffloadPolicy(pin_memory=on_gpu) if settings.offload else OffloadPolicy(),
        )

    layers = decoder_layers(model.model)
    for layer in layers:
        shard(layer, reshard=settings.reshard)
    embedding, head = model.model.get_input_embeddings(), model.model.get_output_embeddings()
    if embedding is not None and (head is None or embedding.weight is not head.weight):
        shard(embedding, reshard=settings.reshard)
    shard(model, reshard=False)  # needed at once for the backward pass of the head
    if isinstance(model, SpreadModel):
        register_fsdp_forward_method(model, "token_nll")
    _prefetch(layers, settings.prefetch)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the tokens of the whole batch already: gradients are sums, not means. (gloo has no
            # scaled sum, so it must be a plain one.)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _mixed_precision(mesh: ProcessMesh, precision: str) -> MixedPrecisionPolicy:
    """With bf16 training, weights are gathered in bf16; what is stored and updated stays as it is."""
    if precision != "bf16":
        return MixedPrecisionPolicy()
    reduce_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[mesh.settings.reduce_dtype]
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduce_dtype)


def _prefetch(layers: list[nn.Module], num_ahead: int) -> None:
    """Gather the parameters of ``num_ahead`` layers while one computes; 1 is what FSDP2 does by itself."""
    if num_ahead == 1:
        return
    for index, layer in enumerate(layers):
        assert isinstance(layer, FSDPModule), "layers are sharded by now"
        layer.set_modules_to_forward_prefetch(layers[index + 1 : index + 1 + num_ahead])  # type: ignore[arg-type]
        before = layers[max(0, index - num_ahead) : index][::-1]
        layer.set_modules_to_backward_prefetch(before)  # type: ignore[arg-type]


def _mesh(process: Process) -> ProcessMesh:
    assert process.mesh is not None, "a process alone has no mesh"
    return process.mesh
