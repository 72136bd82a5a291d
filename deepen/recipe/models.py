"""Recipe and machine: what is to come out, and where and how fast.

A recipe only composes the settings of the rooms and is fingerprinted; a machine file never changes results beyond
rounding.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from deepen.curate.config import CurateConfig
from deepen.engine.config import Engine
from deepen.evaluate.config import EvaluateConfig
from deepen.export.config import ExportConfig
from deepen.ingest.config import IngestConfig
from deepen.mix.config import MixConfig
from deepen.model.config import BaseSetting
from deepen.parallel.config import Compute, Launch, Mesh
from deepen.plug import plug_from
from deepen.select.config import RULES, BestNewWithinBudget, SelectRule
from deepen.settings import Amount, AmountSetting, Many, Settings
from deepen.tokenize.config import TokenizeConfig
from deepen.train.beside.tracking import TRACKERS, Tracker
from deepen.train.beside.watchdog import Watchdog
from deepen.train.config import TrainConfig


def _is_time(amount: Amount | None) -> Amount | None:
    if amount is not None and amount.unit != "seconds":
        raise ValueError("expected a time such as `10h` or `90min`")
    return amount


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


class Limit(Settings):
    """Where training stops, saved, so that the same command can go on under a higher limit."""

    time: Annotated[AmountSetting | None, AfterValidator(_is_time)] = None
    """Training time in all starts of a run together: `10h`, `90min`."""
    money: Annotated[float, Field(gt=0)] | None = None
    """Cost of that time in the currency of `price`."""


class Machine(Settings):
    """Where and how fast; changes results by rounding at most and is never fingerprinted."""

    name: str = "this machine"
    """Name shown in reports."""
    compute: Compute = Compute()
    """Device, threads and micro-batch of training and evaluation."""
    mesh: Mesh = Mesh()
    """How several processes share the work of training."""
    launch: Launch = Launch()
    """How these processes are started, and started again when one dies."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Processes of the data stages; auto is one per core."""
    engine: Engine = Engine()
    """What spreads the work of data stages, if not processes of this machine."""
    price: Price | None = None
    """For `deepen plan` and `limit.money`."""
    limit: Limit = Limit()
    """Time or money after which training stops."""
    watchdog: Watchdog | None = Watchdog()
    """What notices a step of training that does not end; null: nothing does."""
    tracking: Many[Annotated[Tracker, plug_from(TRACKERS)]] = ()
    """Where metrics go besides `metrics.jsonl`: `tensorboard`, `wandb`, `mlflow`. A tracker that fails is left out."""

    @property
    def num_workers(self) -> int:
        """The number of processes for data stages."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else self.workers

    @property
    def stop_after_seconds(self) -> float | None:
        """Training time after which it stops; None without a limit."""
        seconds = [] if self.limit.time is None else [self.limit.time.value]
        if self.limit.money is not None and self.price is not None and self.price.per_hour > 0:
            seconds.append(self.limit.money / self.price.per_hour * 3600)
        return min(seconds, default=None)

    @model_validator(mode="after")
    def _money_needs_a_price(self) -> Machine:
        if self.limit.money is not None and self.price is None:
            raise ValueError("`limit.money` needs `price: {per_hour: ..., date: ...}`")
        return self
