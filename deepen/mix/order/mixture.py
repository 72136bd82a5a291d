"""``mixture.json``: all that an order is made from besides the packed rows, so that a later change can go on from it.

A *supply* is what rows are drawn from as one: a source, or one category and length in it. A *stretch* is a phase of the
run as the settings ask for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from deepen.errors import DamageError, SourceError
from deepen.formats.files.arrays import open_array
from deepen.formats.tokens.order import Segment
from deepen.formats.tokens.packs import tokens_per_row
from deepen.mix.config import MixConfig
from deepen.mix.order.build import Supply
from deepen.settings import Many, Settings

MIXTURE = "mixture.json"


class Stretch(Settings):
    """A range of batches with one length of rows, one set of weights, and a domain share that does not jump."""

    first_batch: int
    num_batches: int
    sequence_length: int
    rows_per_batch: int
    domain_share: tuple[float, float]
    """At its beginning and at its end."""
    weights: dict[str, float]
    """Part of each source in its role's tokens; those of a role add up to 1."""

    @property
    def mean_domain_share(self) -> float:
        """Over the whole stretch."""
        return sum(self.domain_share) / 2

    @property
    def positions(self) -> int:
        """Tokens in all its rows, padding included."""
        return self.num_batches * self.rows_per_batch * self.sequence_length

    def role_share(self, role: str) -> float:
        """Part of all tokens that is asked from ``domain`` or ``replay``, over the whole stretch."""
        return self.mean_domain_share if role == "domain" else 1 - self.mean_domain_share

    def share_of(self, source: str, role: str) -> float:
        """Part of all tokens that is asked from a source, over the whole stretch."""
        return self.role_share(role) * self.weights.get(source, 0.0)


class StoredSupply(Settings):
    """Rows that are drawn as one."""

    name: str
    source: str
    role: str
    sequence_length: int
    category: str | None = None
    weight: float
    """Part of its source's tokens in the stretches of its length."""
    first_row: int
    """Its first row among the rows of its source."""
    rows: int
    tokens: int
    documents: int
    pieces: int
    """Documents, and parts of those that were cut."""


class Mixture(Settings):
    """Contents of ``mixture.json``."""

    seed: int
    max_epochs: float
    order: str
    isolated: bool
    sources: Many[str]
    """Names by index in the order."""
    supplies: Many[StoredSupply]
    phases: Many[Stretch]

    @property
    def roles(self) -> dict[str, str]:
        """Role by source."""
        return {supply.source: supply.role for supply in self.supplies}


def read_mixture(directory: Path) -> Mixture:
    """Read ``mixture.json`` of a mix directory; raises ``DamageError`` when it is missing or unreadable."""
    path = directory / MIXTURE
    try:
        return Mixture.model_validate_json(path.read_bytes(), strict=False)
    except (OSError, ValidationError) as error:
        raise DamageError(f"`{path}` cannot be read: {error}", hint="run `deepen mix` again with --redo") from error


def stored_supplies(config: MixConfig, source: Any, packed: Sequence[dict[str, Any]]) -> list[StoredSupply]:
    """Supplies of one source (name, role) with names and weights, from what packing returned for each of them.

    Raises ``SourceError`` when ``config.balance`` gives weights and leaves out a category.
    """
    lengths = {supply["sequence_length"] for supply in packed}
    supplies = []
    for supply in packed:
        name = source.name
        name += f"/{supply['category']}" if supply["category"] is not None else ""
        name += f"@{supply['sequence_length']}" if len(lengths) > 1 else ""
        share = _asked_weight(config, source.name, supply)
        supplies.append(StoredSupply(name=name, source=source.name, role=source.role, weight=share, **supply))
    # Weights compare supplies of one length, since only these are drawn in one stretch; without rows there is no part.
    totals = {length: sum(s.weight for s in supplies if s.sequence_length == length and s.rows) for length in lengths}
    return [
        supply.model_copy(update={"weight": supply.weight / totals[supply.sequence_length] if supply.rows else 0.0})
        for supply in supplies
    ]


def _asked_weight(config: MixConfig, source: str, supply: dict[str, Any]) -> float:
    """How much of a source's tokens a supply should give, relative to the others of its length."""
    if config.balance is None:
        return float(supply["tokens"])
    if config.balance == "category" or supply["category"] is None:
        return 1.0
    if supply["category"] not in config.balance:
        raise SourceError(
            f"mix.balance: the category `{supply['category']}` of source `{source}` has no weight",
            hint="give every category a weight, or set mix.balance: category",
        )
    return config.balance[supply["category"]]


def open_supplies(directory: Path, mixture: Mixture) -> list[Supply]:
    """The supplies with the tokens of their rows, read from ``packs/`` of a mix directory."""
    supplies = []
    for index, source in enumerate(mixture.sources):
        rows, segments = (open_array(directory / "packs" / f"{source}.{kind}.npy") for kind in ("rows", "segments"))
        tokens = tokens_per_row(rows, segments)
        for stored in mixture.supplies:
            if stored.source == source:
                mine = tokens[stored.first_row : stored.first_row + stored.rows]
                # A row that is not isolated may hold one token more than positions: a label.
                mine = np.minimum(mine, stored.sequence_length)
                supplies.append(
                    Supply(stored.name, source, stored.role, index, mine, stored.sequence_length, stored.first_row)
                )
    return supplies


def segments_of(mixture: Mixture, file: str) -> tuple[Segment, ...]:
    """Where the batches of the phases lie in one order file: a segment for each stretch of rows of one length."""
    segments: list[Segment] = []
    num_rows = 0
    for phase in mixture.phases:
        last = segments[-1] if segments else None
        if last is not None and last.sequence_length == phase.sequence_length:
            segments[-1] = last.model_copy(update={"num_batches": last.num_batches + phase.num_batches})
        else:
            segments.append(
                Segment(
                    file=file,
                    first_batch=phase.first_batch,
                    num_batches=phase.num_batches,
                    sequence_length=phase.sequence_length,
                    rows_per_batch=phase.rows_per_batch,
                    first_row=num_rows,
                    isolated=mixture.isolated,
                )
            )
        num_rows += phase.num_batches * phase.rows_per_batch
    return tuple(segments)
