"""Rules that choose one checkpoint: each is its settings and one method, ``choose``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from deepen.formats.scores import Candidate
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
            return eligible[-1], argue_choice(candidates, eligible[-1], budget)
        best = min(measured, key=lambda index: (candidates[index].new, candidates[index].step))
        upper = candidates[best].new_upper if candidates[best].new_upper is not None else candidates[best].new
        if upper is None or upper >= 0:
            return None, argue_not_better(candidates, best, budget)
        return best, argue_choice(candidates, best, budget)


RULES: dict[str, type[SelectRule]] = {"best_new_within_budget": BestNewWithinBudget}
