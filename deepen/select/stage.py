"""The selection stage: scored checkpoints in, one choice with its argument out.

Selection sees two axes, the change of the new and of the kept ability; which model is best is a trade between them, so
the front of candidates that no other one beats on both is part of the result, whatever the rule takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from deepen.errors import RunError
from deepen.formats.files.atomic import write_json
from deepen.formats.files.records import read_models
from deepen.formats.manifest import Manifest, StageJob, begin_stage, finish_stage
from deepen.formats.training.scores import (
    ALL_CANDIDATES,
    CHOOSE_ON,
    REPORT_ON,
    SCORES,
    Alternative,
    Candidate,
    CheckpointScores,
    Choice,
    Score,
)
from deepen.formats.unchanged import check_inputs
from deepen.progress import aligned, say
from deepen.select.config import RULES, SelectRule, dominates

FORMAT = 3

_PROBE = "held_out"


def select(config: SelectRule, job: StageJob, *, budget: float) -> Manifest:
    """Choose one checkpoint, or the base.

    Inputs: ``evaluate`` (its ``scores.jsonl``; where blends were tried, the scores on everything and on its halves).
    Writes ``choice.json``. ``budget`` is ``evaluate.forgetting.budget``.
    """
    check_inputs(job, {"evaluate": [""]})
    begin_stage(job, stage="select", format_number=FORMAT, config=config)
    choice = _chosen_of(job.inputs["evaluate"].path, config, budget)
    candidates = choice.candidates
    say(choice.reason)
    say(side_by_side(choice))
    entry = write_json(job.out / "choice.json", choice.model_dump(mode="json"))
    counts = {
        "step": choice.step,
        "candidates": len(candidates),
        "eligible": sum(candidate.eligible for candidate in candidates),
        "on_front": sum(candidate.on_front for candidate in candidates),
        "budget": budget,
    }
    return finish_stage(job, stage="select", format_number=FORMAT, config=config, files=[entry], counts=counts)


def _chosen_of(evaluated: Path, rule: SelectRule, budget: float) -> Choice:
    """The choice from all that was scored; of blends from one half and confirmed on the other, if both have it all."""
    if not (evaluated / CHOOSE_ON).is_file():
        return chosen(rule, candidates_of(_read_scores(evaluated / SCORES), budget), budget)
    every, half, other = (_read_scores(evaluated / name) for name in (ALL_CANDIDATES, CHOOSE_ON, REPORT_ON))
    missing = sorted(_texts(every) - (_texts(half) & _texts(other)))
    if missing:
        choice = chosen(rule, candidates_of(every, budget), budget)
        named = ", ".join(f"`{name}` ({ability})" for name, ability in missing)
        sentence = f"A half of the documents has none of {named}, so this is chosen on all, and confirmed on none."
        return choice.model_copy(update={"reason": f"{choice.reason} {sentence}"})
    return confirmed(chosen(rule, candidates_of(half, budget), budget), candidates_of(other, budget))


def _texts(scored: Sequence[CheckpointScores]) -> set[tuple[str, str]]:
    """The held-out sources and abilities that were measured."""
    return {(score.probe, score.ability) for one in scored for score in one.scores if score.probe.startswith(_PROBE)}


def _read_scores(file: Path) -> list[CheckpointScores]:
    return list(read_models(file, CheckpointScores))


def confirmed(choice: Choice, others: Sequence[Candidate]) -> Choice:
    """The choice with what its model does on the half of documents and items that it was not chosen on."""
    same = next((one for one in others if (one.step, one.blend) == (choice.step, choice.blend)), None)
    if same is None:
        return choice
    within = "within" if same.eligible else "NOT surely within"
    changes = [
        f"{name} {change:+.2%}" for name, change in (("new", same.new), ("kept", same.kept)) if change is not None
    ]
    sentence = f"On the half that it was not chosen on: {', '.join(changes)}, {within} the budget."
    return choice.model_copy(update={"confirmed": same, "reason": f"{choice.reason} {sentence}"})


def candidates_of(scores: Sequence[CheckpointScores], budget: float) -> tuple[Candidate, ...]:
    """The scored checkpoints by rising step, with who is eligible and who is on the front.

    A checkpoint without a score that others have (its likelihoods were not finite) is neither.
    """
    # A checkpoint stands before the blends of which it is the newest part.
    ordered = sorted(scores, key=lambda one: (one.step, len(one.blend)))
    pairs = [(one.of(_PROBE, "new"), one.of(_PROBE, "kept")) for one in ordered]
    new_measured, kept_measured = (any(pair[axis] is not None for pair in pairs) for axis in (0, 1))
    # Whole: with a score on each axis on which any candidate has one.
    complete = [(new is not None) == new_measured and (kept is not None) == kept_measured for new, kept in pairs]
    changes = [(_difference(new), _difference(kept)) for new, kept in pairs]
    # What lacks a score beats nobody: an axis that it lacks would count as a tie.
    rivals = [change for change, whole in zip(changes, complete, strict=True) if whole]
    return tuple(
        Candidate(
            step=one.step,
            blend=one.blend,
            new=change[0],
            kept=change[1],
            kept_upper=_upper(kept),
            new_upper=_upper(new),
            lost_tasks=(lost := tuple(lost_tasks(one, budget))),
            eligible=whole and within(kept, budget) and not lost,
            on_front=whole and not any(dominates(rival, change) for rival in rivals),
        )
        for one, (new, kept), change, whole in zip(ordered, pairs, changes, complete, strict=True)
    )


def lost_tasks(scores: CheckpointScores, budget: float) -> Iterator[str]:
    """Kept tasks that surely dropped by more than ``budget``, tested together with all others."""
    for score in scores.scores:
        is_task = score.is_budgeted and not score.probe.startswith(_PROBE)
        if is_task and score.significant and score.relative_loss > budget:
            yield score.probe


def within(kept: Score | None, budget: float) -> bool:
    """Whether the kept ability surely stays within the budget: the upper end of its change, or the change itself where
    no interval could be computed; True when nothing was measured."""
    if kept is None:
        return True
    return (kept.difference if kept.interval is None else kept.interval[1]) <= budget


def chosen(rule: SelectRule, candidates: Sequence[Candidate], budget: float) -> Choice:
    """Ask the rule; raises ``RunError`` when it takes a checkpoint that is not eligible, none that exists, or fails."""
    index, reason = _asked(rule, candidates, budget)
    if index is not None and not candidates[index].eligible:
        raise RunError(
            f"the rule `{rule.use}` chose {candidates[index].title}, which is not within the forgetting budget",
            hint="correct the rule, or raise `evaluate.forgetting.budget`",
        )
    taken = None if index is None else candidates[index]
    return Choice(
        step=taken.step if taken else None,
        blend=taken.blend if taken else (),
        rule=rule.use,
        reason=reason,
        candidates=tuple(candidates),
        alternatives=tuple(_alternatives(rule, candidates, budget)),
    )


def _asked(rule: SelectRule, candidates: Sequence[Candidate], budget: float) -> tuple[int | None, str]:
    """What a rule answers, which may be anyone's code."""
    hint = "correct the rule: an index into the candidates or None, and a text"
    try:
        index, reason = rule.choose(candidates, budget=budget)
    except Exception as error:
        raise RunError(f"the rule `{rule.use}` failed: {type(error).__name__}: {error}", hint=hint) from error
    known = index is None or (isinstance(index, int) and 0 <= index < len(candidates))
    if not known or not isinstance(reason, str):
        raise RunError(f"the rule `{rule.use}` answered `{index!r}` with the reason `{reason!r}`", hint=hint)
    return index, reason


def _alternatives(rule: SelectRule, candidates: Sequence[Candidate], budget: float) -> Iterator[Alternative]:
    """What the other built-in rules would take, with their default settings."""
    for name, other in RULES.items():
        if name != rule.use:
            index, reason = other.model_validate({}).choose(candidates, budget=budget)
            taken = None if index is None else candidates[index]
            made_of = {"step": taken.step, "blend": taken.blend} if taken else {"step": None}
            yield Alternative.model_validate({"rule": name, "reason": reason, **made_of})


def side_by_side(choice: Choice) -> str:
    """What each rule takes and what that gains and loses, a line each; the rule of the recipe first."""
    rows: list[tuple[str, ...]] = [("rule", "takes", "new", "kept")]
    asked: list[Choice | Alternative] = [choice, *choice.alternatives]
    for one in asked:
        taken = next((it for it in choice.candidates if (it.step, it.blend) == (one.step, one.blend)), None)
        changes = (None, None) if taken is None else (taken.new, taken.kept)
        name = one.rule + (" (asked for)" if one is choice else "")
        rows.append((name, one.title, *("-" if change is None else f"{change:+.2%}" for change in changes)))
    return "\n".join(aligned(rows, num_left=4))


def _difference(score: Score | None) -> float | None:
    return None if score is None else score.difference


def _upper(score: Score | None) -> float | None:
    return None if score is None or score.interval is None else score.interval[1]
