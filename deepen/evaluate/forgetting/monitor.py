"""The forgetting monitor: from all scores and all decisions so far to what is to be done now.

A pure function, so that a resumed run decides as the undisturbed one, and so that every property can be tested without
a model. It keeps no state of its own: how often an action was taken and how long ago is read from the decisions, the
level of alarm is folded over the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from deepen.evaluate.forgetting.config import Action, Forgetting, Situation
from deepen.formats.training.decisions import Decision
from deepen.formats.training.scores import CheckpointScores, worst_loss

State = Literal["ok", "warning", "breach", "unknown"]

BY: Final = "forgetting"
_TEXT: Final = "held_out"


@dataclass(frozen=True)
class Plan:
    """What the recipe has planned."""

    total_steps: int
    domain_shares: tuple[tuple[int, float], ...]
    """The share of domain tokens from (finished) step on, by rising step; the first is step 0."""

    def domain_share(self, step: int) -> float:
        """The share that is planned after ``step`` finished steps."""
        return next(share for first, share in reversed(self.domain_shares) if first <= step)


@dataclass(frozen=True)
class Reading:
    """What one evaluation says about the kept ability."""

    step: int
    """The model that was scored."""
    loss: float | None
    """Relative loss of the worst kept score: rise of bits per byte, drop of accuracy; None when nothing was scored."""
    surely: float | None
    """The largest end that is nearer to the base of the scores' intervals."""
    in_units: float | None
    """The largest loss in a probe's unit."""
    state: State
    probe: str
    """Of which probe the loss is."""
    known: int
    """The step that training had reached when it came to know this: later, where another process scored."""


def readings(history: Sequence[CheckpointScores], settings: Forgetting) -> list[Reading]:
    """The reading of every evaluation, with states by hysteresis, from the first on."""
    found: list[Reading] = []
    state: State = "ok"
    for scores in history:
        worst = worst_loss(scores.scores)
        # What was not measured neither raises an alarm nor ends one.
        if worst is None:
            found.append(Reading(scores.step, None, None, None, "unknown", "", scores.known))
            continue
        state = _state(worst.relative, worst.surely, state, settings)
        found.append(
            Reading(scores.step, worst.relative, worst.surely, worst.in_units, state, worst.probe, scores.known)
        )
    return found


def _state(loss: float, surely: float, before: State, settings: Forgetting) -> State:
    if loss > settings.budget:
        # Over the budget a breach remains one when its interval comes to touch the budget: no going back and forth.
        return "breach" if surely > settings.budget or before == "breach" else "warning"
    # An alarm that was raised ends only below `calm` of the budget.
    if before != "ok" and loss > settings.calm * settings.budget:
        return "warning"
    return "ok"


def decide(
    history: Sequence[CheckpointScores], decisions: Sequence[Decision], settings: Forgetting, plan: Plan
) -> list[Decision]:
    """What is to be done after the last evaluation of ``history``: nothing, or at most one action.

    Actions that cannot be taken come before it, marked with the reason. An action of this list that the loop finds
    impossible is recorded as skipped; called again, this function then names the next one. Nothing is decided twice
    for the same step, nor on a model of before the last decision, which says nothing about what that did.
    """
    found = readings(history, settings)
    if not found or not settings.actions or found[-1].loss is None:
        return []
    mine = [one for one in decisions if one.by == BY]
    applied = [one for one in mine if one.cannot is None]
    if applied and applied[-1].step >= found[-1].step:
        return []
    reason = why_act(found, applied[-1].step if applied else None, settings, plan)
    if reason is not None:
        return list(_next_action(found, decisions, settings, plan, reason))
    return _relaxed(found, decisions, settings, plan)


def why_act(found: Sequence[Reading], last_decision: int | None, settings: Forgetting, plan: Plan) -> str | None:
    """Why something is to be done after the last reading; None when nothing is.

    Inside the budget never. Over it: at once when the hard floor is broken; after the grace at once when it is surely
    over, else after ``patience`` readings in a row. After a decision, not before ``patience`` further readings (the
    hard floor: while the loss still grows, at the next), and not while the loss falls fast enough to be inside the
    budget after as many again.
    """
    known = [one for one in found if one.loss is not None]
    now = known[-1]
    assert now.loss is not None, "the last reading is known"
    if now.loss <= settings.budget:
        return None
    # From here on the loss is over the budget.
    hard = _hard(now, settings)
    since = [one for one in known if last_decision is None or one.step > last_decision]
    if last_decision is not None and len(since) < settings.patience and not (hard and _growth(known) > 0):
        return None
    if hard:
        return f"{_said(now)}, beyond the hard floor (budget {settings.budget:.2%})"
    after_grace = [one for one in since if one.step >= settings.grace * plan.total_steps]
    if not after_grace:
        return None
    # It falls: if it goes on so, it is inside by the time that a further action would show.
    if last_decision is not None and now.loss + settings.patience * min(0.0, _growth(known)) <= settings.budget:
        return None
    if now.state == "breach":
        return f"{_said(now)}, surely over the budget of {settings.budget:.2%}"
    over = _run_length(after_grace, lambda one: one.loss > settings.budget)
    if over < settings.patience:
        return None
    return f"{_said(now)}, over the budget of {settings.budget:.2%} ({over} in a row)"


def _said(reading: Reading) -> str:
    """The loss, and whose it is where it is not that of kept text."""
    whose = "" if reading.probe == _TEXT else f" in `{reading.probe}`"
    return f"the loss of the kept ability{whose} is {reading.loss:.2%}"


def _hard(reading: Reading, settings: Forgetting) -> bool:
    floor = settings.hard_floor
    assert reading.loss is not None and reading.in_units is not None, "only known readings are judged"
    return reading.loss > floor.times_budget * settings.budget or (
        floor.margin is not None and reading.in_units > floor.margin
    )


def _growth(known: Sequence[Reading]) -> float:
    """How much more was lost than at the reading before."""
    if len(known) < 2:
        return 0.0
    now, before = known[-1].loss, known[-2].loss
    assert now is not None and before is not None, "only known readings are compared"
    return now - before


def _run_length(found: Sequence[Reading], holds: Any) -> int:
    """Readings in a row, counted from the last, for which ``holds``."""
    count = 0
    for one in reversed(found):
        if not holds(one):
            break
        count += 1
    return count


def _next_action(
    found: Sequence[Reading], decisions: Sequence[Decision], settings: Forgetting, plan: Plan, reason: str
) -> Iterator[Decision]:
    """The first action in order that is not used up and can be taken, after those that cannot: those are told with the
    reason, and tried again at a later step."""
    step = found[-1].known
    good = [one.step for one in found if one.loss is not None and one.loss <= settings.budget]
    situation = Situation(step, share_in_force(step, decisions, plan), good[-1] if good else None)
    for action in settings.actions:
        mine = _of_action(action, decisions)
        last = mine[-1] if mine else None
        # Asked again at one step, it names the next action: this one has just turned out to be impossible.
        if uses_left(action, decisions) <= 0 or (last is not None and last.cannot and last.step == step):
            continue
        details = action.details(situation)
        if not isinstance(details, str):
            yield _decision(step, action, reason, details)
            return
        if last is None or last.cannot != details:  # once is enough
            yield _decision(step, action, reason, _which(action), cannot=details)


def _decision(step: int, action: Action, reason: str, details: dict[str, Any], cannot: str | None = None) -> Decision:
    wanted = {"step": step, "action": action.action, "by": BY, "reason": reason, "details": details, "cannot": cannot}
    return Decision.model_validate(wanted)


def _which(action: Action) -> dict[str, Any]:
    """What tells apart actions that have one name for the loop."""
    return {"penalty": action.use} if action.action == "strengthen" else {}


def _of_action(action: Action, decisions: Sequence[Decision]) -> list[Decision]:
    """The monitor's decisions about one action, also those that could not be carried out."""
    return [
        one
        for one in decisions
        if one.by == BY
        and one.action == action.action
        and all(one.details.get(key) == value for key, value in _which(action).items())
    ]


def uses_left(action: Action, decisions: Sequence[Decision]) -> int:
    """How often the action may still be taken. What could not be done at one step counts as no use: a rewind without
    a good checkpoint may find one later."""
    done = [one for one in _of_action(action, decisions) if one.cannot is None]
    # Replay that was given back may be raised once more.
    return action.times - sum(-1 if _gives_back(one) else 1 for one in done)


def _gives_back(decision: Decision) -> bool:
    return decision.action == "more_replay" and decision.details["by"] < 0


def share_in_force(step: int, decisions: Sequence[Decision], plan: Plan) -> float:
    """The share of domain tokens: of the newest decision about it, else as planned."""
    shares = [one.details["domain_share"] for one in decisions if "domain_share" in one.details and not one.cannot]
    return float(shares[-1]) if shares else plan.domain_share(step)


def _relaxed(
    found: Sequence[Reading], decisions: Sequence[Decision], settings: Forgetting, plan: Plan
) -> list[Decision]:
    """Replay given back when there was slack for long enough, and enough of the run is left to correct it."""
    applied = [one for one in decisions if one.by == BY and one.cannot is None]
    give = next((action for action in settings.actions if action.use == "more_replay"), None)
    if give is None or not applied or settings.relax == 0:
        return []
    now = found[-1]
    since = [one for one in found if one.step > applied[-1].step]
    calm = _run_length(since, lambda one: one.loss is not None and one.loss <= settings.relax * settings.budget)
    # Evaluations to come, at the pace so far: what is given back must be able to be taken again.
    left = (plan.total_steps - now.known) * len(found) / now.step
    share, planned = share_in_force(now.known, decisions, plan), plan.domain_share(now.known)
    if calm < settings.relax_after or left < 2 * settings.patience or share >= planned:
        return []
    by = min(planned - share, getattr(give, "by", 0.0))
    reason = (
        f"the loss of the kept ability is {now.loss:.2%}, below {settings.relax:.0%} of the budget ({calm} in a row)"
    )
    back = {"by": round(-by, 6), "domain_share": round(share + by, 6)}
    return [_decision(now.known, give, reason, back)]
