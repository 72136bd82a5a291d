"""Tables for people: what the base can do, and what became of it at every checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepen.evaluate.compare.documents import status
from deepen.evaluate.items.contaminated import described
from deepen.formats.training.said import said, said_chance
from deepen.formats.training.scores import Ability, CheckpointScores, Score, blend_title, is_chance

_MOST_SLICES = 12
_MUCH = 0.1
"""Share of the training time from which on it is said how measuring can be bounded."""
_ABILITIES: tuple[Ability, ...] = ("new", "kept")
_CHANGE = "change (95 % interval)"


def baseline_table(counts: Mapping[str, Any]) -> str:
    """A line per source and per task of every other probe; those that failed with their reason."""
    lines = [
        f"baseline: {name} ({source['ability']}): {_described(source)}" for name, source in counts["sources"].items()
    ]
    for label, probe in counts["probes"].items():
        for task, found in probe.get("tasks", {}).items():
            name = label if task == label else f"{label}:{task}"
            lines.append(
                f"baseline: {name}: {found['value']:.4f} over {found['items']:,} items{_guessing(probe, task, found)}"
            )
        for reason, number in probe["not_used"].items() if "tasks" in probe else ():
            shown = ", ".join(probe["examples"][reason])
            lines.append(f"baseline: {label}: {number} items are not used: {reason} ({shown})")
        if probe.get("cut"):
            said = f"{probe['cut']} prompts are longer than the model's context, their beginnings are cut off"
            lines.append(f"baseline: {label}: {said}")
    lines += [f"baseline: {label}: FAILED: {reason}" for label, reason in counts["failed"].items()]
    if counts["failed"]:
        lines.append("baseline: what failed stays so for this run; after `deepen rm RUN/baseline` it is tried again")
    return "\n".join(lines) or "baseline: nothing was measured"


def _guessing(probe: Mapping[str, Any], task: str, found: Mapping[str, Any]) -> str:
    chance = probe.get("chance", {}).get(task)
    if chance is None:
        return ""
    return f"; guessing gets {chance:.4f}" + (
        ", so it is at chance" if is_chance(found["value"], chance, found["items"]) else ""
    )


def _described(source: Mapping[str, Any]) -> str:
    if not source["scored"]:
        return "no held-out documents can be scored, so nothing is measured here"
    return f"{source['bits_per_byte']:.4f} bits per byte over {source['scored']} documents"


def summary_table(scored: Sequence[CheckpointScores], checkpoints: Sequence[Mapping[str, Any]], budget: float) -> str:
    """Per probe a line for each checkpoint with values, changes and intervals of both abilities, and where it says
    something of the kept one the status by this probe alone; ``checkpoints`` hold the worst of all."""
    labels = list(dict.fromkeys(s.probe for one in scored for s in one.scores if ":" not in s.probe))
    lines = []
    for label in labels or ["held_out"]:
        found = [ability for ability in _ABILITIES if any(one.of(label, ability) for one in scored)]
        lines.append(f"{label}:")
        judged = "kept" in found or label == "held_out"
        heads = [
            f"{'step':>8}",
            *(f"{ability:>8}  {_CHANGE:<38}" for ability in found),
            *(["status"] if judged else []),
        ]
        lines.append("  ".join(heads))
        for scores, checkpoint in zip(scored, checkpoints, strict=True):
            cells = [_cells(scores.of(label, ability)) for ability in found]
            cells += [_status(scores.of(label, "kept"), checkpoint["status"], budget)] if judged else []
            lines.append("  ".join([f"{scores.step:>8}", *cells]).rstrip())
        lines += _chances(scored, label)
    lines += _failed(scored)
    lines += _slices(scored[-1]) if scored else []
    return "\n".join(lines)


def _chances(scored: Sequence[CheckpointScores], label: str) -> Iterator[str]:
    """What guessing would get at the questions of a probe, and who is not surely better than that."""
    for ability in _ABILITIES:
        known = [(one.step, score) for one in scored if (score := one.of(label, ability)) and score.chance is not None]
        if not known:
            continue
        guessing = ["the base"] if known[0][1].base_at_chance else []
        guessing += [f"step {step}" for step, score in known if score.at_chance]
        told = f": at chance are {', '.join(guessing)}" if guessing else ""
        yield f"  guessing would get {known[0][1].chance:.4f} ({ability}){told}"


def measuring_lines(spent: Mapping[str, Any] | None) -> list[str]:
    """What measuring during training took; nothing when nothing was measured."""
    return [f"measuring during training took {took}" for took in ([measuring_took(spent)] if spent else []) if took]


def measuring_took(spent: Mapping[str, Any]) -> str:
    """The share of the training time, what was allowed, and what whole measurements took beside; empty: not known."""
    if spent.get("share_of_training") is None:
        return ""
    allowed = f" of at most {spent['overhead']:.1%}" if spent.get("overhead") else ""
    text = f"{spent['share_of_training']:.1%}{allowed} of its time"
    if spent.get("in_full"):
        text += f"; measuring everything, {spent['in_full']} times, took {spent['in_full_seconds']:.3g} s more"
    if not spent.get("overhead") and spent["share_of_training"] > _MUCH:
        text += " (`evaluate.overhead: 3%` would bound it)"
    return text


def _status(kept: Score | None, worst: str, budget: float) -> str:
    """By one probe: a score that is missing was not finite if any probe's was not."""
    return status(kept, budget, measured=worst == "not finite")


def _failed(scored: Sequence[CheckpointScores]) -> list[str]:
    """Every failed probe with its reason and where, in one line."""
    steps: dict[tuple[str, str], list[int]] = {}
    for one in scored:
        for label, reason in one.failed.items():
            steps.setdefault((label, reason), []).append(one.step)
    return [f"probe `{label}` failed at {_where(at, len(scored))}: {reason}" for (label, reason), at in steps.items()]


def _where(steps: Sequence[int], num_checkpoints: int) -> str:
    if len(steps) == num_checkpoints > 1:
        return "every step"
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"


def _slices(last: CheckpointScores) -> list[str]:
    """The parts of the held-out text at the last checkpoint, those that got worst first."""
    worst = sorted(last.slices, key=lambda score: -score.difference)
    width = max((len(score.probe) for score in worst[:_MOST_SLICES]), default=0)
    lines = [
        f"{score.probe:<{width}}  {score.ability:<4}  {_cells(score)}  {score.items:,} documents"
        for score in worst[:_MOST_SLICES]
    ]
    if len(worst) > _MOST_SLICES:
        lines.append(f"and {len(worst) - _MOST_SLICES} more, see `deepen report`")
    return [f"parts of the held-out text at step {last.step}, worst first:", *lines] if worst else []


def contamination_lines(scored: Sequence[CheckpointScores], counts: Mapping[str, Any]) -> list[str]:
    """What was found of test items in trained documents, and the scores that change without them."""
    found = counts["contamination"] or {}
    lines = [described(label, one) for label, one in found.get("probes", {}).items()]
    lines += [f"{label}: its items could not be looked for: {why}" for label, why in found.get("failed", {}).items()]
    if lines and found["not_scanned"]:
        lines.append(f"not looked through, since they have no text: {', '.join(found['not_scanned'])}")
    for one in scored:
        lines += [f"step {one.step}: {line}" for line in without_lines(one, found.get("probes", {}))]
    return [f"contamination: {line}" for line in lines]


def without_lines(one: CheckpointScores, probes: Mapping[str, Any]) -> Iterator[str]:
    """Each touched score of a checkpoint with all items and without those that were found, in a line."""
    for score in touched_scores(one, probes):
        left = next((s for s in one.without_hits if (s.probe, s.ability) == (score.probe, score.ability)), None)
        told = "no score without them: too few are left" if left is None else f"without them {_short(left)}"
        yield f"{score.probe} {_short(score)}, {told}"


def touched_scores(one: CheckpointScores, probes: Mapping[str, Any]) -> Iterator[Score]:
    """The scores that found items (``probes``: counts of the search) have a part in."""
    names = {label for label, counts in probes.items() if counts["hits"]}
    names |= {f"{label}:{task}" for label in names for task, n in probes[label]["tasks"].items() if n["hits"]}
    return (score for score in one.scores if score.probe in names)


def _short(score: Score) -> str:
    return f"{score.value:.4f} ({said(score)}, {score.items:,} items)"


def score_line(one: CheckpointScores) -> str:
    """One checkpoint in one line: every probe's value and change, and what failed."""
    parts = []
    for score in one.scores:
        if ":" not in score.probe:
            parts.append(f"{score.probe} {score.ability} {score.value:.4f} ({said(score)}{_chance_of(score)})")
    parts += [f"{label} FAILED: {reason}" for label, reason in one.failed.items()]
    return f"step {one.step}: {', '.join(parts) or 'nothing could be measured'}"


def _chance_of(score: Score) -> str:
    found = said_chance(score)
    return f"; {found}" if found else ""


def blend_table(scored: Sequence[CheckpointScores]) -> str:
    """Checkpoints and blends with the changes of both abilities, on all documents."""
    names = [blend_title(one.step, one.blend) for one in scored]
    width = max(len(name) for name in names)
    lines = [f"{'candidates':<{width}}  {'new':>8}  {_CHANGE:<38}  {'kept':>8}  {_CHANGE:<38}"]
    for name, one in zip(names, scored, strict=True):
        cells = [_cells(one.of("held_out", "new")), _cells(one.of("held_out", "kept"))]
        lines.append(f"{name:<{width}}  {'  '.join(cells)}")
    return "\n".join(lines)


def _cells(score: Score | None) -> str:
    if score is None:
        return f"{'-':>8}  {'not measured':<38}"
    return f"{score.value:>8.4f}  {said(score):<38}"
