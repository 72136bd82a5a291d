"""Settings of the forgetting monitor: the budget, how patient it is, and what it does in which order.

An action is a plug that says what it would do in a situation, or why it cannot: ``monitor.py`` decides when, the
training loop carries it out. Everything here is pure and light.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, PlainSerializer

from deepen.errors import Problem
from deepen.plug import Plug, plug_from
from deepen.settings import Count, Many, Settings, Share, parse_share

Doing = Literal["more_replay", "lower_learning_rate", "strengthen", "rewind", "stop"]
"""What the training loop can be told to do."""


def parse_points(value: Any) -> Any:
    """Read ``"10 points"`` (percentage points) as 0.1; ``"10%"`` and ``0.1`` mean the same."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*points?\s*", value) if isinstance(value, str) else None
    return float(match[1]) / 100 if match else parse_share(value)


def parse_multiple(value: Any) -> Any:
    """Read ``"0.5x"`` as 0.5."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*x\s*", value) if isinstance(value, str) else None
    return float(match[1]) if match else value


Points = Annotated[
    float,
    BeforeValidator(parse_points),
    Field(gt=0, le=1),
    PlainSerializer(lambda value: f"{value * 100:g} points", return_type=str),
]
"""A difference of shares: ``10 points``."""
Multiple = Annotated[
    float, BeforeValidator(parse_multiple), Field(gt=0), PlainSerializer(lambda value: f"{value:g}x", return_type=str)
]
"""A factor: ``0.5x``."""


@dataclass(frozen=True)
class Situation:
    """What an action needs to know."""

    step: int
    domain_share: float
    """Share of domain tokens that is in force."""
    last_good_step: int | None
    """The newest evaluated step at which the kept ability was inside the budget."""


@dataclass(frozen=True)
class Circumstances:
    """What a recipe has, as far as actions depend on it."""

    has_replay: bool
    domain_share: float
    """The smallest that is planned."""
    changeable_order: bool
    """Whether the order of training can be changed while it goes on."""
    penalties: frozenset[str] = frozenset()
    """The retention penalties that training has: ``l2_sp``, ``ewc``, ``kl``."""


class Action(Plug):
    """Base of all actions."""

    times: Annotated[int, Field(ge=1)] = 1
    """How often before the next action of the list is taken."""

    @property
    def action(self) -> Doing:
        """Name of what the training loop is told to do."""
        return cast(Doing, self.use)

    @abstractmethod
    def details(self, situation: Situation) -> dict[str, Any] | str:
        """What is to be done, for the training loop; or, as text, why it cannot be done."""

    def never(self, circumstances: Circumstances) -> str | None:
        """Why the action can never be taken in such a run; None when it may."""
        return None


class MoreReplay(Action):
    """More of the base's own kind of text for the rest of the run."""

    use: Literal["more_replay"] = "more_replay"
    by: Points = 0.1
    """Points that the domain share falls. Ibrahim et al. 2024 (arXiv:2403.08763): 10 points of replay undo 79 to 85 %
    of forgetting."""
    times: Annotated[int, Field(ge=1)] = 3
    """How often at most, what was given back not counted."""
    at_least: Share = 0.3
    """The domain share is not lowered beyond this, or the run would no longer be about the domain. Our choice."""

    def details(self, situation: Situation) -> dict[str, Any] | str:
        """The points, and the domain share that they lead to."""
        if situation.domain_share <= self.at_least:
            return f"the domain share is {situation.domain_share:.0%} already, and {self.at_least:.0%} is the least"
        by = min(self.by, situation.domain_share - self.at_least)
        return {"by": round(by, 6), "domain_share": round(situation.domain_share - by, 6)}

    def never(self, circumstances: Circumstances) -> str | None:
        """Without replay, in Megatron's order, or with a small domain share already."""
        if not circumstances.has_replay:
            return "no source has `role: replay`"
        if not circumstances.changeable_order:
            return "Megatron's order is made as a whole and cannot be changed during the run"
        if circumstances.domain_share <= self.at_least:
            return f"the domain share is {circumstances.domain_share:.0%}, and `at_least` is {self.at_least:.0%}"
        return None


class LowerLearningRate(Action):
    """A smaller learning rate for the rest of the run."""

    use: Literal["lower_learning_rate"] = "lower_learning_rate"
    to: Annotated[Multiple, Field(lt=1)] = 0.5
    """Factor on the schedule from there on. Larger rates trade forgetting for adaptation (Ibrahim et al. 2024)."""
    times: Annotated[int, Field(ge=1)] = 2
    """How often at most."""

    def details(self, situation: Situation) -> dict[str, Any] | str:
        """The factor."""
        return {"to": self.to}


class _Strengthen(Action):
    """A stronger penalty on leaving the base."""

    by: Annotated[Multiple, Field(gt=1)] = 2.0
    """Factor on the strength. Our choice."""
    times: Annotated[int, Field(ge=1)] = 2
    """How often at most."""

    @property
    def action(self) -> Doing:
        """One action for all penalties."""
        return "strengthen"

    def details(self, situation: Situation) -> dict[str, Any] | str:
        """Which penalty, and the factor."""
        return {"penalty": self.use, "by": self.by}

    def never(self, circumstances: Circumstances) -> str | None:
        """Without the penalty there is nothing to strengthen."""
        return None if self.use in circumstances.penalties else f"training has no penalty `{self.use}`"


class StrengthenL2Sp(_Strengthen):
    """A stronger pull of all weights towards their old values."""

    use: Literal["l2_sp"] = "l2_sp"


class StrengthenEwc(_Strengthen):
    """A stronger pull of weights that matter to the base towards their old values."""

    use: Literal["ewc"] = "ewc"


class StrengthenKl(_Strengthen):
    """A stronger pull of the predictions on replay text towards the base's."""

    use: Literal["kl"] = "kl"


class Rewind(Action):
    """Back to the weights of the last checkpoint inside the budget; the batches since then are passed over."""

    use: Literal["rewind"] = "rewind"

    def details(self, situation: Situation) -> dict[str, Any] | str:
        """Only a checkpoint inside the budget will do; the loop finds it."""
        if situation.last_good_step is None:
            return "no evaluated checkpoint is inside the budget"
        return {"good_only": True}


class Stop(Action):
    """End of the training, saved; selection takes the best checkpoint within the budget."""

    use: Literal["stop"] = "stop"

    def details(self, situation: Situation) -> dict[str, Any] | str:
        """Nothing more to say."""
        return {}


ACTIONS: dict[str, type[Action]] = {
    "more_replay": MoreReplay,
    "lower_learning_rate": LowerLearningRate,
    "l2_sp": StrengthenL2Sp,
    "ewc": StrengthenEwc,
    "kl": StrengthenKl,
    "rewind": Rewind,
    "stop": Stop,
}


class HardFloor(Settings):
    """Forgetting so large that nothing is waited for, from the first step on."""

    times_budget: Annotated[float, Field(gt=1)] = 3.0
    """Relative loss of the kept ability as a multiple of the budget. Our choice: above the dip and recovery that
    follow a change of data (the stability gap, Guo et al. 2024, arXiv:2406.14833)."""
    margin: Annotated[float, Field(gt=0)] | None = None
    """Loss of the kept ability in the probe's unit (bits per byte, or share of right answers), in addition to what
    `times_budget` says; None: only that. It never holds inside the budget."""


class Forgetting(Settings):
    """How much of the kept ability may be lost, and what is done about it during training."""

    budget: Share = 0.03
    """Largest allowed relative rise of the kept sources' bits per byte, or drop of the accuracy of a kept probe. 3 % is
    deepen's own default: far above the noise of a few hundred held-out documents, below what users of the model notice
    first. Answers in the literature range from none to much more, so state your own."""
    actions: Many[Annotated[Action, plug_from(ACTIONS)]] = ()
    """What the monitor does when the budget is broken, in this order; empty: it only watches."""
    patience: Annotated[Count, Field(ge=1)] = 2
    """Evaluations in a row over the budget before something is done about a loss that may be chance (a loss that is
    surely over it, by its interval, is acted on at once); and evaluations that an action is given to work. Our
    choice."""
    calm: Share = 0.8
    """Hysteresis: a warning ends when the loss is below this share of the budget. Our choice."""
    grace: Share = 0.1
    """First part of the run, in which only the hard floor acts: domain text makes every model dip at first and recover
    (Guo et al. 2024, arXiv:2406.14833: within the first tenth of the tokens)."""
    hard_floor: HardFloor = HardFloor()
    """What is acted on at any time."""
    relax: Share = 0.5
    """Replay is given back while the loss stays below this share of the budget; 0: never. Our choice."""
    relax_after: Annotated[Count, Field(ge=1)] = 3
    """Evaluations in a row with that much slack, since the last decision, before replay is given back. Our choice."""


def problems(config: Forgetting, circumstances: Circumstances, *, measures_kept: bool) -> Iterator[Problem]:
    """Actions that can never be taken, and a monitor with nothing to watch."""
    path = "evaluate.forgetting"
    if config.actions and not measures_kept:
        message = (
            "nothing measures what is kept during training: no `held_out` over a source with the role `replay` or "
            "`watch`, and no probe with `ability: kept`"
        )
        yield Problem(f"{path}.actions", message, "add one of them, or leave the actions out")
    if config.relax > config.calm:
        message = f"would give replay back at losses at which a warning still holds (calm: {config.calm:g})"
        yield Problem(f"{path}.relax", message, "at most `calm`", f"{config.relax:g}")
    names = [action.use for action in config.actions]
    for index, action in enumerate(config.actions):
        place = f"{path}.actions[{index}]"
        never = action.never(circumstances)
        if never is not None:
            yield Problem(place, f"can never be taken: {never}", "leave it out, or make it possible", action.use)
        if action.use in names[:index]:
            yield Problem(place, "is listed twice", "say `times:` at one of them", action.use)
        if "stop" in names[:index]:
            yield Problem(place, "comes after `stop`, where there is no training any more", "put it first", action.use)
