"""A model cut between its layers: each process holds some of them and hands hidden states on (1F1B, arXiv 2104.04473).

The Hugging Face module stays what it is, with fewer layers under their own numbers, so names in checkpoints are those
of the whole model. torch's pipelining moves activations and gradients; rows are cut into micro-batches of one size,
with rows of padding where they do not come out even. A tied table lives at both ends, its gradients are added up.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from transformers import PreTrainedModel

from deepen.errors import DeepenError
from deepen.model.compute.recompute import decoder_layers
from deepen.model.loss.chunked import IGNORED
from deepen.model.loss.model import LossModel, at_places
from deepen.model.writing import Choose, RereadingWriter, Writer
from deepen.parallel.axes.families import PIPELINE
from deepen.parallel.process import Process, ProcessMesh
from deepen.parallel.shards.gradients import add_up
from deepen.parallel.writing import AgreedWriter

AtEnd = Callable[[Tensor, Tensor], Tensor]
_MOST_SCHEDULES = 8
"""Shapes of which the schedule is kept: a run has a few, an evaluation one for each length of a text."""


class PipelinedModel(LossModel):
    """One stage of a pipeline; all processes of the pipeline call it together."""

    def __init__(self, whole: LossModel, process: Process) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(whole.__dict__)  # the same model and rules, cut below
        assert process.mesh is not None, "a process alone is no stage"
        self.process = process
        self.place = process.mesh.here.pipeline
        self.num_stages = process.mesh.sizes.pipeline
        self.group = process.mesh.devices.get_group("pipeline")
        self.ends = _group_of_ends(process.mesh)
        self.tied = cut(self.model, self.place, self.num_stages)
        self._at_end: AtEnd | None = None
        """What the last stage makes of hidden states and labels instead of the loss."""
        self._nll: list[Tensor] = []
        self._schedules: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    @property
    def is_first(self) -> bool:
        """Whether this stage holds the embedding."""
        return self.place == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage holds norm and head."""
        return self.place == self.num_stages - 1

    def forward(self, values: Tensor, labels_BT: Tensor, positions_BT: Tensor) -> Tensor:  # type: ignore[override]
        """What this stage makes of token ids (the first) or hidden states: hidden states, or (the last) the loss."""
        hidden_BTD = self.hidden(values, positions_BT)
        if not self.is_last:
            return hidden_BTD
        if self._at_end is not None:
            return self._at_end(hidden_BTD, labels_BT)
        total, nll_BT = self.loss_of(hidden_BTD, labels_BT)
        self._nll.append(nll_BT.sum(1, dtype=torch.float64))
        return torch.stack([total])  # not a view, which hooks of FSDP would lose

    def hidden(self, values: Tensor, positions_BT: Tensor) -> Tensor:
        """Hidden states after this stage's layers."""
        if self.is_first:
            return super().hidden(values, positions_BT)
        return self.run_body(positions_BT, inputs_embeds=values)

    def accumulate(self, inputs: tuple[Tensor, ...], num_micro_batches: int, num_valid: int) -> Tensor:
        """Forward and backward over all micro-batches; returns the sum of nats of each row, on every stage.

        ``inputs``: tokens, labels and positions [B, T] of this copy's rows, B a multiple of ``num_micro_batches``.
        """
        self._nll.clear()
        schedule = self._schedule(inputs[0].shape, num_micro_batches, num_valid)
        tokens_BT, labels_BT, positions_BT = inputs
        # The schedule calls the loss function with the last stage's output; labels went in with the other inputs.
        target = torch.zeros(num_micro_batches, device=tokens_BT.device) if self.is_last else None
        first = (tokens_BT,) if self.is_first else ()
        losses: list[Tensor] | None = [] if self.is_last else None
        named = {"labels_BT": labels_BT, "positions_BT": positions_BT}
        schedule.step(*first, target=target, losses=losses, return_outputs=False, **named)
        if self.is_last:
            # Only the last ones: a new schedule first runs a forward pass of its own, to learn shapes.
            nll_B = torch.cat(self._nll[-num_micro_batches:])
        else:
            nll_B = torch.zeros(len(tokens_BT), dtype=torch.float64, device=tokens_BT.device)
        return self._from_last(nll_B)

    @torch.no_grad()
    def token_nll(self, tokens_BT: Tensor, labels_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """As ``LossModel.token_nll``; every process gives the same rows and gets the same answer."""
        found = self._run_through(tokens_BT, labels_BT, positions_BT, self.nll_of)
        if found is None:
            found = torch.zeros(tokens_BT.shape, dtype=self._accumulator(), device=self.process.device)
        return self._from_last(found)

    @torch.no_grad()
    def likeliest(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """As ``LossModel.likeliest``; every process gives the same rows and gets the same answer."""
        labels_BT = torch.full_like(tokens_BT, IGNORED)
        found = self._run_through(tokens_BT, labels_BT, positions_BT, self._likeliest_at_end)
        return self._from_last(torch.zeros_like(labels_BT, device=self.process.device) if found is None else found)

    def next_tokens(
        self, tokens_BT: Tensor, positions_BT: Tensor, place_B: Tensor, choose: Callable[[Tensor], list[int]]
    ) -> list[int]:
        """As ``LossModel.next_tokens``; the last stage chooses for all."""
        logits_BV = self.logits_at(tokens_BT, positions_BT, place_B)
        chosen = choose(logits_BV) if self.is_last else [0] * len(tokens_BT)
        return [int(token) for token in self._from_last(torch.tensor(chosen, device=self.process.device)).tolist()]

    @torch.no_grad()
    def logits_at(self, tokens_BT: Tensor, positions_BT: Tensor, place_B: Tensor) -> Tensor:
        """As ``LossModel.logits_at`` on the last stage; the others have none, [B, 0]."""
        labels_BT = torch.full_like(tokens_BT, IGNORED)
        labels_BT[torch.arange(len(place_B), device=place_B.device), place_B] = 0  # marks the place
        found = self._run_through(tokens_BT, labels_BT, positions_BT, self._logits_at_end)
        return torch.zeros(len(tokens_BT), 0, device=self.process.device) if found is None else found

    def writer(self, prompts: Sequence[list[int]], choose: Choose, room: int) -> Writer:
        """As ``LossModel.writer``; keys and values of other stages cannot be kept here, so everything is read again."""
        device = self.process.device
        return AgreedWriter(RereadingWriter(self, prompts, choose, range(len(prompts)), room, device), self.process)

    def _likeliest_at_end(self, hidden_BTD: Tensor, _labels_BT: Tensor) -> Tensor:
        return self.likeliest_of(hidden_BTD)

    def _logits_at_end(self, hidden_BTD: Tensor, labels_BT: Tensor) -> Tensor:
        return self.logits_of(at_places(hidden_BTD, (labels_BT != IGNORED).int().argmax(1)))

    def _run_through(self, tokens_BT: Tensor, labels_BT: Tensor, positions_BT: Tensor, at_end: AtEnd) -> Tensor | None:
        """What ``at_end`` makes of the hidden states of all rows, on the last stage; None on the others."""
        tokens_BT, labels_BT, positions_BT = (v.to(self.process.device) for v in (tokens_BT, labels_BT, positions_BT))
        self._at_end = at_end
        try:
            schedule = self._schedule(tokens_BT.shape, 1, None)
            first = (tokens_BT,) if self.is_first else ()
            found: Tensor = schedule.step(*first, labels_BT=labels_BT, positions_BT=positions_BT)
        finally:
            self._at_end = None
        return found if self.is_last else None

    def finish_gradients(self) -> None:
        """After the last micro-batch: make the gradients of this stage those of the whole batch."""
        mesh = self.process.mesh
        assert mesh is not None, "a process alone is no stage"
        if not self.process.is_sharded:
            add_up([p.grad for p in self.parameters() if p.grad is not None], mesh.gradients)
        if self.tied is not None and self.ends is not None:
            # Both ends take part in the sum, whatever gradients they have.
            table = self.tied()
            if table.grad is None:
                table.grad = torch.zeros_like(table)
            add_up([table.grad], self.ends)

    def repeated(self) -> list[nn.Parameter]:
        """Parameters that another stage counts when the gradient's norm is taken: a tied table at the last stage."""
        return [self.tied()] if self.tied is not None and self.is_last and not self.is_first else []

    def _accumulator(self) -> torch.dtype:
        wide = any(parameter.dtype == torch.float64 for parameter in self.parameters())
        return torch.float64 if wide else torch.float32

    def _from_last(self, values: Tensor) -> Tensor:
        values = values.contiguous()
        dist.broadcast(values, group=self.group, group_src=self.num_stages - 1)
        return values

    def _schedule(self, shape: torch.Size, num_micro_batches: int, num_valid: int | None) -> Any:
        """The schedule for rows of one shape; without ``num_valid`` forward only."""
        end = None if self._at_end is None else self._at_end.__name__
        key = (tuple(shape), num_micro_batches, end, self.training)
        # Taken out and put back: what was not used for longest then stands first, and goes first.
        made = self._schedules.pop(key, None)
        if made is None:
            stage = PipelineStage(self, self.place, self.num_stages, self.process.device, group=self.group)
            if num_valid is None:
                made = ScheduleGPipe(stage, num_micro_batches)
            else:
                # `_scaled` divides by the tokens of the whole batch; torch would divide by micro-batches once more.
                made = Schedule1F1B(stage, num_micro_batches, loss_fn=self._scaled, scale_grads=False)
        self._schedules[key] = made
        while len(self._schedules) > _MOST_SCHEDULES:
            self._schedules.popitem(last=False)
        # No part of the key: the loss function looks at it each time that it is called.
        self._num_valid = max(1, num_valid or 1)
        return made

    def _scaled(self, total: Tensor, _target: Tensor) -> Tensor:
        return total.sum() / self._num_valid


def layers_of(num_layers: int, place: int, num_stages: int) -> range:
    """Which layers stage ``place`` holds: as equal as can be, fewer at the ends, which have the tables as well."""
    sizes = [num_layers // num_stages] * num_stages
    middle_first = sorted(range(num_stages), key=lambda stage: (stage in (0, num_stages - 1), stage))
    for stage in middle_first[: num_layers % num_stages]:
        sizes[stage] += 1
    begin = sum(sizes[:place])
    return range(begin, begin + sizes[place])


def cut(model: PreTrainedModel, place: int, num_stages: int) -> Any:
    """Leave in ``model`` what stage ``place`` needs; returns how to get at a tied table that lives there, or None.

    Raises ``DeepenError`` for a family that we do not know how to cut.
    """
    if model.config.model_type not in PIPELINE:
        raise DeepenError(
            f"`{model.config.model_type}` cannot be cut into a pipeline",
            hint=f"set `mesh.pipeline: 1`, or use one of {', '.join(sorted(PIPELINE))}",
        )
    body = model.base_model
    kept = layers_of(len(decoder_layers(model)), place, num_stages)
    is_first, is_last = place == 0, place == num_stages - 1
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    _keep_layers(model, kept)
    if not is_last:
        # The body ends in its norm, but what a stage between hands on is not the end.
        body.norm = nn.Identity()
        model.lm_head = None
    if not is_first and not (is_tied and is_last):
        body.embed_tokens = None
    # Looked up each time, since FSDP puts another parameter in place later.
    return (lambda: body.embed_tokens.weight) if is_tied and (is_first or is_last) else None


def _keep_layers(model: PreTrainedModel, kept: range) -> None:
    """Only these layers, under their own numbers, with a configuration that says so to the body."""
    layers = model.base_model.layers
    # A configuration of its own for the body: that the model's still counts all layers is how a stage is known
    # (model/weights/load.py).
    model.base_model.config = config = copy.deepcopy(model.base_model.config)
    layers._modules = {str(number): layers[number] for number in kept}
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number] for number in kept]


def _group_of_ends(mesh: ProcessMesh) -> dist.ProcessGroup | None:
    """The first and the last stage of this process's pipeline; None for stages between. Made by all processes."""
    size = mesh.sizes.pipeline
    ranks = mesh.devices.mesh.view(size, -1)
    pairs: Sequence[list[int]] = [[int(column[0]), int(column[-1])] for column in ranks.T]
    own: dist.ProcessGroup | None = None
    for pair in pairs:
        # A collective of all processes: each makes every pair, also those that it is not in.
        group = dist.new_group(sorted(set(pair)))
        if dist.get_rank() in pair:
            own = group
    return own
