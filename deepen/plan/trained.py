"""What of a model a run trains: the numbers that compute, memory and disk of a plan depend on."""

from __future__ import annotations

from dataclasses import dataclass

from deepen.formats.architecture import ADAMW_BYTES_PER_PARAMETER, Architecture
from deepen.recipe.models import Recipe
from deepen.tokenize.config import ExtendVocabulary
from deepen.train.schedule.methods import Start

_FROZEN_BYTES = 4
"""Frozen weights are held in float32, as trained ones are."""
_STORED_BYTES = 12
"""A checkpoint holds weights and two moments of what is trained, in float32."""


@dataclass(frozen=True)
class Trained:
    """How many weights are trained, frozen and added; ``how`` says it in words."""

    shape: Architecture
    adapters: int = 0
    """Weights of adapters, beside those of the model."""
    trained: int = 0
    """Weights that move, adapters included."""
    frozen_in_products: int = 0
    """Frozen weights that take part in matrix products."""
    how: str = ""
    """What is trained, for people; empty: everything."""

    @property
    def state_bytes(self) -> int:
        """Bytes of weights, gradients and optimizer state."""
        frozen = self.shape.num_parameters + self.adapters - self.trained
        return ADAMW_BYTES_PER_PARAMETER * self.trained + _FROZEN_BYTES * frozen

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint."""
        return _STORED_BYTES * self.trained

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward and backward of one token, without gradients of frozen weights."""
        return self.shape.training_flops_per_token(sequence_length, frozen=self.frozen_in_products, added=self.adapters)


def trained_of(recipe: Recipe, shape: Architecture) -> Trained:
    """What the method of ``recipe`` trains of a model of this shape; patterns of targets count as all linear layers."""
    tables = ("input",) if shape.tied else ("input", "output")
    grows = isinstance(recipe.tokenize.vocabulary, ExtendVocabulary)
    adapters = recipe.train.method.adapters(Start(tables, grows, ""))
    if adapters is None:
        return Trained(shape, trained=shape.num_parameters)
    added = shape.adapter_parameters(adapters.rank, row_lengths=adapters.dora)
    table = shape.vocabulary_size * shape.hidden_size
    head_is_trained = tables[-1] in adapters.tables
    return Trained(
        shape,
        adapters=added,
        trained=added + len(adapters.tables) * table,
        frozen_in_products=shape.matrix_parameters - table * head_is_trained,
        how=adapters.title,
    )
