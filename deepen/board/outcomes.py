"""The part of the report about what came out: the choice, the plane of gain and forgetting, scores over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepen.board import charts
from deepen.board.page import Card, Section, fold, table
from deepen.board.probes import probe_sections
from deepen.errors import DeepenError
from deepen.evaluate.compare.summary_table import measuring_took
from deepen.formats.files.json_text import read_model
from deepen.formats.files.records import read_models
from deepen.formats.manifest import Artifact
from deepen.formats.training.said import said_chance, said_change, said_detectable, said_interval
from deepen.formats.training.scores import (
    ALL_CANDIDATES,
    SCORES,
    Alternative,
    Candidate,
    CheckpointScores,
    Choice,
    Score,
    score_records,
)
from deepen.progress import say
from deepen.runs.directory import finished_stages
from deepen.select.stage import candidates_of

_SCORES = ("step", "probe", "ability", "base", "value", "change", "95 % interval", "detectable", "chance", "items")


def read_choice(stages: Mapping[str, Artifact]) -> Choice:
    """What `select` wrote."""
    return read_model(stages["select"].path / "choice.json", Choice)


def choice_cards(choice: Choice) -> Iterator[Card]:
    """What was chosen and what it does; on the half that had no part in the choice, where there is one."""
    taken = _taken(choice.candidates, choice)
    if taken is None:
        yield Card("chosen", "the base", "no checkpoint qualified", "bad")
        return
    shown = choice.confirmed or taken
    where = "; on the half that it was not chosen on" if choice.confirmed else ""
    yield Card("chosen", choice.title, choice.rule.replace("_", " "))
    if shown.new is not None:
        mood = "good" if shown.new < 0 else "bad"
        yield Card("domain", f"{shown.new:+.1%}", f"bits per byte against the base; less is better{where}", mood)
    if shown.kept is not None:
        mood = "good" if shown.eligible else "bad"
        yield Card("kept", f"{shown.kept:+.1%}", f"bits per byte of general text; less is better{where}", mood)


def outcome_sections(run: Path, recipe: Mapping[str, Any], stages: Mapping[str, Artifact]) -> Iterator[Section]:
    """Gain against forgetting, scores over time, and the other probes."""
    choice, budget = read_choice(stages), float(recipe["evaluate"]["forgetting"]["budget"])
    own = _on_everything(stages["evaluate"], budget)
    body = charts.plane_chart(
        {str(recipe["name"]): own, **_neighbours(run, stages, budget)}, budget, _taken(own, choice)
    )
    yield Section("Gain against forgetting", _reading(choice), body + _rules(choice) + _front(choice))
    checkpoints = score_records(stages["evaluate"].path / SCORES)
    if checkpoints:
        spent, blend = stages["evaluate"].counts.get("in_loop") or {}, _blend_scores(stages["evaluate"], choice)
        yield _scores_section(checkpoints, choice, budget, took=measuring_took(spent), blend=blend)
    yield from probe_sections(stages)


def _blend_scores(evaluated: Artifact, choice: Choice) -> str:
    """The scores of a chosen blend, which no checkpoint has."""
    if not choice.blend:
        return ""
    every = read_models(evaluated.path / ALL_CANDIDATES, CheckpointScores)
    one = next((found for found in every if (found.step, found.blend) == (choice.step, choice.blend)), None)
    rows = [_row(choice.title, score.model_dump(mode="json"))[1:] for score in (one.scores if one is not None else ())]
    title = f"<p>The chosen model, {choice.title}; below it the newest checkpoint in it:</p>"
    return title + table(_SCORES[1:], rows)


def _scores_section(
    checkpoints: list[dict[str, Any]], choice: Choice, budget: float, *, took: str, blend: str
) -> Section:
    rows = [_row(c["step"], s) for c in checkpoints for s in c["scores"]]
    shown = choice.step if choice.step is not None else checkpoints[-1]["step"]
    chosen, others = [row for row in rows if row[0] == shown], [row for row in rows if row[0] != shown]
    every = fold(f"scores of the other {len(checkpoints) - 1} checkpoints", table(_SCORES, others))
    lead = (
        "Held-out bits per byte against the untouched base on the same documents; bars are 95 % intervals by document. "
        "Changes smaller than what is detectable would be missed by these items one time in five or more."
    )
    if took:
        lead += f" Measuring during training took {took}."
    parts = [_row(c["step"], s) for c in checkpoints if c["step"] == shown for s in c.get("slices", ())]
    by_part = fold(f"by category and language, at step {shown}", table(_SCORES, parts)) if parts else ""
    body = charts.change_chart(checkpoints, budget) + blend + table(_SCORES, chosen) + by_part + every
    return Section("Scores over time", lead, body)


def _row(step: int | str, record: Mapping[str, Any]) -> tuple[Any, ...]:
    score = Score.model_validate(record, strict=False)
    return (
        step,
        score.probe,
        score.ability,
        score.baseline,
        score.value,
        said_change(score),
        said_interval(score),
        said_detectable(score),
        said_chance(score),
        score.items,
    )


def _taken(candidates: Sequence[Candidate], one: Choice | Alternative) -> Candidate | None:
    """The candidate that a rule took; None: the base."""
    return next((found for found in candidates if (found.step, found.blend) == (one.step, one.blend)), None)


def _rules(choice: Choice) -> str:
    """What every rule of selection would have taken."""
    rows = []
    asked: list[Choice | Alternative] = [choice, *choice.alternatives]
    for one in asked:
        taken = _taken(choice.candidates, one)
        name = one.rule + (" (this recipe's)" if one is choice else "")
        rows.append((name, one.title, *(_change(taken, axis) for axis in ("new", "kept"))))
    return fold(f"what each rule would take{_half(choice)}", table(("rule", "takes", "new", "kept"), rows))


def _half(choice: Choice) -> str:
    return ", by the half of documents and items that choices are made on" if choice.confirmed else ""


def _front(choice: Choice) -> str:
    """The candidates that no other one beats on both abilities, with the upper ends of their intervals."""
    rows = [
        (one.title, _change(one, "new"), _change(one, "new_upper"), _change(one, "kept"), _change(one, "kept_upper"))
        for one in choice.candidates
        if one.on_front
    ]
    columns = ("candidate", "new", "at worst", "kept", "at worst")
    return fold(f"the Pareto set{_half(choice)}", table(columns, rows)) if rows else ""


def _change(candidate: Candidate | None, axis: str) -> str:
    value = getattr(candidate, axis) if candidate is not None else None
    return "-" if value is None else f"{value:+.2%}"


def _reading(choice: Choice) -> str:
    """The argument of the choice, with a word on what a surely improved kept ability means."""
    chosen = _taken(choice.candidates, choice)
    reason = f"{choice.reason} Changes are of bits per byte against the untouched base: less is better."
    if chosen is not None and chosen.kept_upper is not None and chosen.kept_upper < 0:
        reason += " General text improved as well: the base was under-trained there and still learns from the replay."
    return reason


def _on_everything(evaluated: Artifact, budget: float) -> tuple[Candidate, ...]:
    """Checkpoints and blends by all documents, so that runs compare: a choice may be made on half of them."""
    tried = evaluated.path / ALL_CANDIDATES
    path = tried if tried.is_file() else evaluated.path / SCORES
    return candidates_of(list(read_models(path, CheckpointScores)), budget)


def _neighbours(run: Path, stages: Mapping[str, Artifact], budget: float) -> dict[str, Sequence[Candidate]]:
    """Candidates of neighbouring runs (the control among them, which chooses none) measured against the very same
    baseline (probes that came after training aside). One that cannot be read is told and left out."""
    mark = stages["baseline"].core
    found: dict[str, Sequence[Candidate]] = {}
    for other in sorted(run.resolve().parent.iterdir()):
        if other == run.resolve() or not (other / "evaluate").exists():
            continue
        try:
            theirs = finished_stages(other)
            if "evaluate" in theirs and "baseline" in theirs and theirs["baseline"].core == mark:
                found[other.name] = _on_everything(theirs["evaluate"], budget)
        except DeepenError as error:
            say(f"report: `{other.name}` is left out: {error.message}")
    return found
