"""What went wrong in a run, read off its records: a name, the evidence with numbers, and what to do.

Each rule is a function of a ``Case`` and looks for one pattern that has a known cause. Thresholds are constants with
their reason; a rule stays silent where its records are missing, because absence of evidence is none. A healthy run
has no finding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepen.formats.manifest import Artifact
from deepen.formats.records import read_models, read_records
from deepen.formats.scores import SCORES, CheckpointScores, Score
from deepen.recipe.reading import recipe_of
from deepen.workflow.stages import finished_stages, stage_directory

Array = npt.NDArray[np.float64]

FEWEST_STEPS = 40
"""Shorter runs are judged by their scores alone: a tenth of them is too few steps for a mean."""
_SETTLED = 0.1
"""Share of the run in which losses may rise and fall again (warm-up, stability gap: Guo et al., arXiv 2406.14833)."""
_TOKEN_PREMIUM = 2.0
"""Tokens per byte of domain text against replay text: from twice as many on growing the vocabulary begins to pay."""
_FIRST_LOSS_RATIO = 1.3
"""First training losses against the base's own on held-out text of the same source: sources differ by 10 to 20 %."""
_SKIPPED_SHARE = 0.01
"""Skipped steps: one bad batch in a few thousand is usual, one step in a hundred is not."""
_LITTLE_LEARNED = 0.02
"""Relative fall of the domain's training loss below which a run hardly learned."""
_STILL_GAINING = 1.15
"""Gain at the end against that of the middle from which on learning had not slowed. Where a rate is so low that all is
linear it is the ratio of summed rates: 2 if constant, 1.22 for a cosine to zero; near 1 with nothing left to learn."""
_STILL_FALLING = 0.01
"""Relative fall that another quarter of the run would surely bring, from which on it ended too early."""
_FASTER = "three times `train.learning_rate`; 0.1x to 0.3x of the base's peak is usual"
_LARGEST_SHARE_ERROR = 0.02
"""Realised against asked share of tokens."""
_CLEAR_GAIN = 0.03
"""Relative fall of the domain's bits per byte that one would expect some task to show."""
_SENSITIVE_TASK = 0.1
"""Largest half-width of a task's interval that could have shown an effect."""
_MANY_EPOCHS = 8
"""Repetition of a source that is worth much less than new text (Muennighoff et al., arXiv 2305.16264)."""


@dataclass(frozen=True)
class Finding:
    """One thing that went wrong."""

    name: str
    evidence: str
    remedy: str


@dataclass(frozen=True)
class Case:
    """The records of a run that rules look at; what is missing is empty."""

    budget: float
    metrics: Sequence[Mapping[str, Any]] = ()
    scores: Sequence[CheckpointScores] = ()
    """By rising step, of the evaluate stage, or of the loop while there is none."""
    roles: Mapping[str, str] | None = None
    """Role of each source: ``domain``, ``replay``, ``watch``."""
    counts: Mapping[str, Mapping[str, Any]] | None = None
    """``counts`` of finished stages by name."""

    def of_role(self, role: str) -> list[str]:
        """Names of the sources with a role."""
        return [name for name, found in (self.roles or {}).items() if found == role]

    def stage(self, name: str) -> Mapping[str, Any]:
        """Counts of a stage, empty while it is not finished."""
        return (self.counts or {}).get(name, {})


def case_of(run: Path) -> Case:
    """Read what a run directory holds; works on unfinished runs, too.

    Raises ``RunError`` when it is none, ``DamageError`` for records that cannot be read.
    """
    recipe = recipe_of(run)
    stages: dict[str, Artifact] = finished_stages(run)
    train = stages["train"].path if "train" in stages else stage_directory(run, "train")
    scored = stages["evaluate"].path if "evaluate" in stages else train
    scores = read_models(scored / SCORES, CheckpointScores)
    return Case(
        budget=recipe.evaluate.forgetting.budget,
        metrics=list(read_records(train / "metrics.jsonl", keys=("step",))),
        scores=sorted(scores, key=lambda one: one.step),
        roles={source.name: source.role for source in recipe.ingest.sources},
        counts={name: artifact.counts for name, artifact in stages.items()},
    )


def diagnose(case: Case) -> list[Finding]:
    """All findings, the gravest first."""
    return [finding for rule in RULES.values() for finding in rule(case)]


def _forgetting(case: Case) -> Iterator[Finding]:
    """The kept ability surely got worse than the budget allows, at the end and not only in the stability gap."""
    kept = case.scores[-1].of("held_out", "kept") if case.scores else None
    if kept is None or kept.interval is None or kept.interval[0] <= case.budget:
        return
    worst = max(_of_sources(case.scores[-1], "kept"), key=lambda score: score.difference, default=kept)
    share = sum(_token_share(case, name) for name in case.of_role("replay"))
    replay = f"{share:.0%} of the tokens were replay" if share else "there was no replay"
    yield Finding(
        "catastrophic forgetting",
        f"kept bits per byte {kept.difference:+.1%} ({kept.interval[0]:+.1%} to {kept.interval[1]:+.1%}) against a "
        f"budget of {case.budget:.1%}, worst {worst.probe} {worst.difference:+.1%}; {replay}",
        "more replay (`mix.domain_share`), a lower `train.learning_rate`, or `evaluate.forgetting.actions`",
    )


def _contaminated(case: Case) -> Iterator[Finding]:
    """Domain bits per byte fall while no domain task moves: the held-out text is in the corpus, or says nothing."""
    if not case.scores:
        return
    last = case.scores[-1]
    gain = last.of("held_out", "new")
    tasks = [s for s in last.scores if s.ability == "new" and not s.probe.startswith("held_out") and s.interval]
    if gain is None or gain.interval is None or gain.interval[1] > -_CLEAR_GAIN or not tasks:
        return
    able = [task for task in tasks if task.interval and task.interval[1] - task.interval[0] <= 2 * _SENSITIVE_TASK]
    flat = [task for task in able if task.interval and task.interval[0] <= 0 <= task.interval[1]]
    if not able or len(flat) < len(able):
        return
    listed = ", ".join(f"{task.probe} {task.difference:+.1%}" for task in flat)
    yield Finding(
        "contaminated corpus",
        f"domain bits per byte {gain.difference:+.1%}, yet no task moved: {listed}",
        "look for near-copies of held-out text and boilerplate: `deepen show curate`, a lower "
        "`near_duplicates.similarity`, the step `decontaminate`",
    )


def _tokenizer(case: Case) -> Iterator[Finding]:
    """Domain text falls into crumbs, or the first losses are far from what the base has on the same text."""
    tokenized = case.stage("tokenize").get("sources", {})
    rates = {
        role: _rate([tokenized[name] for name in case.of_role(role) if name in tokenized])
        for role in ("domain", "replay")
    }
    if rates["domain"] and rates["replay"] and rates["domain"] / rates["replay"] >= _TOKEN_PREMIUM:
        yield Finding(
            "tokenizer mismatch",
            f"domain text takes {rates['domain']:.2f} tokens per byte, replay text {rates['replay']:.2f}: "
            f"{rates['domain'] / rates['replay']:.1f} times as many",
            "`tokenize.vocabulary: {extend: auto}`; `deepen tokenize --report` says what it would save",
        )
    base = case.stage("baseline").get("sources", {})
    for name, first in _first_losses(case).items():
        known = base.get(name, {}).get("bits_per_byte")
        if known and first / known >= _FIRST_LOSS_RATIO:
            yield Finding(
                "tokenizer mismatch",
                f"`{name}` began at {first:.2f} bits per byte, the base has {known:.2f} on held-out text of it",
                "the token ids may not be this base's: give the base's own tokenizer, check `deepen prove`",
            )


def _rate_too_high(case: Case) -> Iterator[Finding]:
    """Updates that had to be skipped, or a training loss that ended above where it settled."""
    steps = case.metrics
    if len(steps) < FEWEST_STEPS:
        return
    skipped = sum(1 for record in steps if record.get("skipped"))
    settled, end = _stretch(case, _SETTLED, 2 * _SETTLED), _stretch(case, 1 - _SETTLED, 1.0)
    rise = _relative_change(settled, end)
    worse = rise is not None and rise[0] > 0
    if skipped / len(steps) > _SKIPPED_SHARE:
        evidence = f"{skipped} of {len(steps)} steps were skipped as spikes or not finite"
    elif worse and rise is not None:
        evidence = f"loss ended {rise[1]:+.1%} above where it stood after {_SETTLED:.0%} of the run"
    else:
        return
    yield Finding(
        "learning rate too high",
        evidence,
        "a third of `train.learning_rate`, a longer `warmup`; `decisions.jsonl` names the documents of skipped steps",
    )


def _too_little(case: Case) -> Iterator[Finding]:
    """Hardly learned at all (rate too low), or still learning when it ended (under-trained)."""
    domain = _domain_losses(case)
    if len(domain) < FEWEST_STEPS or any(_rate_too_high(case)):
        return  # a run that the rate threw off falls because it recovers: more steps are no remedy
    crept = _crept(case)
    if crept is not None:
        yield crept
        return
    tenth = max(5, len(domain) // 10)
    learned = 1 - domain[-tenth:].mean() / domain[:tenth].mean()
    fall, error = _end_slope(domain)
    if fall - error < 0:
        return  # not surely falling: whatever it learned, it was done
    if learned < _LITTLE_LEARNED:
        yield Finding(
            "learning rate too low",
            f"the domain's loss fell by {learned:.1%} in the whole run and was still falling",
            _FASTER,
        )
    elif fall - error > _STILL_FALLING:
        yield Finding(
            "under-trained",
            f"at the end the domain's loss was falling by {fall:.1%} ± {error:.1%} per quarter of the run",
            "more `train.tokens`: `--continue` goes on where the schedule allows it (wsd, infinite, constant)",
        )


def _crept(case: Case) -> Finding | None:
    """A gain on held-out documents that is sure, surely tiny, and was still growing: pairing sees what the noise of
    training losses hides."""
    gains = [(one.step, score) for one in case.scores if (score := one.of("held_out", "new")) is not None]
    if len(gains) < 2 or (last := gains[-1][1]).interval is None:
        return None
    middle = min(gains[:-1], key=lambda gain: abs(gain[0] - gains[-1][0] / 2))[1]
    tiny = last.interval[0] > -_LITTLE_LEARNED and last.interval[1] < 0
    if not tiny or last.difference > _STILL_GAINING * min(0.0, middle.difference):
        return None
    return Finding(
        "learning rate too low",
        f"domain bits per byte {last.difference:+.2%} ({last.interval[0]:+.2%} to {last.interval[1]:+.2%}), half way "
        f"{middle.difference:+.2%}: hardly moved, and was not done",
        _FASTER,
    )


def _imbalance(case: Case) -> Iterator[Finding]:
    """One source pays for the others, or the mixture is not the one that was asked for."""
    mixed = case.stage("mix")
    asked = mixed.get("domain_share")
    if isinstance(asked, float) and "train" in (case.counts or {}) and case.of_role("replay"):
        found = sum(_token_share(case, name) for name in case.of_role("domain"))
        if abs(found - asked) > _LARGEST_SHARE_ERROR:
            yield _imbalanced(f"{found:.0%} of the trained tokens were domain text, {asked:.0%} were asked for")
    for name, source in mixed.get("sources", {}).items():
        if source.get("epochs", 0) > _MANY_EPOCHS:
            yield _imbalanced(f"`{name}` was repeated {source['epochs']:.1f} times")
    yield from _paid_by(case)


def _paid_by(case: Case) -> Iterator[Finding]:
    """Trained sources that surely got worse while others improved; where all of the kept suffers, it is forgetting."""
    last = case.scores[-1] if case.scores and not any(_forgetting(case)) else None
    known = [*_of_sources(last, "new"), *_of_sources(last, "kept")] if last else []
    trained = [score for score in known if score.interval and _token_share(case, _name(score)) > 0]
    better = ", ".join(_name(score) for score in trained if score.interval and score.interval[1] < 0)
    for score in trained:
        if better and score.interval and score.interval[0] > case.budget:
            yield _imbalanced(f"trained `{_name(score)}` got worse by {score.difference:+.1%} while {better} improved")


def _imbalanced(evidence: str) -> Finding:
    return Finding("mixture imbalance", evidence, "`mix.weights`, `mix.max_epochs`; `deepen show RUN --step N`")


RULES = {
    "catastrophic forgetting": _forgetting,
    "contaminated corpus": _contaminated,
    "tokenizer mismatch": _tokenizer,
    "learning rate too high": _rate_too_high,
    "learning rate too low, under-trained": _too_little,
    "mixture imbalance": _imbalance,
}
"""What is looked for, in the order in which it is told."""


def _of_sources(scores: CheckpointScores, ability: str) -> list[Score]:
    return [score for score in scores.scores if score.ability == ability and score.probe.startswith("held_out:")]


def _name(score: Score) -> str:
    return score.probe.partition(":")[2]


def _rate(sources: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens per byte of some sources together."""
    num_bytes = sum(source.get("bytes", 0) for source in sources)
    return sum(source["tokens"] for source in sources) / num_bytes if num_bytes else None


def _token_share(case: Case, name: str) -> float:
    """Share of a source in the trained tokens."""
    sources = case.stage("train").get("sources", {})
    total = sum(source["tokens"] for source in sources.values())
    return sources.get(name, {}).get("tokens", 0) / total if total else 0.0


def _first_losses(case: Case) -> dict[str, float]:
    """Bits per byte of each source in the first steps, before the warm-up has moved anything much.

    The mean of five, or the very first value where that is lower: wrong ids are wrong from the first step on, while a
    rate that is far too high spoils only what comes after it.
    """
    if len(case.metrics) < FEWEST_STEPS:
        return {}
    found: dict[str, list[float]] = {}
    for record in case.metrics[:5]:
        for name, value in record.get("bits_per_byte_by_source", {}).items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return {name: min(float(np.mean(values)), values[0]) for name, values in found.items()}


def _domain_losses(case: Case) -> Array:
    """Loss of the domain in every step that held some of it."""
    domain = case.of_role("domain")
    values = []
    for record in case.metrics:
        found = [record.get("loss_by_source", {}).get(name) for name in domain]
        known = [value for value in found if value is not None and math.isfinite(value)]
        if known:
            values.append(float(np.mean(known)))
    return np.array(values)


def _stretch(case: Case, begin: float, end: float) -> dict[str, Array]:
    """Losses by source in a part of the run, both as shares of it."""
    steps = case.metrics[int(begin * len(case.metrics)) : int(end * len(case.metrics))]
    found: dict[str, list[float]] = {}
    for record in steps:
        for name, value in record.get("loss_by_source", {}).items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in found.items()}


def _relative_change(before: Mapping[str, Array], after: Mapping[str, Array]) -> tuple[float, float] | None:
    """Mean relative change over sources: the lower end of its 95 % interval, and itself; None without data."""
    changes, errors = [], []
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        if len(old) >= 3 and len(new) >= 3:
            changes.append(new.mean() / old.mean() - 1)
            errors.append((new.var(ddof=1) / len(new) + old.var(ddof=1) / len(old)) / old.mean() ** 2)
    if not changes:
        return None
    change = float(np.mean(changes))
    return change - 1.96 * math.sqrt(sum(errors)) / len(errors), change


def _end_slope(losses: Array) -> tuple[float, float]:
    """Relative fall per quarter of the run over its last quarter, and the half-width of its 95 % interval."""
    last = losses[-max(10, len(losses) // 4) :]
    steps = np.arange(len(last)) - (len(last) - 1) / 2
    spread = float(steps @ steps)
    slope = float(steps @ last) / spread
    residual = last - last.mean() - slope * steps
    error = math.sqrt(float(residual @ residual) / (len(last) - 2) / spread)
    return -slope * len(last) / float(last.mean()), 1.96 * error * len(last) / float(last.mean())
