"""From settings to phases: which length, which share of domain text and which weights hold in which batches.

A phase is a range of batches in which nothing jumps: one length of rows, a domain share that is constant or goes in a
straight line, one set of weights. What depends on the corpus (proportional shares, UniMax) is settled here, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from deepen.errors import SourceError
from deepen.formats.tokens.order import rows_in_batch
from deepen.mix.config import DEFAULT_DOMAIN_SHARE, MixConfig, SharePhase
from deepen.mix.order.build import Phase
from deepen.mix.order.mixture import StoredSupply, Stretch

ROLES = ("domain", "replay")
_REPEATS_WORTH = 15.388
"""R* of ``effective_tokens``."""


@dataclass(frozen=True)
class SourceTokens:
    """A source with all its tokens."""

    name: str
    role: str
    tokens: int


def plan_stretches(
    config: MixConfig, sources: Sequence[SourceTokens], *, num_batches: int, batch_tokens: int
) -> list[Stretch]:
    """The phases of a run of ``num_batches``; raises ``SourceError`` when a role that is asked for has no tokens."""
    amounts = {"total_steps": num_batches, "tokens_per_step": batch_tokens}
    lengths = _ends(config.lengths, amounts)
    shares = _share_lines(config, sources, amounts)
    anneal = config.anneal
    annealed_from = num_batches - anneal.last.in_steps(**amounts) if anneal is not None else num_batches
    # Wherever something may jump a stretch ends; within one, everything is constant or a straight line.
    cuts = {0, annealed_from, num_batches, *(end for end, _ in lengths), *(line[1] for line in shares)}
    stretches = []
    for first, end in pairwise(sorted(cut for cut in cuts if 0 <= cut <= num_batches)):
        length = next(part.length for until, part in lengths if first < until)
        line = next(line for line in shares if first < line[1])
        share = (_at(line, first), _at(line, end))  # of a ramp that is cut, its values at the cuts
        annealed = first >= annealed_from and anneal is not None
        if annealed and anneal is not None and anneal.domain_share is not None and not config.control:
            share = (anneal.domain_share, anneal.domain_share)
        stretches.append(
            Stretch(
                first_batch=first,
                num_batches=end - first,
                sequence_length=length,
                rows_per_batch=rows_in_batch(batch_tokens, length),
                domain_share=share,
                weights={},
            )
        )
    _check_roles(stretches, sources)
    return _with_weights(config, sources, stretches, annealed_from)


def _ends(parts: Sequence[Any], amounts: dict[str, int]) -> list[tuple[int, Any]]:
    """Parts of a curriculum with the batch at which each ends."""
    return [(amounts["total_steps"] if p.until is None else p.until.in_steps(**amounts), p) for p in parts]


def _share_lines(
    config: MixConfig, sources: Sequence[SourceTokens], amounts: dict[str, int]
) -> list[tuple[int, int, float, float]]:
    """The domain share over the run as lines (first batch, end batch, share at the first, share at the end)."""
    given = 0.0 if config.control else config.domain_share
    total = amounts["total_steps"]
    if given is None and config.order == "megatron_one_pass":
        given = "proportional"
    if given is None:
        given = DEFAULT_DOMAIN_SHARE if any(source.role == "replay" for source in sources) else 1.0
    if given == "proportional":
        tokens = sum(source.tokens for source in sources)
        given = sum(source.tokens for source in sources if source.role == "domain") / max(1, tokens)
    if not isinstance(given, tuple):
        return [(0, total, float(given), float(given))]
    lines, first, before = [], 0, 0.0
    for end, part in _ends(given, amounts):
        assert isinstance(part, SharePhase)
        lines.append((first, end, before if part.ramp == "linear" else part.share, part.share))
        first, before = end, part.share
    return lines


def _at(line: tuple[int, int, float, float], batch: int) -> float:
    first, end, begin_share, end_share = line
    return begin_share + (end_share - begin_share) * (batch - first) / max(1, end - first)


def _check_roles(stretches: Sequence[Stretch], sources: Sequence[SourceTokens]) -> None:
    for role in ROLES:
        asked = max(max(s.domain_share) if role == "domain" else 1 - min(s.domain_share) for s in stretches)
        members = [source for source in sources if source.role == role]
        if asked > 0 and not any(source.tokens for source in members):
            listed = ", ".join(f"`{source.name}`" for source in members)
            what = f"{role} sources {listed} hold no tokens" if members else f"no source has the role {role}"
            other = {"domain": "0", "replay": "1"}[role]
            raise SourceError(
                f"mix: {asked:.0%} of the tokens are asked from {role} sources, and {what}",
                hint=f"look at what `curate` dropped, add such a source, or set mix.domain_share: {other}",
            )


def _with_weights(
    config: MixConfig, sources: Sequence[SourceTokens], stretches: Sequence[Stretch], annealed_from: int
) -> list[Stretch]:
    """The stretches with the weights of their sources filled in."""
    weighted = []
    for stretch in stretches:
        asked = config.weights
        if stretch.first_batch >= annealed_from and config.anneal is not None and config.anneal.weights is not None:
            asked = config.anneal.weights
        weights: dict[str, float] = {}
        for role in ROLES:
            # Over the whole run, also where weights are those of one stretch: a source's cap is for all of it.
            budget = sum(s.positions * s.role_share(role) for s in stretches)
            members = [source for source in sources if source.role == role and source.tokens]
            weights |= _weights_within(asked, members, config, budget)
        weighted.append(stretch.model_copy(update={"weights": weights}))
    return weighted


def _weights_within(asked: Any, members: Sequence[SourceTokens], config: MixConfig, budget: float) -> dict[str, float]:
    """Parts of the sources of one role that have tokens."""
    sizes = [source.tokens for source in members]
    if isinstance(asked, Mapping) and any(source.name in asked for source in members):
        parts = [float(asked.get(source.name, 0.0)) for source in members]
    elif asked == "unimax" and budget > 0:
        parts = unimax(sizes, budget, config.max_epochs)
    elif asked in ("equal", "unimax"):
        parts = [1.0] * len(members)
    else:
        parts = [size ** (1 / config.temperature) for size in sizes]  # 1: by size; larger: nearer to equal
    total = sum(parts)
    return {source.name: part / total for source, part in zip(members, parts, strict=True)} if total else {}


def unimax(sizes: Sequence[float], budget: float, max_epochs: float) -> list[float]:
    """Tokens from each source: as equal as possible, none more than ``max_epochs`` times its size.

    Chung et al. 2023 (arXiv:2304.09151): from the smallest source on, each takes an equal part of what is left of the
    budget, or its cap, whichever is less.
    """
    taken = [0.0] * len(sizes)
    left = budget
    for place, index in enumerate(sorted(range(len(sizes)), key=lambda index: sizes[index])):
        # From the smallest on: what a small one cannot give is shared by all that come after it.
        taken[index] = min(left / (len(sizes) - place), max_epochs * sizes[index])
        left -= taken[index]
    return taken


def length_needs(stretches: Sequence[Stretch], source: str, role: str) -> dict[int, float]:
    """Part of a source's documents that each length of rows gets: that of the tokens asked from it."""
    asked: dict[int, float] = {}
    for stretch in stretches:
        tokens = stretch.positions * stretch.share_of(source, role)
        asked[stretch.sequence_length] = asked.get(stretch.sequence_length, 0.0) + tokens
    total = sum(asked.values())
    return {length: tokens / total if total else 1 / len(asked) for length, tokens in asked.items()}


def phases_of(stretches: Sequence[Stretch], supplies: Sequence[StoredSupply]) -> list[Phase]:
    """The stretches as shares of the tree over ``supplies``.

    Raises ``SourceError`` when a role that is asked for has no rows of a length.
    """
    phases = []
    for stretch in stretches:
        below: dict[tuple[str, ...], float] = {}
        for supply in supplies:
            if supply.sequence_length == stretch.sequence_length and supply.rows:
                below[supply.role, supply.source, supply.name] = supply.weight
                below[supply.role, supply.source] = stretch.weights.get(supply.source, 0.0)
        shares = [{**below, ("domain",): share, ("replay",): 1 - share} for share in stretch.domain_share]
        for role in ROLES:
            held = any(path[0] == role and weight > 0 for path, weight in below.items() if len(path) == 2)
            if not held and any(share[role,] > 0 for share in shares):
                raise SourceError(
                    f"mix: no {role} document is left for rows of {stretch.sequence_length:,} tokens",
                    hint="add documents, or use fewer lengths",
                )
        phases.append(Phase(stretch.first_batch, stretch.num_batches, stretch.rows_per_batch, *shares))
    return phases


def effective_tokens(unique_tokens: float, epochs: float) -> float:
    """What ``epochs`` passes over ``unique_tokens`` are worth in new tokens.

    D' = U + U R* (1 - exp(-R / R*)) with R = epochs - 1 repeats and R* = 15.388 (Muennighoff et al. 2023,
    arXiv:2305.16264, equation 5 and their fit). At most one pass is worth itself.
    """
    if epochs <= 1:
        return unique_tokens * epochs
    return unique_tokens * (1 + _REPEATS_WORTH * (1 - math.exp(-(epochs - 1) / _REPEATS_WORTH)))
