"""Learning-rate schedules: a warm-up, then what the schedule is named after.

A schedule is resolved once, when a run starts, into a ``Shape`` in optimizer steps; the shape is written to disk, so
that neither a resume nor a longer continuation can move the warm-up. Steps count from 0.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from deepen.plug import Plug
from deepen.settings import Amount, AmountSetting


def parse_factor(value: Any) -> Any:
    """Read ``"0.1x"`` as the number 0.1."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*x\s*", value) if isinstance(value, str) else None
    return float(match[1]) if match else value


Factor = Annotated[float, BeforeValidator(parse_factor), Field(ge=0, le=1)]
"""A share of the peak learning rate: ``0.1x``."""
Multiple = Annotated[float, BeforeValidator(parse_factor), Field(gt=0)]
"""A multiple of a learning rate: ``5x``."""


@dataclass(frozen=True)
class Shape:
    """A schedule in optimizer steps."""

    total_steps: int
    warmup_steps: int
    decay_steps: int
    """Steps at the end over which the rate falls."""
    cooldown_steps: int = 0
    """Steps after the warm-up in which ``infinite`` goes down to its constant rate."""

    @property
    def decay_start(self) -> int:
        """The first step of the decay."""
        return self.total_steps - self.decay_steps


class Schedule(Plug):
    """A schedule: ``shape`` resolves it for a run, ``multiplier`` gives the rate of a step relative to the peak."""

    extendable: ClassVar[bool] = False
    """Whether a finished run may go on from where the decay began as if it had been longer from the start."""

    warmup: AmountSetting = Amount(0.01, "share")
    """Linear rise from 0 to the peak: 1 % of the run. Ibrahim et al. (arXiv 2403.08763) found no lasting difference
    between 0, 0.5, 1 and 2 %; none at all gives a transient spike."""

    def shape(self, *, total_steps: int, tokens_per_step: int) -> Shape:
        """The schedule in steps for a run of ``total_steps``."""
        warmup_steps = self.warmup.in_steps(total_steps=total_steps, tokens_per_step=tokens_per_step)
        return Shape(total_steps, warmup_steps, total_steps - min(warmup_steps, total_steps))

    @abstractmethod
    def multiplier(self, step: int, shape: Shape) -> float:
        """Learning rate of ``step`` (from 0) as a multiple of the peak."""

    def problems(self, *, total_steps: int, tokens_per_step: int) -> list[str]:
        """What cannot work for a run of ``total_steps``, in words."""
        if self.warmup.unit == "seconds":
            return ["a warm-up is an amount of steps, tokens or a share, not of time"]
        steps = self.warmup.in_steps(total_steps=total_steps, tokens_per_step=tokens_per_step)
        return [f"a warm-up of {steps} steps leaves nothing of a run of {total_steps}"] if steps >= total_steps else []


class Cosine(Schedule):
    """Warm-up, then half a cosine down to the floor, which the last step has (Ibrahim et al., arXiv 2403.08763).

    For step t from 1 to T and a warm-up of W steps: t / W, then floor + (1 - floor)(1 + cos(pi (t - W) / (T - W))) / 2.
    Its end is part of its form, so a finished run cannot be extended.
    """

    use: Literal["cosine"] = "cosine"
    floor: Factor = 0.1
    """Rate at the end: 0.1 of the peak, as in arXiv 2403.08763 and Llama 2 (2307.09288)."""

    def multiplier(self, step: int, shape: Shape) -> float:
        """See the class."""
        done = step + 1
        if done <= shape.warmup_steps:
            return done / shape.warmup_steps
        progress = (done - shape.warmup_steps) / (shape.total_steps - shape.warmup_steps)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


class Linear(Schedule):
    """Warm-up, then a straight line down to the floor (to zero: Bergsma et al., arXiv 2502.15938).

    For step t from 1 to T and a warm-up of W steps: t / W, then floor + (1 - floor)(1 - (t - 1 - W) / (T - W)), which
    would reach the floor one step after the last. Its end is part of its form, so a finished run cannot be extended.
    """

    use: Literal["linear"] = "linear"
    floor: Factor = 0.0
    """Rate that the line aims at: 0, as in arXiv 2502.15938."""

    def multiplier(self, step: int, shape: Shape) -> float:
        """See the class."""
        if step + 1 <= shape.warmup_steps:
            return (step + 1) / shape.warmup_steps
        progress = (step - shape.warmup_steps) / (shape.total_steps - shape.warmup_steps)
        return self.floor + (1 - self.floor) * (1 - progress)


class Constant(Schedule):
    """Warm-up, then the peak to the end. Such a run can always be made longer; `deepen branch` anneals off it."""

    extendable: ClassVar[bool] = True

    use: Literal["constant"] = "constant"

    def shape(self, *, total_steps: int, tokens_per_step: int) -> Shape:
        """The schedule in steps; none decays."""
        warmup_steps = self.warmup.in_steps(total_steps=total_steps, tokens_per_step=tokens_per_step)
        return Shape(total_steps, warmup_steps, 0)

    def multiplier(self, step: int, shape: Shape) -> float:
        """See the class."""
        return (step + 1) / shape.warmup_steps if step + 1 <= shape.warmup_steps else 1.0


class WarmupStableDecay(Schedule):
    """Warm-up, a constant stretch that can be made longer later, and a short decay (MiniCPM, arXiv 2404.06395).

    In the last D of T steps, at step n (from 0): floor + (1 - floor) f(x), x = (n - (T - D)) / D, and f is 1 - sqrt(x)
    (Hägele et al., arXiv 2405.18392) or 1 - x.
    """

    extendable: ClassVar[bool] = True

    use: Literal["wsd"] = "wsd"
    decay: AmountSetting = Amount(0.1, "share")
    """Length of the decay: 10 % of the run; 2.5 % is too short (arXiv 2404.06395), gains level off at 20 %
    (arXiv 2405.18392)."""
    decay_form: Literal["1-sqrt", "linear"] = "1-sqrt"
    """Form of the decay; the two end within 0.1 points of each other (arXiv 2405.18392)."""
    floor: Factor = 0.0
    """Rate that the decay aims at, reached one step after the last: 0, as in arXiv 2405.18392."""

    def shape(self, *, total_steps: int, tokens_per_step: int) -> Shape:
        """The schedule in steps; at least one step decays."""
        decay_steps = self.decay.in_steps(total_steps=total_steps, tokens_per_step=tokens_per_step)
        warmup_steps = self.warmup.in_steps(total_steps=total_steps, tokens_per_step=tokens_per_step)
        return Shape(total_steps, warmup_steps, max(1, decay_steps))

    def multiplier(self, step: int, shape: Shape) -> float:
        """See the class."""
        if step + 1 <= shape.warmup_steps:
            return (step + 1) / shape.warmup_steps
        if step < shape.decay_start:
            return 1.0
        progress = (step - shape.decay_start) / shape.decay_steps
        remaining = 1 - math.sqrt(progress) if self.decay_form == "1-sqrt" else 1 - progress
        return self.floor + (1 - self.floor) * remaining

    def problems(self, *, total_steps: int, tokens_per_step: int) -> list[str]:
        """Also a decay that collides with the warm-up."""
        found = super().problems(total_steps=total_steps, tokens_per_step=tokens_per_step)
        return found or _parts_problems(self, {"decay": self.decay}, total_steps, tokens_per_step)


class Infinite(Schedule):
    """Warm-up, a cosine down to a constant rate, that rate for as long as wanted, and an anneal (arXiv 2403.08763).

    After a warm-up of W steps, C steps of cosine from the peak to ``constant``; in the last D of T steps, at step n
    (from 0): constant (floor / constant)^x, x = (n - (T - D)) / D. The published runs anneal exponentially, so the
    floor is above 0; it is reached one step after the last.
    """

    extendable: ClassVar[bool] = True

    use: Literal["infinite"] = "infinite"
    cooldown: AmountSetting = Amount(0.6, "share")
    """Length of the way down: 60 % of the run, as in arXiv 2403.08763."""
    constant: Factor = Field(default=0.55, gt=0)
    """Rate of the constant stretch: 0.55 of the peak (1.65e-4 of 3e-4 in arXiv 2403.08763)."""
    decay: AmountSetting = Amount(0.1, "share")
    """Length of the anneal: 10 % of the run, for the reasons given at ``wsd``."""
    floor: Factor = Field(default=0.1, gt=0)
    """Rate that the anneal aims at: 0.1 of the peak, as in arXiv 2403.08763."""

    def shape(self, *, total_steps: int, tokens_per_step: int) -> Shape:
        """The schedule in steps; at least one step anneals."""
        warmup, cooldown, decay = (
            amount.in_steps(total_steps=total_steps, tokens_per_step=tokens_per_step)
            for amount in (self.warmup, self.cooldown, self.decay)
        )
        return Shape(total_steps, warmup, max(1, decay), cooldown)

    def multiplier(self, step: int, shape: Shape) -> float:
        """See the class."""
        done = step + 1
        if done <= shape.warmup_steps:
            return done / shape.warmup_steps
        if step >= shape.decay_start:
            progress = (step - shape.decay_start) / shape.decay_steps
            return float(self.constant * (self.floor / self.constant) ** progress)
        if done > shape.warmup_steps + shape.cooldown_steps:
            return self.constant
        progress = (done - shape.warmup_steps) / shape.cooldown_steps
        return self.constant + (1 - self.constant) * (1 + math.cos(math.pi * progress)) / 2

    def problems(self, *, total_steps: int, tokens_per_step: int) -> list[str]:
        """Also parts that collide, and a floor above the constant rate."""
        found = super().problems(total_steps=total_steps, tokens_per_step=tokens_per_step)
        if self.floor > self.constant:
            found.append(f"the floor ({self.floor:g}x) is above the constant rate ({self.constant:g}x)")
        parts = {"cooldown": self.cooldown, "decay": self.decay}
        return found or _parts_problems(self, parts, total_steps, tokens_per_step)


def _parts_problems(schedule: Schedule, parts: dict[str, Amount], total_steps: int, tokens_per_step: int) -> list[str]:
    """Why the parts of a schedule (besides its warm-up) do not fit into a run of ``total_steps``."""
    timed = [name for name, amount in parts.items() if amount.unit == "seconds"]
    if timed:
        return [f"a {name} is an amount of steps, tokens or a share, not of time" for name in timed]
    shape = schedule.shape(total_steps=total_steps, tokens_per_step=tokens_per_step)
    lengths = {"warm-up": shape.warmup_steps, "cooldown": shape.cooldown_steps, "decay": shape.decay_steps}
    if sum(lengths.values()) <= total_steps:
        return []
    listed = ", ".join(f"{steps} steps of {name}" for name, steps in lengths.items() if steps)
    return [f"{listed} do not fit into {total_steps}"]


SCHEDULES: dict[str, type[Plug]] = {
    "cosine": Cosine,
    "linear": Linear,
    "constant": Constant,
    "wsd": WarmupStableDecay,
    "infinite": Infinite,
}
