"""Penalties on leaving the base: settings, and what they cannot go with. No torch.

Each adds a term to the objective, never to a reported loss. None is on by default: replay (``mix.domain_share``) costs
nothing but tokens and is the better studied answer to forgetting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import Field

from deepen.errors import Problem
from deepen.settings import Settings


class L2SP(Settings):
    """``strength / 2 * |theta - theta0|^2``: every trained weight is pulled to where it began (Li et al., arXiv
    1802.01483, who use it in place of weight decay). Keeps one more copy of the trained weights."""

    strength: float = Field(gt=0)
    """Of the pull. 1e-3 to 1 is a range to search (our choice); there is no value that fits every model."""


class Ewc(Settings):
    """``strength / 2 * sum F (theta - theta0)^2``: the same pull, harder on weights that matter to the base (elastic
    weight consolidation, Kirkpatrick et al., arXiv 1612.00796; in continued pretraining arXiv 2505.05946).

    F is the diagonal of the empirical Fisher information of the base: the mean over replay rows of the square of each
    row's gradient, per token, with labels from the data and not drawn from the model. Keeps two more numbers for each
    trained weight.
    """

    strength: float = Field(gt=0)
    """Of the pull: 1 holds a nat per token of replay text, as F estimates it, against a nat per token of the batch.
    Swept over 1 to 1e4 in practice."""
    sequences: int = Field(default=1024, ge=1)
    """Replay rows that F is measured on, one backward pass each, before the first step. 1,000 to 10,000 is usual; our
    choice is the low end."""
    clip_percentile: float = Field(default=99.9, gt=0, le=100)
    """Values of F above this percentile of those that are not zero are lowered to it, or few weights would have nearly
    all of the pull. Our choice."""


class Kl(Settings):
    """``strength * KL(p_base || p_theta)`` for each token of replay rows: predictions on the base's own kind of text
    are held where they were (learning without forgetting, Li and Hoiem, arXiv 1606.09282, for language models). Domain
    rows are left alone. Keeps a second copy of the base, and runs it forward on replay rows."""

    strength: float = Field(gt=0)
    """Nats of the objective for a nat of divergence; each token counts as in the loss. 0.1 to 1 to begin with (our
    choice)."""


class Retention(Settings):
    """What holds the model near its base, besides replay. Any of them, or all."""

    l2_sp: L2SP | None = None
    """All weights alike."""
    ewc: Ewc | None = None
    """Weights by how much they matter to the base."""
    kl: Kl | None = None
    """Predictions on replay text."""

    @property
    def strengths(self) -> dict[str, float]:
        """Strength of each penalty that is on."""
        penalties = {"l2_sp": self.l2_sp, "ewc": self.ewc, "kl": self.kl}
        return {name: penalty.strength for name, penalty in penalties.items() if penalty is not None}

    @property
    def anchors(self) -> bool:
        """Whether weights are compared with those that the run began with."""
        return self.l2_sp is not None or self.ewc is not None


@dataclass(frozen=True)
class Surroundings:
    """What of a recipe decides whether a penalty makes sense."""

    adapters: bool
    """Adapters are trained, not the base's own weights."""
    random_base: bool
    grows: bool
    """The vocabulary is to grow."""
    has_replay: bool | None
    """None: not known."""


def problems(retention: Retention, around: Surroundings) -> Iterator[Problem]:
    """Penalties that cannot do what they are for."""
    for name, strength in retention.strengths.items():
        reason = _why_not(name, around)
        if reason is not None:
            yield Problem(f"train.retention.{name}", *reason, f"{strength:g}")


def _why_not(name: str, around: Surroundings) -> tuple[str, str] | None:
    """Message and remedy."""
    if around.random_base:
        return "a random network knows nothing that could be kept", "leave it out"
    if around.adapters and name != "kl":
        message = "the base's weights are frozen beside adapters, and these begin at zero: there is nothing to hold"
        return message, "leave it out (`train.weight_decay` pulls adapters to the base), or use `kl`"
    if name != "l2_sp" and around.has_replay is False:
        return "it is measured on replay rows, and no source has `role: replay`", "add one, or use `l2_sp`"
    if name == "kl" and around.grows:
        message = "replay text is written with the new tokens, too, which the base cannot read"
        return message, "use `ewc` or `l2_sp`, which leave the new rows alone, or keep the vocabulary"
    return None
