"""A model spread over processes: what is applied to it, in which order, and why in this one.

Every layout keeps the interface of ``LossModel``: whole rows in, the loss and every token's likelihood out. The loss of
a call is this process's part of a sum over the processes of the ``gradients`` group; likelihoods are complete.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from transformers import Cache

from deepen.model.compute.recompute import decoder_layers
from deepen.model.loss.chunked import IGNORED
from deepen.model.loss.closeness import Closeness
from deepen.model.loss.model import LossModel
from deepen.model.writing import CachedWriter, Choose, RereadingWriter, Writer
from deepen.parallel.axes.context import SharedRows, attend_together, begin_rows
from deepen.parallel.axes.pipeline import PipelinedModel
from deepen.parallel.axes.rows import NO_ROW, collect, rows_of
from deepen.parallel.axes.tensor import share_matrices
from deepen.parallel.process import Process, ProcessMesh
from deepen.parallel.processes.attempts import asking_first
from deepen.parallel.shards.gradients import add_up
from deepen.parallel.shards.overlap import Overlap
from deepen.parallel.writing import SharedWriter


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
        indices, rows, inputs = self._share(tokens_BT, labels_BT, positions_BT)
        nll_BT = self._whole(super().token_nll(*inputs), rows, (len(indices), tokens_BT.shape[1]))
        return collect(nll_BT, len(tokens_BT), self.process).to(tokens_BT.device)

    @torch.no_grad()
    def likeliest(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """As ``LossModel.likeliest``; rows are dealt out as in ``token_nll``."""
        indices, rows, inputs = self._share(tokens_BT, torch.full_like(tokens_BT, IGNORED), positions_BT)
        found_BT = self._whole(super().likeliest(inputs[0], inputs[2]), rows, (len(indices), tokens_BT.shape[1]))
        return collect(found_BT, len(tokens_BT), self.process).to(tokens_BT.device)

    @torch.no_grad()
    def last_logits(self, tokens_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: Cache) -> Tensor:
        """As ``LossModel.last_logits``, of this process's own rows."""
        return super().last_logits(tokens_BT, mask_BT, positions_BT, cache)

    @torch.no_grad()
    def logits_at(self, tokens_BT: Tensor, positions_BT: Tensor, place_B: Tensor) -> Tensor:
        """As ``LossModel.logits_at``, of this process's own rows, which those of its context group have, too."""
        rows, inputs = self._part(tokens_BT, torch.full_like(tokens_BT, IGNORED), positions_BT)
        if rows is None:
            return super().logits_at(tokens_BT, positions_BT, place_B)
        # One process of the group has the place, the others add zeros.
        is_there_BQ = rows.mine == place_B[:, None]
        hidden_BQD = self.hidden(inputs[0], inputs[2])
        hidden_BD = hidden_BQD.masked_fill(~is_there_BQ[..., None], 0).sum(1)
        dist.all_reduce(hidden_BD, group=rows.group)
        return self.logits_of(hidden_BD)

    def writer(self, prompts: Sequence[list[int]], choose: Choose, room: int) -> Writer:
        """As ``LossModel.writer``; every process gives the same prompts, and each continues some."""
        device, shares_rows = self.process.device, _mesh(self.process).sizes.context > 1

        def own(some: Sequence[list[int]], choose: Choose, places: Sequence[int]) -> Writer:
            if shares_rows:  # attention of a row that is cut knows of no cache
                return RereadingWriter(self, some, choose, places, room, device)
            return CachedWriter(self, some, choose, places, device)

        return SharedWriter(prompts, choose, self.process, own)

    def _share(self, *values_BT: Tensor) -> tuple[Tensor, SharedRows | None, tuple[Tensor, ...]]:
        """The rows of a batch that are this process's, and of tokens, labels and positions its stretches of them."""
        indices = torch.from_numpy(rows_of(len(values_BT[0]), self.process))
        # NO_ROW is -1, the last row: any text will do where there is no label.
        tokens, labels, positions = (values[indices] for values in values_BT)
        labels[indices == NO_ROW] = IGNORED
        return indices, *self._part(*(values.to(self.process.device) for values in (tokens, labels, positions)))

    def _part(self, *values_BT: Tensor) -> tuple[SharedRows | None, tuple[Tensor, ...]]:
        """This process's stretches of tokens, labels and positions."""
        mesh = _mesh(self.process)
        if mesh.sizes.context == 1:
            return None, values_BT
        length = values_BT[0].shape[1]
        missing = -length % (2 * mesh.sizes.context)
        if missing:  # rows of an evaluation are as long as their texts
            # Padding is one more document, which nobody looks at.
            tokens, labels, positions = (nn.functional.pad(values, (0, missing)) for values in values_BT)
            labels[:, length:] = IGNORED
            positions[:, length:] = torch.arange(missing, device=positions.device)
            values_BT = (tokens, labels, positions)
        rows = begin_rows(values_BT[2], mesh.context)
        return rows, tuple(values[:, rows.mine] for values in values_BT)

    def _whole(self, values_BQ: Tensor, rows: SharedRows | None, shape: Sequence[int]) -> Tensor:
        """Numbers of whole rows from those of each process's stretches."""
        if rows is None:
            return values_BQ
        values_BT = values_BQ.new_zeros(rows.documents_BT.shape)
        # Stretches do not overlap, so that adding them up puts each in its place.
        values_BT[:, rows.mine] = values_BQ
        dist.all_reduce(values_BT, group=rows.group)
        return values_BT[:, : shape[1]]

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
            # As ZeRO-2 does: whole parameters stay through all micro-batches of a step.
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
    model: SpreadModel | PipelinedModel
    if process.mesh.sizes.pipeline > 1:
        model = PipelinedModel(loss_model, process)
        if process.is_sharded:
            _shard(model, process.mesh, precision)
    else:
        model = _spread(SpreadModel(loss_model, process), process.mesh, precision)
    for name in _SHARED_CALLS:  # outside of FSDP's hooks, which gather parameters first of all
        setattr(model, name, asking_first(getattr(model, name)))
    return model


_SHARED_CALLS = ("token_nll", "likeliest", "last_logits", "logits_at")
"""Methods that measuring calls, all processes together."""


def _spread(model: SpreadModel, mesh: ProcessMesh, precision: str) -> SpreadModel:
    # Tensor first: FSDP then cuts what is left of each matrix, and gathers no more than that.
    if mesh.sizes.tensor > 1:
        model.partial = share_matrices(model.model, mesh.devices["tensor"])
    # Context next: it changes what attention does, not what is stored.
    if mesh.sizes.context > 1:
        attend_together(model.model)
    # FSDP last: it takes parameters as it finds them, and its hooks must be outermost.
    if model.process.is_sharded:
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
        for name in _SHARED_CALLS:
            # FSDP gathers parameters before `forward`, and before others only where it is told to.
            register_fsdp_forward_method(model, name)
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
        # Backward comes to them in the opposite order.
        before = layers[max(0, index - num_ahead) : index][::-1]
        layer.set_modules_to_backward_prefetch(before)  # type: ignore[arg-type]


def shard_again(model: nn.Module) -> None:
    """Free what a forward pass gathered and no backward pass freed: checkpoints know parameters as they are sharded."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def process_of(model: LossModel) -> Process | None:
    """The process that a model computes on together with others; None when it is alone."""
    return model.process if isinstance(model, SpreadModel | PipelinedModel) else None


def _mesh(process: Process) -> ProcessMesh:
    assert process.mesh is not None, "a process alone has no mesh"
    return process.mesh
