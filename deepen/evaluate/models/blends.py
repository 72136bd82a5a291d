"""Candidates between candidates: averages of the last checkpoints, and the last checkpoint mixed with the base.

Averaging costs no training and may stand in for a decay (arXiv 2505.12082 found averages of constant-rate checkpoints
near annealed ones); interpolation with the base gives gain back for less forgetting (WiSE-FT, arXiv 2109.01903). Each
costs a full evaluation. Since several are tried, the choice is made on one half of documents and items and reported on
the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from deepen.errors import Problem
from deepen.formats.training.scores import BlendPart
from deepen.settings import Settings

CHOOSING, REPORTING = 0, 1
"""The halves: one to choose on, one to report on."""


class Blends(Settings):
    """Weighted sums of weights that are scored beside the checkpoints."""

    average: Annotated[int, Field(ge=0)] = 0
    """Mean of the last so many kept checkpoints; 0: none. Averages do not reach a real decay (arXiv 2405.18392)."""
    interpolate: Annotated[int, Field(ge=0, le=101)] = 0
    """Points between the base and the last checkpoint, both ends counted: 11 gives shares of 0, 10, ..., 100 %; 0:
    none. The ends are the base and the checkpoint themselves and are not scored twice."""

    @property
    def any(self) -> bool:
        """Whether there is anything to make."""
        return self.average > 1 or self.interpolate > 2


def problems(config: Blends) -> Iterator[Problem]:
    """Numbers that make nothing."""
    path = "evaluate.blends"
    if config.average == 1:
        yield Problem(f"{path}.average", "one checkpoint has no average", "2 or more, or 0 for none", "1")
    if config.interpolate in (1, 2):
        message = "both ends count, and they are the base and a checkpoint: there is nothing between"
        yield Problem(f"{path}.interpolate", message, "3 or more (11 is usual), or 0 for none", str(config.interpolate))


def too_few(config: Blends, num_steps: int) -> str | None:
    """What to tell of a run that kept fewer checkpoints than an average was asked for."""
    if config.average <= max(num_steps, 1):
        return None
    became = f"the average is one of {num_steps}" if num_steps > 1 else "there is no average"
    return f"`evaluate.blends.average` asks for {config.average} kept checkpoints, there are {num_steps}: {became}"


def planned(config: Blends, steps: Sequence[int]) -> Iterator[tuple[str, tuple[BlendPart, ...]]]:
    """Names (for files) and parts of the blends of a run whose kept checkpoints are at ``steps``, rising."""
    last = steps[-config.average :] if config.average > 1 else []
    if len(last) > 1:
        yield f"average-of-{len(last)}", tuple(BlendPart(step=step, weight=1 / len(last)) for step in last)
    for point in range(1, config.interpolate - 1) if steps else ():
        share = round(point / (config.interpolate - 1), 6)
        parts = (BlendPart(step=steps[-1], weight=share), BlendPart(step=None, weight=round(1 - share, 6)))
        yield f"interpolation-{share:.3f}", parts


def half_of(table: pa.Table, half: int) -> pa.Table:
    """The rows of a probe's table that belong to a half, by a hash of the document or the passage that items share."""
    column = "cluster" if "cluster" in table.column_names else "id"
    keys = table[column].to_pylist()
    chosen = np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) & 1 == half for key in keys), bool, len(keys))
    return table.filter(pa.array(chosen))
