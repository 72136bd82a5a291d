"""Generating text in batches, for measuring: greedy or sampled, the same whatever the batch and however many processes.

Padding is masked and positions count real tokens only, so that a prompt's neighbours do not matter. Of every step only
the logits of the last position exist. A row ends at an end token or when the caller says so; sampling draws from a
stream of its own per prompt. How a model says its next tokens is its own affair (``LossModel.writer``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepen.model.compute.copies import shared_out
from deepen.model.loss.model import LossModel, evaluating

_TOKENS_PER_BATCH = {"cpu": 8192, "cuda": 65_536}
"""Rows x (prompt and answer) whose keys and values are held at a time."""


@dataclass(frozen=True)
class Decoding:
    """How answers are made."""

    max_new_tokens: int
    end_ids: Collection[int] = ()
    """Tokens that end an answer; they are not part of it."""
    is_done: Callable[[list[int]], bool] = field(default=lambda tokens: False)
    """Asked after each token with the answer so far."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    seed: int = 17
    num_tokens: int | None = None
    """Ids from this one on are padding of the table and are never said."""


@torch.no_grad()
def generate(model: LossModel, prompts: Sequence[list[int]], decoding: Decoding) -> list[list[int]]:
    """The tokens that follow each of ``prompts`` (at least one token each), in their order.

    A prompt that leaves no room within the model's positions loses tokens at its beginning. The model is put into
    evaluation mode and left as it was found.
    """
    longest = model.model.config.max_position_embeddings - decoding.max_new_tokens
    if longest < 1:
        raise ValueError(f"{decoding.max_new_tokens} new tokens do not fit the model's positions")
    kept = [prompt[-longest:] for prompt in prompts]
    # Longest first: similar lengths share a batch, and one that does not fit into memory fails at once.
    order = sorted(range(len(kept)), key=lambda index: -len(kept[index]))
    answers: list[list[int]] = [[] for _ in kept]
    device = next(model.parameters()).device
    with evaluating(model):
        batches = list(_batches(order, kept, decoding.max_new_tokens, _TOKENS_PER_BATCH[device.type]))
        written = shared_out(model, lambda member, rows: _answers(member, kept, rows, decoding), batches)
        for rows, found in zip(batches, written, strict=True):
            for index, answer in zip(rows, found, strict=True):
                answers[index] = answer
    return answers


def _batches(
    order: Sequence[int], prompts: Sequence[list[int]], room: int, tokens_per_batch: int
) -> Iterator[Sequence[int]]:
    """Prompts, the longest first, as many at once as fit with their answers."""
    start = 0
    while start < len(order):
        rows = order[start : start + max(1, tokens_per_batch // (len(prompts[order[start]]) + room))]
        yield rows
        start += len(rows)


def _answers(
    model: LossModel, prompts: Sequence[list[int]], rows: Sequence[int], decoding: Decoding
) -> list[list[int]]:
    """Answers of one batch; a row that has ended is carried along until all have."""
    # One for each prompt, on the CPU: neither batch nor device nor number of processes changes what is drawn.
    # (Hashes of integers are the same in every process; only those of text are salted.)
    draws = [torch.Generator().manual_seed(hash((decoding.seed, row)) & 0x7FFF_FFFF) for row in rows]

    def choose(logits_BV: Tensor, places: Sequence[int]) -> list[int]:
        known_BV = logits_BV[:, : decoding.num_tokens]
        return _choose(known_BV, decoding.temperature, [draws[place] for place in places])

    writer = model.writer([prompts[row] for row in rows], choose, decoding.max_new_tokens)
    answers: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    said: list[int] | None = None
    for _ in range(decoding.max_new_tokens):
        said = writer.next(said)
        for place, token in enumerate(said):
            if not ended[place]:
                ended[place] = token in decoding.end_ids
                if not ended[place]:
                    answers[place].append(token)
                    ended[place] = decoding.is_done(answers[place])
        if all(ended):
            break
    return answers


def _choose(logits_BV: Tensor, temperature: float, draws: Sequence[torch.Generator]) -> list[int]:
    if temperature == 0:
        return [int(token) for token in logits_BV.argmax(1).tolist()]
    shares_BV = (logits_BV / temperature).softmax(1).cpu()
    return [int(torch.multinomial(shares, 1, generator=draw)) for shares, draw in zip(shares_BV, draws, strict=True)]
