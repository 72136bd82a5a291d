"""Context parallelism: processes share rows. Each holds two stretches of a row and sees all keys and values of it.

Of 2 C equal stretches process c of C takes number c and number 2 C - 1 - c: early tokens look at little, late ones at
much, and so all have the same work (as in Llama 3's training, arXiv 2407.21783, section 3.3.2). Keys and values are
gathered layer by layer; documents stay isolated by the same rule as everywhere. The mask is an ordinary one, tokens of
this process x tokens of the row, so it runs on any device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

ATTENTION = "deepen_context"


@dataclass
class SharedRows:
    """The rows that the processes of a context group work on at the moment."""

    group: dist.ProcessGroup
    documents_BT: Tensor
    """Number of each token's document within its row, in the row's order."""
    stretches: list[Tensor]
    """By process, which positions of a row it holds: int64[T / C]."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """By sliding window, bool[B, 1, T / C, T]: which gathered key a query of this process may look at."""

    @property
    def mine(self) -> Tensor:
        """The positions of this process."""
        return self.stretches[self.group.rank()]

    def mask(self, window: int | None) -> Tensor:
        """Keys up to the query, of its document, and within the ``window`` of a family that has one."""
        # Made once for all layers of a pass, and for what is recomputed in its backward pass.
        if window not in self.masks:
            # Gathered keys stand in the order of processes: what counts is where each stands in the row.
            keys_T = torch.cat(self.stretches)
            queries_Q1 = self.mine[:, None]
            seen_QT = keys_T <= queries_Q1
            if window is not None:
                seen_QT &= keys_T > queries_Q1 - window
            documents_BQ1 = self.documents_BT[:, self.mine, None]
            self.masks[window] = ((documents_BQ1 == self.documents_BT[:, None, keys_T]) & seen_QT)[:, None]
        return self.masks[window]


_now: list[SharedRows] = []
"""The rows of the forward pass under way; they stay until the next one, because recomputation looks at them again."""


def stretches(length: int, num_processes: int, device: torch.device) -> list[Tensor]:
    """The positions that each process holds of rows of ``length``, a multiple of ``2 * num_processes``."""
    parts = torch.arange(length, device=device).chunk(2 * num_processes)
    return [torch.cat([parts[index], parts[-1 - index]]) for index in range(num_processes)]


def begin_rows(positions_BT: Tensor, group: dist.ProcessGroup) -> SharedRows:
    """Tell the attention of this process which rows come next; ``positions_BT`` are those of the whole rows."""
    # Positions restart where a document begins, so counting zeros numbers the documents of a row.
    documents_BT = (positions_BT == 0).cumsum(1)
    rows = SharedRows(group, documents_BT, stretches(positions_BT.shape[1], group.size(), positions_BT.device))
    _now[:] = [rows]
    return rows


def attend_together(model: PreTrainedModel) -> None:
    """Let ``model`` attend over rows that are shared, from now on."""
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    model.set_attn_implementation(ATTENTION)


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """transformers would make a mask of the positions of this process alone."""


def _attention(  # noqa: PLR0913 - transformers' own signature
    module: nn.Module,
    query_BHQD: Tensor,
    key_BKQD: Tensor,
    value_BKQD: Tensor,
    _attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; keys and values are those of this process."""
    rows = _now[0]
    # Stacked, so that a layer needs one collective and not two.
    key, value = _Gather.apply(torch.stack([key_BKQD, value_BKQD]), rows.group)  # type: ignore[no-untyped-call]
    mixed = nn.functional.scaled_dot_product_attention(
        query_BHQD, key, value, attn_mask=rows.mask(sliding_window), dropout_p=dropout if module.training else 0.0,
        scale=scaling, enable_gqa=key.shape[1] != query_BHQD.shape[1],
    )  # fmt: skip
    return mixed.transpose(1, 2).contiguous(), None


class _Gather(torch.autograd.Function):
    """The tensors of all processes of a group, one after another along the sequence (dimension 3)."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: dist.ProcessGroup) -> Tensor:
        """[2, B, K, Q, D] to [2, B, K, C Q, D]."""
        ctx.group = group
        parts = mine.new_empty(group.size() * len(mine), *mine.shape[1:])
        dist.all_gather_single(parts, mine.contiguous(), group=group)
        # A collective lines parts up along dimension 0; the sequence is dimension 3.
        return torch.cat(parts.chunk(group.size()), 3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """What all processes say about this process's keys and values, added up."""
        parts = torch.cat(gradient.chunk(ctx.group.size(), 3))
        mine = parts.new_empty(len(gradient), *parts.shape[1:])
        dist.reduce_scatter_single(mine, parts, group=ctx.group)
        return mine, None
