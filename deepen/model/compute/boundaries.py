"""Attention kernels that are told where documents begin, so that no mask of tokens x tokens is ever made.

The rows of a micro-batch are laid end to end and ``cu_seq_lens`` gives the beginnings of all documents in them. The
list has one of few lengths (documents of no tokens fill it up), because compiled code is made anew for each length.
``varlen`` is PyTorch's own kernel and the default on a GPU; ``flash`` is the flash-attn package.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from deepen.errors import DeepenError

varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # PyTorch before 2.10
    varlen_attn = None

_HAS_KERNEL = varlen_attn is not None and {"window_size", "enable_gqa"} <= signature(varlen_attn).parameters.keys()
"""Early versions of the kernel had neither windows nor shared keys."""

Attention = Literal["auto", "sdpa", "varlen", "flash", "flex"]

VARLEN = "deepen_varlen"
"""Our function's name among transformers' attention functions."""

# transformers makes masks before it calls attention, where none of our arguments arrive: hence a variable.
_GIVEN: ContextVar[bool] = ContextVar("boundaries are given", default=False)

_KNOWN = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text"}
"""Families in which packed documents were found equal to separate ones this way; ``auto`` uses it for them."""
_LARGEST_HEAD = 256
_FEWEST_DOCUMENTS = 64


@dataclass(frozen=True)
class Boundaries:
    """Where documents begin in rows that are laid end to end."""

    cu_seq_lens: Tensor
    """int32[K + 1]: the first position of each document, then the number of positions as often as needed."""
    longest: int
    """Positions of a row, which no document exceeds: the same in each batch, so that nothing is compiled again."""

    def keywords(self) -> dict[str, Any]:
        """As transformers hands them on to attention functions."""
        return {
            "cu_seq_lens_q": self.cu_seq_lens, "cu_seq_lens_k": self.cu_seq_lens,
            "max_length_q": self.longest, "max_length_k": self.longest,
        }  # fmt: skip


def boundaries(positions_BT: Tensor, capacity: int) -> Boundaries:
    """Where documents begin: at each row's beginning, and where positions restart at 0.

    ``capacity`` is how many documents the list must have room for (``room_for``).
    """
    num_rows, length = positions_BT.shape
    begins_BT = positions_BT == 0
    begins_BT[:, 0] = True
    places_N = torch.arange(num_rows * length, device=positions_BT.device)
    # Places that begin nothing sort to the end. Unlike `nonzero` this has a size that is known without the GPU.
    first_N = torch.where(begins_BT.flatten(), places_N, num_rows * length).sort().values
    # The rest of the list are documents of no tokens, behind the last one.
    filled = torch.nn.functional.pad(
        first_N[:capacity], (0, capacity + 1 - len(first_N[:capacity])), value=num_rows * length
    )
    return Boundaries(filled.to(torch.int32), length)


def room_for(positions_BT: Tensor) -> int:
    """A capacity for these rows: the number of documents, up to a power of two (waits for the GPU)."""
    documents = int((positions_BT == 0).sum()) + len(positions_BT)
    return max(_FEWEST_DOCUMENTS, 1 << (documents - 1).bit_length())


@contextmanager
def given() -> Iterator[None]:
    """Inside, a model is called with boundaries: its masks are left out."""
    token = _GIVEN.set(True)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def _mask(**settings: Any) -> Tensor | None:
    """transformers' mask function beside ``varlen_attention``."""
    return None if _GIVEN.get() else sdpa_mask(**settings)


def varlen_attention(  # noqa: PLR0913 - transformers' signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function over PyTorch's variable-length kernel; heads come as [1, H, N, D].

    Called by others, who give no boundaries (a text that is generated), it is ``sdpa`` with transformers' masks.
    Numbers that the kernel does not take (fp32, a CPU) are computed with a mask per row, which is exact and slow.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        if _GIVEN.get():
            raise DeepenError(
                "this architecture does not hand document boundaries on to its attention",
                hint="set `compute.attention: sdpa` in the machine file",
            )
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **others
        )
        return plain
    if attention_mask is not None or dropout or others.get("softcap") is not None:
        raise DeepenError(
            "attention with dropout, soft caps or a mask of its own cannot use document boundaries",
            hint="set `compute.attention: sdpa` in the machine file",
        )
    takes_them = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    attend = varlen_attn if takes_them else masked_varlen_attention
    query_NHD, key_NHD, value_NHD = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    out_NHD = attend(
        query_NHD, key_NHD, value_NHD, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling,
        # transformers counts the query itself in its window, the kernel counts what lies to its left.
        window_size=(sliding_window - 1 if sliding_window else -1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return out_NHD.unsqueeze(0), None


def masked_varlen_attention(  # noqa: PLR0913 - PyTorch's signature
    query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What ``torch.nn.attention.varlen.varlen_attn`` computes, by a mask for each stretch of ``max_q`` positions.

    No document may lie across two stretches. Takes any precision and device.
    """
    del cu_seq_k, max_k
    num_tokens = len(query_NHD)
    places_N = torch.arange(num_tokens, device=query_NHD.device)
    # How many documents have begun by a place is the number of its document.
    document_BT = torch.searchsorted(cu_seq_q, places_N, right=True).view(-1, max_q)
    distance_TT = places_N[:max_q, None] - places_N[None, :max_q]
    seen_BTT = (document_BT[:, :, None] == document_BT[:, None, :]) & (distance_TT >= 0)
    if window_size[0] >= 0:
        seen_BTT &= distance_TT <= window_size[0]
    query, key, value = (
        states.reshape(-1, max_q, *states.shape[1:]).transpose(1, 2) for states in (query_NHD, key_NHD, value_NHD)
    )
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen_BTT[:, None], scale=scale, enable_gqa=enable_gqa
    )
    return out.transpose(1, 2).flatten(0, 1)


def use_attention(model: PreTrainedModel, wanted: Attention, device: torch.device, *, half: bool) -> bool:
    """Let ``model`` compute attention as the machine file asks; returns whether it takes boundaries.

    ``half`` says that it trains in bfloat16. Raises ``DeepenError`` when the model or this installation cannot.
    """
    if wanted == "auto":
        wanted = "varlen" if device.type == "cuda" and half and _fits(model) else "sdpa"
    if wanted == "sdpa":
        return False  # as loaded: sdpa, or eager in families that have none
    names = {"varlen": VARLEN, "flash": "flash_attention_2", "flex": "flex_attention"}
    if wanted == "varlen" and device.type == "cuda" and not _HAS_KERNEL:
        raise DeepenError("this PyTorch has no `varlen_attn` with windows", hint="install a newer one, or use sdpa")
    if wanted == "flash" and not half:
        raise DeepenError("`compute.attention: flash` computes in bfloat16 only", hint="set `train.precision: bf16`")
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, _mask)
    try:
        model.set_attn_implementation(names[wanted])
    except (ImportError, ValueError) as error:
        raise DeepenError(
            f"`compute.attention: {wanted}` cannot be used: {error}", hint="leave the key at auto, or use sdpa"
        ) from error
    # A family with an attention of its own keeps it, without an error.
    if model.config._attn_implementation != names[wanted]:
        raise DeepenError(
            f"`{model.config.model_type}` has an attention of its own", hint="set `compute.attention: sdpa`"
        )
    return wanted != "flex"


def _fits(model: PreTrainedModel) -> bool:
    """Whether the kernel of ``varlen`` takes this model, and PyTorch has it."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return _HAS_KERNEL and config.model_type in _KNOWN and head <= _LARGEST_HEAD and head % 8 == 0
