"""What went wrong in a run, read off its records: a name, the evidence with numbers, and what to do.

Each rule is a function of a ``Case`` and looks for one pattern that has a known cause. Thresholds are constants with
their reason; a rule stays silent where its records are missing, because absence of evidence is none. A healthy run
has no finding.
"""

from __future__ import annotations

from collections.abc import Iterator

from deepen.formats.training.said import in_points, points_interval, said
from deepen.formats.training.scores import Score
from deepen.runs.diagnose.evidence import (
    FEWEST_STEPS,
    Case,
    Finding,
    first_losses,
    of_sources,
    relative_change,
    source_name,
    stretch,
    token_share,
    tokens_per_byte,
)
from deepen.runs.diagnose.too_little import rate_too_low, under_trained

_SETTLED = 0.1
"""Share of the run in which losses may rise and fall again (warm-up, stability gap: Guo et al., arXiv 2406.14833)."""
_TOKEN_PREMIUM = 2.0
"""Tokens per byte of domain text against replay text: from twice as many on growing the vocabulary begins to pay."""
_UNKNOWN_SHARE = 0.01
"""Unknown tokens: a rare sign or two is usual, one in a hundred is a script."""
_FIRST_LOSS_RATIO = 1.3
"""First training losses against the base's own on held-out text of the same source: sources differ by 10 to 20 %."""
_SKIPPED_SHARE = 0.01
"""Skipped steps: one bad batch in a few thousand is usual, one step in a hundred is not."""
_LARGEST_SHARE_ERROR = 0.02
"""Realised against asked share of tokens."""
_CLEAR_GAIN = 0.03
"""Relative fall of the domain's bits per byte that one would expect some task to show."""
_SMALLEST_GAIN = 0.03
"""Share of items. "No task moved" is said of a task only where its interval excludes a gain of so many points: that an
interval holds 0 says nothing when it reaches to +15 as well."""
_MOST_TASKS = 3
"""Lost tasks that are told of."""
_MANY_EPOCHS = 8
"""Repetition of a source that is worth much less than new text (Muennighoff et al., arXiv 2305.16264)."""


def diagnose(case: Case) -> list[Finding]:
    """All findings, the gravest first; that a run was too short is only said where nothing else is wrong with it."""
    found = [finding for name, rule in RULES.items() if name != "under-trained" for finding in rule(case)]
    return found or list(under_trained(case))


def _forgetting(case: Case) -> Iterator[Finding]:
    """The kept ability surely got worse than the budget allows, at the end and not only in the stability gap."""
    kept, tasks = _lost(case), _lost_tasks(case)
    if (kept is None and not tasks) or any(_rate_too_high(case)):
        return  # what threw the run off is told, and what it cost
    evidence = [_loss_of(task) for task in tasks[:_MOST_TASKS]]
    if kept is not None:
        worst = max(of_sources(case.scores[-1], "kept"), key=lambda score: score.difference, default=kept)
        evidence.insert(0, f"kept bits per byte {_loss_of(kept)}, worst {worst.probe} {said(worst, digits=1)}")
    evidence.append(f"the budget is {case.budget:.1%}")
    if case.stage("train"):  # else it is not counted yet
        share = sum(token_share(case, name) for name in case.of_role("replay"))
        evidence.append(f"{share:.0%} of the tokens were replay" if share else "there was no replay")
    yield Finding(
        "catastrophic forgetting",
        "; ".join(evidence),
        "more replay (`mix.domain_share`), a lower `train.learning_rate`, or `evaluate.forgetting.actions`",
    )


def _loss_of(score: Score) -> str:
    """A change with its interval, and what it is of where that is a task."""
    name = f"{score.probe} {score.unit} " if score.higher_is_better else ""
    text = f"{name}{said(score, digits=1)}"
    ends = score.relative_loss_interval if in_points(score) else None
    return text if ends is None else f"{text}, at least {ends[0]:.1%} of what the base gets right"


def _lost_tasks(case: Case) -> list[Score]:
    """Kept tasks that surely dropped by more than the budget, tested together with all others, the worst first."""
    found = [
        score
        for score in (case.scores[-1].scores if case.scores else ())
        if score.is_budgeted and _is_task(score) and score.significant is not False
        if score.relative_loss_interval is not None and score.relative_loss_interval[0] > case.budget
    ]
    return sorted(found, key=lambda score: -score.relative_loss)


def _is_task(score: Score) -> bool:
    """Whether a score says how many answers are right: neither held-out text nor a rate of generated samples."""
    return score.higher_is_better and not score.probe.startswith("held_out")


def _lost(case: Case) -> Score | None:
    """The score of the kept ability where it is surely over the budget."""
    kept = case.scores[-1].of("held_out", "kept") if case.scores else None
    return kept if kept is not None and kept.interval is not None and kept.interval[0] > case.budget else None


def _contaminated(case: Case) -> Iterator[Finding]:
    """Domain bits per byte fall while no domain task moves: the held-out text is in the corpus, or says nothing."""
    if not case.scores:
        return
    last = case.scores[-1]
    gain = last.of("held_out", "new")
    tasks = [score for score in last.scores if score.ability == "new" and _is_task(score) and score.interval]
    if gain is None or gain.interval is None or gain.interval[1] > -_CLEAR_GAIN or not tasks:
        return
    # A task at chance is too hard to show a gain, one with a wide interval too small: neither says that none is there.
    able = [
        task for task in tasks if not (task.at_chance or task.base_at_chance) and max(task.baseline, task.value) > 0
    ]
    flat = [task for task in able if _excludes_a_gain(task)]
    moved = [task for task in tasks if (points_interval(task) or (0.0, 0.0))[0] > 0]
    if not flat or moved:
        return
    listed = ", ".join(f"{task.probe} {said(task, digits=1)}" for task in flat)
    yield Finding(
        "contaminated corpus",
        f"domain bits per byte {said(gain, digits=1)}, yet tasks that would show it gain nothing: {listed}",
        "look for near-copies of held-out text and boilerplate: `deepen show curate`, a lower "
        "`near_duplicates.similarity`, the step `decontaminate`",
    )


def _excludes_a_gain(task: Score) -> bool:
    """Whether the interval of a task, in points, leaves no room for a gain worth the name."""
    ends = points_interval(task)
    return ends is not None and ends[0] <= 0 and ends[1] < _SMALLEST_GAIN


def _tokenizer(case: Case) -> Iterator[Finding]:
    """Domain text falls into crumbs or cannot be spelt, or first losses are far from the base's on the same text."""
    tokenized = case.stage("tokenize").get("sources", {})
    rates = {
        role: tokens_per_byte([tokenized[name] for name in case.of_role(role) if name in tokenized])
        for role in ("domain", "replay")
    }
    if rates["domain"] and rates["replay"] and rates["domain"] / rates["replay"] >= _TOKEN_PREMIUM:
        yield Finding(
            "tokenizer mismatch",
            f"domain text takes {rates['domain']:.2f} tokens per byte, replay text {rates['replay']:.2f}: "
            f"{rates['domain'] / rates['replay']:.1f} times as many",
            "`tokenize.vocabulary: {extend: auto}`; `deepen tokenize --report` says what it would save",
        )
    for name, share in (case.unknown_shares or {}).items():
        if name in case.of_role("domain") and share >= _UNKNOWN_SHARE:
            yield Finding(
                "tokenizer mismatch",
                f"{share:.1%} of the tokens of `{name}` are the unknown one: text that the tokenizer cannot spell",
                "`tokenize.vocabulary: {extend: auto}`, or a base whose tokenizer falls back on bytes",
            )
    base = case.stage("baseline").get("sources", {})
    for name, first in first_losses(case).items():
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
    settled, end = stretch(case, _SETTLED, 2 * _SETTLED), stretch(case, 1 - _SETTLED, 1.0)
    rise = relative_change(settled, end)
    worse = rise is not None and rise[0] > 0
    if skipped / len(steps) > _SKIPPED_SHARE:
        evidence = f"{skipped} of {len(steps)} steps were skipped as spikes or not finite"
    elif worse and rise is not None:
        evidence = (
            f"loss ended {rise[1]:+.1%} above where it stood after {_SETTLED:.0%} of the run, surely {rise[0]:+.1%}"
        )
    else:
        return
    lost = _lost(case)
    yield Finding(
        "learning rate too high",
        evidence + ("" if lost is None else f"; kept bits per byte {said(lost, digits=1)}, over the budget"),
        "a third of `train.learning_rate`, a longer `warmup`; `decisions.jsonl` names the documents of skipped steps",
    )


def _imbalance(case: Case) -> Iterator[Finding]:
    """One source pays for the others, or the mixture is not the one that was asked for."""
    mixed = case.stage("mix")
    asked = mixed.get("domain_share")
    if isinstance(asked, float) and _went_as_planned(case) and case.of_role("replay"):
        found = sum(token_share(case, name) for name in case.of_role("domain"))
        if abs(found - asked) > _LARGEST_SHARE_ERROR:
            yield _imbalanced(f"{found:.0%} of the trained tokens were domain text, {asked:.0%} were asked for")
    for name, source in mixed.get("sources", {}).items():
        if source.get("epochs", 0) > _MANY_EPOCHS:
            yield _imbalanced(f"`{name}` was repeated {source['epochs']:.1f} times")
    yield from _paid_by(case)


def _went_as_planned(case: Case) -> bool:
    """Whether training went through the order of ``mix`` to its end: what the monitor or a user changed on the way, and
    the rest of a run that was stopped, is not what was asked for at first."""
    train, planned = case.stage("train"), case.stage("mix").get("num_batches", 0)
    return bool(train) and not train.get("order_changes") and train.get("steps", planned) >= planned


def _paid_by(case: Case) -> Iterator[Finding]:
    """Trained sources that surely got worse while others improved; where all of the kept suffers, it is forgetting."""
    last = case.scores[-1] if case.scores and _lost(case) is None else None
    known = [*of_sources(last, "new"), *of_sources(last, "kept")] if last else []
    trained = [score for score in known if score.interval and token_share(case, source_name(score)) > 0]
    better = ", ".join(source_name(score) for score in trained if score.interval and score.interval[1] < 0)
    for score in trained:
        if better and score.interval and score.interval[0] > case.budget:
            yield _imbalanced(
                f"trained `{source_name(score)}` got worse by {said(score, digits=1)} while {better} improved"
            )


def _imbalanced(evidence: str) -> Finding:
    return Finding("mixture imbalance", evidence, "`mix.weights`, `mix.max_epochs`; `deepen show RUN --step N`")


def _rate_too_low(case: Case) -> Iterator[Finding]:
    """Not where the rate threw the run off: such a run falls because it recovers."""
    if not any(_rate_too_high(case)):
        yield from rate_too_low(case)


RULES = {
    "catastrophic forgetting": _forgetting,
    "contaminated corpus": _contaminated,
    "tokenizer mismatch": _tokenizer,
    "learning rate too high": _rate_too_high,
    "learning rate too low": _rate_too_low,
    "mixture imbalance": _imbalance,
    "under-trained": under_trained,
}
"""What is looked for, in the order in which it is told."""
