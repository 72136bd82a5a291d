"""How a score is told to people: shares of items in points, everything else in percent of the base's value.

Accuracies of 0.19 and 0.26 differ by 7 points. To call that "+37 %" would make chance on a few items look like a gain.
"""

from __future__ import annotations

from deepen.formats.training.scores import Score


def in_points(score: Score) -> bool:
    """Whether changes of a score are told in points: it is a share of items, or has no change relative to the base."""
    return score.unit != "bits per byte" and (not score.relative or score.points is not None or _is_share(score))


def said_change(score: Score, *, digits: int = 2) -> str:
    """The change as a person reads it: ``+7.00 points``, or ``-3.10%`` of the base's bits per byte."""
    return said_number(_shown(score)[0], in_points(score), digits) + (" points" if in_points(score) else "")


def said_interval(score: Score, missing: str = "not computed", *, digits: int = 2) -> str:
    """The 95 % interval of ``said_change``, in the same unit."""
    ends = _shown(score)[1]
    if ends is None:
        return missing
    return " to ".join(said_number(end, in_points(score), digits) for end in ends)


def said(score: Score, *, digits: int = 2) -> str:
    """The change with its interval, where there is one."""
    ends = said_interval(score, "", digits=digits)
    return said_change(score, digits=digits) + (f" ({ends})" if ends else "")


def said_detectable(score: Score, missing: str = "") -> str:
    """The smallest change that these items would show."""
    found = _shown(score)[2]
    if found is None:
        return missing
    return said_number(found, in_points(score), 2).lstrip("+") + (" points" if in_points(score) else "")


def said_chance(score: Score) -> str:
    """What guessing would get, and who is no better than that; empty where it is not known."""
    if score.chance is None:
        return ""
    who = {(True, True): ", base and model are at chance", (True, False): ", the base is at chance"}
    who[False, True] = ", the model is at chance"
    return f"guessing gets {score.chance:.4f}{who.get((score.base_at_chance, score.at_chance), '')}"


def said_number(change: float, points: bool, digits: int) -> str:
    """A change of either kind with its sign, the word for the unit aside."""
    return f"{100 * change:+.{digits}f}" if points else f"{change:+.{digits}%}"


def points_interval(score: Score) -> tuple[float, float] | None:
    """The 95 % interval of a score that is told in points, as a share of items."""
    return _shown(score)[1]


def _is_share(score: Score) -> bool:
    return score.unit in ("accuracy", "share") and 0 <= score.value <= 1 and 0 <= score.baseline <= 1


def _shown(score: Score) -> tuple[float, tuple[float, float] | None, float | None]:
    """Change, interval and smallest detectable change in the unit that is shown."""
    if score.points is not None:
        found = score.points
        return found.difference, found.interval, found.minimum_detectable
    if not score.relative or not in_points(score):
        return score.difference, score.interval, score.minimum_detectable
    # Written before points were kept: to first order they are the relative change times the base's value.
    ends = score.interval and (score.interval[0] * score.baseline, score.interval[1] * score.baseline)
    smallest = None if score.minimum_detectable is None else score.minimum_detectable * score.baseline
    return score.difference * score.baseline, ends, smallest
