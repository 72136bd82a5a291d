"""What the base says of the rows of a micro-batch that training is to stay near on."""

from __future__ import annotations

import torch
from torch import Tensor

from deepen.model.loss.closeness import BaseOutput, Closeness
from deepen.model.loss.kernels import IGNORED
from deepen.model.loss.model import LossModel


@torch.no_grad()
def compare_with(
    base: LossModel, inputs: tuple[Tensor, Tensor, Tensor], compared_B: Tensor, strength: float
) -> Closeness | None:
    """What ``base`` says of the rows ``compared_B`` (bool[B]) of a micro-batch; None when no token of it counts.

    ``inputs``: tokens, labels and positions [B, T]; compared are positions that have a label.
    """
    tokens_BT, labels_BT, positions_BT = inputs
    counts_BT = (labels_BT != IGNORED) & compared_B.unsqueeze(1)
    rows = counts_BT.any(1)
    if not bool(rows.any()):
        return None
    # Whole rows, since tokens need their past; its head then sees only those that are compared.
    hidden_ND = base.hidden(tokens_BT[rows], positions_BT[rows]).flatten(0, 1)
    hidden_KD = hidden_ND[counts_BT[rows].flatten()]
    output = BaseOutput(hidden_KD, base.model.get_output_embeddings(), base.loss.rules)
    return Closeness(strength, output, counts_BT.flatten().nonzero().squeeze(1))
