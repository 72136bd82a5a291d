"""Who says the next tokens of a batch of prompts: with keys and values kept, or by reading everything again.

Keeping them makes a token cost a token, but needs attention that knows of it. Where processes share rows or layers it
does not; reading again is right anywhere, and a token there costs a whole row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

Choose = Callable[[Tensor, Sequence[int]], list[int]]
"""One token for each row of logits [B, V]; the numbers say which prompts the rows belong to."""


class TellsNext(Protocol):
    """What writing needs of a model: the logits of what follows, with or without what it has kept."""

    def last_logits(self, tokens_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: Cache) -> Tensor:
        """Logits [B, V] of what follows the rows, behind what ``cache`` holds."""
        ...

    def next_tokens(
        self, tokens_BT: Tensor, positions_BT: Tensor, place_B: Tensor, choose: Callable[[Tensor], list[int]]
    ) -> list[int]:
        """What ``choose`` makes of the logits behind one place of each row."""
        ...


class Writer(Protocol):
    """A batch of prompts that is being continued."""

    def next(self, said: Sequence[int] | None) -> list[int]:
        """The next token of every prompt; ``said`` are those that came before it, None at first."""
        ...


class CachedWriter:
    """Keeps keys and values. Prompts stand at the right end of their rows, padding before them is masked."""

    def __init__(
        self,
        model: TellsNext,
        prompts: Sequence[list[int]],
        choose: Choose,
        places: Sequence[int],
        device: torch.device,
    ) -> None:
        self._model, self._choose, self._places, self._device = model, choose, places, device
        width = max(map(len, prompts))
        # At the right end: the last column then has the last token of every prompt.
        self._tokens_BT = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
        is_real = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._mask_BT = torch.tensor(is_real, device=device)
        # Real tokens count from 0; padding has position 0, too, and is masked.
        self._positions_BT = (self._mask_BT.cumsum(1) - 1).clamp(min=0)
        self._cache = DynamicCache()

    def next(self, said: Sequence[int] | None) -> list[int]:
        """See ``Writer``."""
        if said is not None:
            self._tokens_BT = torch.tensor(said, device=self._device)[:, None]
            self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(self._tokens_BT)], dim=1)
            self._positions_BT = self._positions_BT[:, -1:] + 1
        logits_BV = self._model.last_logits(self._tokens_BT, self._mask_BT, self._positions_BT, self._cache)
        return self._choose(logits_BV, self._places)


class RereadingWriter:
    """Reads prompt and answer again for every token, in rows that have room for the whole answer from the start."""

    def __init__(
        self, model: TellsNext, prompts: Sequence[list[int]], choose: Choose, places: Sequence[int], room: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._model, self._choose, self._places = model, choose, places
        width = max(map(len, prompts)) + room
        rows = [prompt + [0] * (width - len(prompt)) for prompt in prompts]  # never looked at: attention is causal
        self._tokens_BT = torch.tensor(rows, device=device)
        self._positions_BT = torch.arange(width, device=device).expand(len(rows), width)
        self._last_B = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)

    def next(self, said: Sequence[int] | None) -> list[int]:
        """See ``Writer``."""
        if said is not None:
            self._last_B = self._last_B + 1
            rows = torch.arange(len(said), device=self._last_B.device)
            self._tokens_BT[rows, self._last_B] = torch.tensor(said, device=self._last_B.device)
        choose = self._choose
        return self._model.next_tokens(
            self._tokens_BT, self._positions_BT, self._last_B, lambda logits_BV: choose(logits_BV, self._places)
        )
