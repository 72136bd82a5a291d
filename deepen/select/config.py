"""Rules that choose one checkpoint: each is its settings and one method, ``choose``."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from deepen.formats.training.scores import Candidate
from deepen.plug import Plug


class SelectRule(Plug):
    """Base of all selection rules."""

    @abstractmethod
    def choose(self, candidates: Sequence[Candidate], *, budget: float) -> tuple[int | None, str]:
        """Index of the chosen candidate (None: keep the base) and one paragraph that argues for it with the numbers.

        ``candidates`` come by rising step; ``budget`` is the allowed relative rise of the kept ability.
        """


class BestNewWithinBudget(SelectRule):
    """The largest gain among the checkpoints that surely stay within the forgetting budget.

    A checkpoint is eligible when the upper end of the interval of its kept ability's change is within the budget. Of
    these the one with the lowest change of the new ability is taken, the earlier one on a tie, provided that the gain
    is real: the upper end of its interval lies below zero. Otherwise the base stays. Without any measured new ability
    the last eligible checkpoint is taken, because nothing else tells them apart.
    """

    use: Literal["best_new_within_budget"] = "best_new_within_budget"

    def choose(self, candidates: Sequence[Candidate], *, budget: float) -> tuple[int | None, str]:
        """See ``SelectRule.choose``."""
        from deepen.select.argue import argue_choice, argue_none_eligible, argue_not_better

        eligible = [index for index, candidate in enumerate(candidates) if candidate.eligible]
        if not eligible:
            return None, argue_none_eligible(candidates, budget)
        measured = [index for index in eligible if candidates[index].new is not None]
        if not measured:
            return Last().choose(candidates, budget=budget)
        best = min(measured, key=lambda index: (candidates[index].new, candidates[index].step))
        # A single document gives no interval: then the estimate itself has to be below zero.
        if not _surely_better(candidates[best]):
            return None, argue_not_better(candidates, best, budget)
        return best, argue_choice(candidates, best, budget)


class Composite(SelectRule):
    """The best sum of gain and regression with given weights, among the checkpoints within the budget.

    ``gain`` times the relative gain of the new ability, less ``regression`` times the relative loss of the kept one (an
    improvement of it counts as nothing). A checkpoint whose gain is not real, or whose sum is not above zero, is not
    taken. Without a measured new ability it chooses like ``last``.
    """

    use: Literal["composite"] = "composite"
    gain: float = Field(default=1.0, ge=0)
    """Weight of the gain: 1, our choice."""
    regression: float = Field(default=2.0, ge=0)
    """Weight of the loss: 2, our choice: what worked before is missed more than what is new is welcomed."""

    def choose(self, candidates: Sequence[Candidate], *, budget: float) -> tuple[int | None, str]:
        """See ``SelectRule.choose``."""
        index, reason = _best_by(candidates, self._sum, budget, self._terms)
        if index is not None and candidates[index].new is not None and self._sum(candidates[index]) <= 0:
            best = candidates[index]
            return None, f"The base is kept: by these weights nothing is better. {best.title}: {self._terms(best)}."
        return index, reason

    def _sum(self, candidate: Candidate) -> float:
        return -self.gain * (candidate.new or 0.0) - self.regression * max(0.0, candidate.kept or 0.0)

    def _terms(self, candidate: Candidate) -> str:
        gain, loss = -(candidate.new or 0.0), max(0.0, candidate.kept or 0.0)
        return (
            f"{self.gain:g} x {gain:.2%} gain - {self.regression:g} x {loss:.2%} loss = "
            f"{self._sum(candidate) * 100:+.2f} points, the most of those that qualify"
        )


class ParetoKnee(SelectRule):
    """Where the front bends: the checkpoint on it that lies furthest from the line between its ends.

    Both changes are scaled to the range they have on the front of the checkpoints within the budget whose gain is real
    (Das 1999, "On characterizing the knee of the Pareto curve"). With two checkpoints or fewer on it, the larger gain.
    """

    version: ClassVar[int] = 2  # 1 kept a dominated candidate whose gain was exactly equal

    use: Literal["pareto_knee"] = "pareto_knee"

    def choose(self, candidates: Sequence[Candidate], *, budget: float) -> tuple[int | None, str]:
        """See ``SelectRule.choose``."""
        front = [one for one in candidates if _surely_better(one) and one.new is not None and one.kept is not None]
        front = [
            one for one in front if not any(dominates((other.new, other.kept), (one.new, one.kept)) for other in front)
        ]
        distances = _distances_from_chord([(one.new or 0.0, one.kept or 0.0) for one in front])
        by_title = {one.title: distance for one, distance in zip(front, distances, strict=True)}

        def merit(candidate: Candidate) -> tuple[float, float]:
            return by_title.get(candidate.title, -1.0), -(candidate.new or 0.0)

        def terms(candidate: Candidate) -> str:
            distance = by_title.get(candidate.title, 0.0)
            return (
                f"it lies where the front of {len(front)} bends most, {distance:.2f} of its range off the straight line"
            )

        return _best_by(candidates, merit, budget, terms)


class Last(SelectRule):
    """The last checkpoint that surely stays within the budget, whatever it gained; blends have no place in time."""

    use: Literal["last"] = "last"

    def choose(self, candidates: Sequence[Candidate], *, budget: float) -> tuple[int | None, str]:
        """See ``SelectRule.choose``."""
        from deepen.select.argue import argue_choice, argue_none_eligible

        eligible = [index for index, candidate in enumerate(candidates) if candidate.eligible and not candidate.blend]
        if not eligible:
            return None, argue_none_eligible([one for one in candidates if not one.blend], budget)
        because = "" if candidates[eligible[-1]].new is None else "It is the last one that qualifies."
        return eligible[-1], argue_choice(candidates, eligible[-1], budget, because)


def _surely_better(candidate: Candidate) -> bool:
    """Whether a candidate is within the budget and its gain is real."""
    upper = candidate.new if candidate.new_upper is None else candidate.new_upper
    return candidate.eligible and upper is not None and upper < 0


def dominates(other: tuple[float | None, float | None], one: tuple[float | None, float | None]) -> bool:
    """Whether ``other`` (changes of new and kept ability) is at least as good on both axes and better on one.

    An axis on which either was not measured says nothing.
    """
    known = [(theirs, ours) for theirs, ours in zip(other, one, strict=True) if theirs is not None and ours is not None]
    return all(theirs <= ours for theirs, ours in known) and any(theirs < ours for theirs, ours in known)


def _best_by(
    candidates: Sequence[Candidate],
    merit: Callable[[Candidate], Any],
    budget: float,
    terms: Callable[[Candidate], str],
) -> tuple[int | None, str]:
    """The candidate of the greatest merit among those that are surely better than the base, the earlier on a tie."""
    from deepen.select.argue import argue_choice, argue_none_eligible, argue_not_better

    eligible = [index for index, candidate in enumerate(candidates) if candidate.eligible]
    if not eligible:
        return None, argue_none_eligible(candidates, budget)
    measured = [index for index in eligible if candidates[index].new is not None]
    if not measured:
        return Last().choose(candidates, budget=budget)
    better = [index for index in measured if _surely_better(candidates[index])]
    # Where no gain is real the base stays, and the argument names who came nearest.
    best = max(better or measured, key=lambda index: (merit(candidates[index]), -candidates[index].step))
    if not better:
        return None, argue_not_better(candidates, best, budget)
    return best, argue_choice(candidates, best, budget, terms(candidates[best]).capitalize() + ".")


def _distances_from_chord(points: Sequence[tuple[float, float]]) -> list[float]:
    """Distance of each point below the line between the ends of the front, both axes scaled to their range."""
    if not points:
        return []
    low = [min(point[axis] for point in points) for axis in (0, 1)]
    span = [max(point[axis] for point in points) - low[axis] for axis in (0, 1)]
    if min(span) == 0:
        return [0.0] * len(points)
    # The ends of a scaled front are (0, 1) and (1, 0); the line between them is x + y = 1.
    return [(1 - sum((point[axis] - low[axis]) / span[axis] for axis in (0, 1))) / math.sqrt(2) for point in points]


RULES: dict[str, type[SelectRule]] = {
    "best_new_within_budget": BestNewWithinBudget,
    "composite": Composite,
    "pareto_knee": ParetoKnee,
    "last": Last,
}
