"""Recipe and machine: what is to come out, and where and how fast.

A recipe only composes the settings of the rooms and is fingerprinted; a machine file never changes results beyond
rounding.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field

from deepen.curate.config import CurateConfig
from deepen.engine.config import Engine
from deepen.evaluate.config import EvaluateConfig
from deepen.export.config import ExportConfig
from deepen.ingest.config import IngestConfig
from deepen.mix.config import MixConfig
from deepen.model.config import BaseSetting
from deepen.parallel.config import Compute
from deepen.plug import plug_from
from deepen.select.config import RULES, BestNewWithinBudget, SelectRule
from deepen.settings import Settings
from deepen.tokenize.config import TokenizeConfig
from deepen.train.config import TrainConfig


class Recipe(Settings):
    """What is to come out of a run; everything here enters fingerprints."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run and of its directory under the runs folder."""
    base: BaseSetting
    """The model to continue: a hub id or folder, `{run: runs/earlier}`, or `{init: random, ...}`."""
    seed: Annotated[int, Field(ge=0)] = 17
    """Seed of every random choice: held-out ties, data order, new weights, bootstrap."""
    ingest: IngestConfig
    """Where the documents come from."""
    curate: CurateConfig = CurateConfig()
    """Which documents are worth training on."""
    tokenize: TokenizeConfig = TokenizeConfig()
    """How text becomes tokens."""
    mix: MixConfig = MixConfig()
    """How tokens are packed, mixed and ordered."""
    train: TrainConfig
    """How the model is trained."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured against the untouched base."""
    select: Annotated[SelectRule, plug_from(RULES)] = BestNewWithinBudget()
    """How one checkpoint is chosen."""
    export: ExportConfig = ExportConfig()
    """What is handed over."""


class Price(Settings):
    """What the machine costs; prices age, so they carry a date."""

    per_hour: Annotated[float, Field(ge=0)]
    """Price of the whole machine for one hour."""
    currency: str = "USD"
    """Currency of the price."""
    date: str
    """When the price was looked up, for example `2026-05-01`."""


class Machine(Settings):
    """Where and how fast; changes results by rounding at most and is never fingerprinted."""

    name: str = "this machine"
    """Name shown in reports."""
    compute: Compute = Compute()
    """Device, threads and micro-batch of training and evaluation."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Processes of the data stages; auto is one per core."""
    engine: Engine = Engine()
    """What spreads the work of data stages, if not processes of this machine."""
    price: Price | None = None
    """For `deepen plan`."""

    @property
    def num_workers(self) -> int:
        """The number of processes for data stages."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else self.workers
