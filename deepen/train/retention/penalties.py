"""Penalties on leaving the base, as a step applies them (settings: ``retention.py``).

Pulls on weights (L2-SP, EWC) are added to the gradients once per step, after all micro-batches and before clipping:
with an AdamW that sees one gradient for all that is wanted, and without a graph. They work on what this process holds
of each weight, so that every layout does the same. The pull on predictions (KL) is part of each micro-batch's loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deepen.model.loss.base_comparison import compare_with
from deepen.model.loss.closeness import Closeness
from deepen.model.loss.model import LossModel
from deepen.model.token_tables import rows_here, token_tables
from deepen.model.weights.pieces import local_part
from deepen.parallel.process import Process
from deepen.parallel.shards.gradients import add_over_shards


@dataclass(frozen=True)
class Anchor:
    """A trained weight and where it began; tensors are what this process holds."""

    parameter: nn.Parameter
    origin: Tensor
    importance: Tensor | None
    """The weight's diagonal of the Fisher information, fp32; None: not measured."""
    free_rows: Tensor | None
    """Rows that the base does not have: nothing pulls at them."""

    def moved(self) -> Tensor:
        """How far the weight is from its beginning, in fp32 at least."""
        now = local_part(self.parameter)
        wide = torch.promote_types(now.dtype, torch.float32)
        moved = now.to(wide) - self.origin.to(wide)
        if self.free_rows is not None:
            moved[self.free_rows] = 0.0
        return moved


@dataclass(frozen=True)
class Penalties:
    """What holds a model near its base during a run."""

    settings: Mapping[str, float]
    """Strength of each penalty, as the recipe has it."""
    anchors: tuple[Anchor, ...] = ()
    """Of L2-SP and EWC."""
    base: LossModel | None = None
    """Of KL: the base, which does not move."""
    is_replay_S: npt.NDArray[np.bool_] | None = None
    """Of KL: which sources are compared."""
    factors: Mapping[str, float] | None = None
    """What decisions have multiplied strengths by."""

    def strength(self, name: str) -> float:
        """The strength of a penalty that is in force; 0 where there is none."""
        return self.settings.get(name, 0.0) * (self.factors or {}).get(name, 1.0)

    def with_factors(self, factors: Mapping[str, float]) -> Penalties:
        """The same with other strengths."""
        return replace(self, factors=dict(factors))

    def closeness(self, inputs: tuple[Tensor, ...], source_B: npt.NDArray[np.int64]) -> Closeness | None:
        """The comparison of a micro-batch with the base; ``source_B`` is negative for rows of padding."""
        if self.base is None or self.is_replay_S is None:
            return None
        # -1 reads the last source's role, which the second factor takes back.
        compared_B = self.is_replay_S[source_B] & (source_B >= 0)
        tokens_BT, labels_BT, positions_BT = inputs
        on_device = torch.from_numpy(compared_B).to(tokens_BT.device)
        return compare_with(self.base, (tokens_BT, labels_BT, positions_BT), on_device, self.strength("kl"))

    @torch.no_grad()
    def pull(self, process: Process, repeated: Sequence[Tensor] = ()) -> dict[str, float]:
        """Add the gradients of L2-SP and EWC to those of the loss; returns the value of each, as of before the update.

        ``repeated``: weights that another stage of a pipeline counts. A weight without a gradient does not move in this
        step, and is left alone.
        """
        names = [name for name in ("l2_sp", "ewc") if name in self.settings]
        if not names:
            return {}
        found: list[tuple[Tensor, Tensor]] = []
        for anchor in self.anchors:
            squares = self._pull_at(anchor, names)
            # The gradient is added at both ends of a pipeline, the value counts once.
            if not any(anchor.parameter is other for other in repeated):
                found.append((anchor.parameter, squares))
        values = add_over_shards(found, process).tolist()
        return {name: 0.5 * self.strength(name) * value for name, value in zip(names, values, strict=True)}

    def _pull_at(self, anchor: Anchor, names: Sequence[str]) -> Tensor:
        """Add to one weight's gradient; returns the squared distance by each of ``names``: float64[len(names)]."""
        moved = anchor.moved()
        gradient = anchor.parameter.grad
        squares = []
        for name in names:
            weighted = moved if name == "l2_sp" else moved * _known(anchor.importance)
            if gradient is not None:
                # The derivative of strength / 2 * x^2, written down instead of differentiated.
                local_part(gradient).add_(weighted.to(gradient.dtype), alpha=self.strength(name))
            squares.append((weighted * moved).sum(dtype=torch.float64))
        return torch.stack(squares)


def _known(importance: Tensor | None) -> Tensor:
    assert importance is not None, "EWC has measured it"
    return importance


def anchors_of(
    model: PreTrainedModel, importance: Mapping[str, Tensor] | None, new_ids: Tensor | None
) -> tuple[Anchor, ...]:
    """Every trained weight of a model, spread or not, as it is now.

    ``importance`` is by name of the weight; ``new_ids`` are those of new tokens.
    """
    tables = {id(table) for table in token_tables_here(model)} if new_ids is not None else set()
    return tuple(
        Anchor(
            parameter,
            local_part(parameter).clone(),
            None if importance is None else local_part(importance[name]),
            _free_rows(parameter, new_ids) if new_ids is not None and id(parameter) in tables else None,
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    )


def token_tables_here(model: PreTrainedModel) -> list[Tensor]:
    """The tables of tokens that this process has any of: a stage of a pipeline may have one or none."""
    if model.get_input_embeddings() is not None and model.get_output_embeddings() is not None:
        return list(token_tables(model).values())
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [table for end in ends if end is not None for table in end.parameters()]


def _free_rows(table: Tensor, ids: Tensor) -> Tensor:
    return rows_here(table, ids.to(table.device))[1]
