"""The argument for a choice: one paragraph whose numbers are those of the candidates."""

from __future__ import annotations

from collections.abc import Sequence

from deepen.formats.training.scores import Candidate


def argue_choice(candidates: Sequence[Candidate], index: int, budget: float, because: str = "") -> str:
    """Why the candidate at ``index`` was chosen: ``because`` (a sentence), or for its new ability."""
    chosen = candidates[index]
    sentences = [f"{_titled(chosen)} is chosen among {_counted(candidates)}."]
    if because:
        sentences.append(because)
    if chosen.new is None:
        sentences.append("No new ability was measured by held-out text, so it is simply the last one that qualifies.")
    elif because:
        sentences.append(f"Its new ability changes by {_change(chosen.new, chosen.new_upper)}.")
    else:
        sentences.append(f"It has the best new ability of those that qualify: {_change(chosen.new, chosen.new_upper)}.")
    sentences += [_forgetting(chosen, budget), _better_but_forgetful(candidates, chosen)]
    return " ".join(sentence for sentence in sentences if sentence)


def argue_none_eligible(candidates: Sequence[Candidate], budget: float) -> str:
    """Why the base is kept when no candidate stays within the budget."""
    if not candidates:
        return "The base is kept: there is no scored checkpoint to choose from."
    known = [candidate for candidate in candidates if _worst(candidate) is not None]
    if not known:
        return f"The base is kept: none of {_counted(candidates)} has a usable score of the kept ability."
    closest = min(known, key=lambda candidate: (_worst(candidate), candidate.step))
    return (
        f"The base is kept: none of {_counted(candidates)} surely stays within the forgetting budget of {budget:.2%}. "
        f"The closest is {closest.title}: its kept ability changes by {_change(closest.kept, closest.kept_upper)}. "
        "More replay, a lower learning rate or a larger budget would admit it."
    )


def argue_not_better(candidates: Sequence[Candidate], index: int, budget: float) -> str:
    """Why the base is kept although some candidates, the best of them at ``index``, stay within the budget."""
    best = candidates[index]
    return (
        "The base is kept: no checkpoint within the budget surely improves the new ability. The best of "
        f"{_counted(candidates)} is {best.title}, "
        f"whose new ability changes by {_change(best.new, best.new_upper)}. "
        f"{_forgetting(best, budget)}"
    )


def _forgetting(candidate: Candidate, budget: float) -> str:
    if candidate.kept is None:
        why = "there is no probe `held_out`, no replay or watch source has held-out documents, or measuring them failed"
        return f"Forgetting was not measured by text: {why}."
    change = _change(candidate.kept, candidate.kept_upper)
    text = f"Its kept ability changes by {change}, within the budget of {budget:.2%}."
    if candidate.kept_upper is None:
        text += " There are too few documents for an interval, so the estimate itself was held against the budget."
    return text


def _better_but_forgetful(candidates: Sequence[Candidate], chosen: Candidate) -> str:
    """What the budget cost: the best candidate that was refused although its new ability is better."""
    refused = [one for one in candidates if not one.eligible and one.new is not None]
    best = min(refused, key=lambda one: (one.new, one.step), default=None)
    if best is None or chosen.new is None or best.new is None or best.new >= chosen.new:
        return ""
    why = f"its kept ability changes by {_change(best.kept, best.kept_upper)}"
    if best.lost_tasks:
        why += f", and it lost {', '.join(best.lost_tasks)}"
    return f"{_titled(best)} gains more ({_change(best.new, best.new_upper)}) but was refused: {why}."


def _worst(candidate: Candidate) -> float | None:
    return candidate.kept if candidate.kept_upper is None else candidate.kept_upper


def _titled(candidate: Candidate) -> str:
    return candidate.title[0].upper() + candidate.title[1:]


def _counted(candidates: Sequence[Candidate]) -> str:
    blends = sum(bool(candidate.blend) for candidate in candidates)
    checkpoints = len(candidates) - blends
    text = "1 checkpoint" if checkpoints == 1 else f"{checkpoints} checkpoints"
    return f"{text} and {blends} blend{'s' if blends > 1 else ''}" if blends else text


def _change(change: float | None, upper: float | None) -> str:
    if change is None:
        return "an unknown amount"
    return f"{change:+.2%}" + ("" if upper is None else f" (at worst {upper:+.2%})")
