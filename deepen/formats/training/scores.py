"""Scores of a model against the untouched base, and the choice made from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepen.formats.files.records import read_models
from deepen.settings import Many, Settings

SCORES = "scores.jsonl"
ALL_CANDIDATES, CHOOSE_ON, REPORT_ON = "candidates.jsonl", "candidates_choose.jsonl", "candidates_report.jsonl"
"""Scores of checkpoints and blends: on everything, and on two halves. Written where blends were tried."""

Ability = Literal["new", "kept"]
_BUDGETED = ("bits per byte", "accuracy")
"""Units of scores that a budget is about."""


class Points(Settings):
    """A change of a share of items as the plain difference of the two shares."""

    difference: float
    interval: tuple[float, float] | None = None
    minimum_detectable: float | None = None


class Score(Settings):
    """One probe's result for one model, compared with the base on the same items."""

    probe: str
    """``held_out:SOURCE``: bits per byte of one source's held-out documents; ``held_out``: mean of an ability. Of other
    probes ``NAME:TASK`` for each of several tasks, and ``NAME``."""
    ability: Ability
    """Domain sources measure what is new; replay and watch sources what must be kept."""
    value: float
    baseline: float
    difference: float
    """Relative to the baseline, for example -0.12: 12 % fewer bits per byte."""
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval of ``difference``, clustered by document; None when it was not computed."""
    minimum_detectable: float | None = None
    """The smallest change that these items would show 8 times in 10 at a level of 5 %; None without an interval, and
    where the models do not differ on any item."""
    p_value: float | None = None
    """Two-sided p-value of no change, from the same redraws as the interval."""
    significant: bool | None = None
    """Whether the change is one when all tasks of the checkpoint are tested together (Holm, 5 %)."""
    higher_is_better: bool
    items: int
    """Documents (or questions) behind the value."""
    unit: str = "bits per byte"
    relative: bool = True
    """Whether ``difference`` is relative to the baseline; False: the plain difference (the base has nothing right)."""
    points: Points | None = None
    """Of a share of items whose ``difference`` is relative: the plain difference, which people are told. Budgets and
    choices go by ``difference``."""
    chance: float | None = None
    """What guessing would get: the mean over items of 1 / number of choices; None where it is not known."""

    @property
    def at_chance(self) -> bool:
        """Whether the model is not surely better than guessing: within 1.96 standard errors of it, or below."""
        return self._guesses(self.value)

    @property
    def base_at_chance(self) -> bool:
        """The same of the base."""
        return self._guesses(self.baseline)

    def _guesses(self, value: float) -> bool:
        return self.chance is not None and is_chance(value, self.chance, self.items)

    @property
    def loss(self) -> float:
        """``difference`` turned so that more is worse: rise of bits per byte, drop of accuracy."""
        return -self.difference if self.higher_is_better else self.difference

    @property
    def loss_interval(self) -> tuple[float, float] | None:
        """``interval`` of ``loss``."""
        if self.interval is None or not self.higher_is_better:
            return self.interval
        return -self.interval[1], -self.interval[0]

    @property
    def is_budgeted(self) -> bool:
        """Whether a budget is about it: kept text or answers. Rates of samples are for people (they double when they
        go from 1 to 2 %), and nothing is lost of a base that has nothing right."""
        return self.ability == "kept" and self.unit in _BUDGETED and (self.relative or self.baseline > 0)

    @property
    def relative_loss(self) -> float:
        """``loss`` relative to the baseline, also where ``difference`` is plain (the mean of tasks one of which the
        base has nothing right in); only of what ``is_budgeted``."""
        return self.loss / self._scale

    @property
    def relative_loss_interval(self) -> tuple[float, float] | None:
        """``loss_interval``, in the same way."""
        ends = self.loss_interval
        return None if ends is None else (ends[0] / self._scale, ends[1] / self._scale)

    @property
    def _scale(self) -> float:
        return 1.0 if self.relative else self.baseline


def is_chance(value: float, chance: float, items: int) -> bool:
    """Whether a share of right answers is not surely better than guessing: within 1.96 standard errors, or below."""
    return value <= chance + 1.96 * math.sqrt(chance * (1 - chance) / max(items, 1))


@dataclass(frozen=True)
class Loss:
    """How much of the kept ability is lost."""

    relative: float
    """Rise of bits per byte, or drop of accuracy, relative to the base."""
    surely: float
    """The end of the interval that is nearer to the base; minus infinity without an interval."""
    in_units: float
    """The same in the probe's unit."""
    probe: str
    """Of which probe the relative loss is."""


def worst_loss(scores: Sequence[Score]) -> Loss | None:
    """The largest of each number over the scores that a budget is about; None when there is none of them.

    Answers to a few hundred questions scatter by many times a budget. A drop of accuracy that may be chance, when all
    tasks are tested together, is none: of several tasks at twenty evaluations some always look lost.
    """
    losses = [(*_loss_of(score), score.probe) for score in _kept(scores)]
    if not losses:
        return None
    relative, surely, in_units, _ = zip(*losses, strict=True)
    return Loss(max(relative), max(surely), max(in_units), max(losses)[-1])


def _kept(scores: Sequence[Score]) -> list[Score]:
    """The scores that a budget is about and that no other one summarises."""
    kept = [score for score in scores if score.is_budgeted]
    names = {score.probe for score in kept}
    # Tasks of a probe that has a mean: the mean stands for them.
    return [score for score in kept if ":" not in score.probe or score.probe.partition(":")[0] not in names]


def _loss_of(score: Score) -> tuple[float, float, float]:
    ends, loss = score.relative_loss_interval, score.relative_loss
    surely = ends[0] if ends is not None else -math.inf
    if score.unit == "accuracy" and score.significant is False and loss > 0:
        return 0.0, min(surely, 0.0), 0.0
    in_units = score.baseline - score.value if score.higher_is_better else score.value - score.baseline
    return loss, surely, in_units


class BlendPart(Settings):
    """One of the models that a weighted sum of weights is made of."""

    step: int | None
    """Checkpoint; None: the model that training began with."""
    weight: float


Blend = Many[BlendPart]
"""A weighted sum of models; empty: a checkpoint as it is."""


def blend_title(step: int, blend: Sequence[BlendPart]) -> str:
    """What to call a candidate: ``step 100``, ``mean of steps 60, 80, 100``, ``0.3 x step 100 + 0.7 x base``."""
    if not blend:
        return f"step {step}"
    if all(part.weight == blend[0].weight and part.step is not None for part in blend):
        return f"mean of steps {', '.join(str(part.step) for part in blend)}"
    return " + ".join(f"{part.weight:g} x {'base' if part.step is None else f'step {part.step}'}" for part in blend)


class CheckpointScores(Settings):
    """All scores of one checkpoint, or of a blend of several."""

    step: int
    """Of a blend the newest step in it."""
    blend: Blend = ()
    tokens: int
    """Tokens trained when the checkpoint was made."""
    known_at: int | None = None
    """Steps that training had finished when it took these scores from another process; None: it had them at once."""
    scores: Many[Score]
    slices: Many[Score] = ()
    """Scores of parts of the held-out text, ``held_out:category=law``, ``held_out:language=de``: for people, in no
    budget, choice or test of several tasks."""
    failed: dict[str, str] = {}
    """Probes that could not be measured, with the reason."""
    without_hits: Many[Score] = ()
    """The scores that change when items that stand in trained documents do not count, beside those of all items. Part
    of no family of tests and of no choice."""

    @property
    def known(self) -> int:
        """Finished steps when the scores could first be acted on."""
        return self.step if self.known_at is None else self.known_at

    def of(self, probe: str, ability: Ability) -> Score | None:
        """The score of ``probe`` for ``ability``, if it was measured."""
        return next((score for score in self.scores if (score.probe, score.ability) == (probe, ability)), None)


def score_records(path: Path) -> list[dict[str, Any]]:
    """The ``CheckpointScores`` of a file as plain data; none when it does not exist.

    Raises ``DamageError`` for a line that is none."""
    return [one.model_dump(mode="json") for one in read_models(path, CheckpointScores)]


class Candidate(Settings):
    """A model that could be chosen: a checkpoint, or a blend, with its gain and its loss."""

    step: int
    blend: Blend = ()
    new: float | None
    """Relative change of the new ability; negative is better (bits per byte)."""
    kept: float | None
    """Relative change of the kept ability; positive is forgetting."""
    kept_upper: float | None
    """Upper end of the interval of ``kept``."""
    new_upper: float | None = None
    """Upper end of the interval of ``new``."""
    lost_tasks: Many[str] = ()
    """Kept tasks that surely dropped (Holm over all tasks) by more than the budget; with any it is not eligible."""
    eligible: bool
    on_front: bool
    """No other candidate is at least as good on both axes and better on one."""

    @property
    def title(self) -> str:
        """What to call it."""
        return blend_title(self.step, self.blend)


class Alternative(Settings):
    """What another rule would have chosen from the same candidates."""

    rule: str
    step: int | None
    blend: Blend = ()
    reason: str

    @property
    def title(self) -> str:
        """What was taken."""
        return "the base" if self.step is None else blend_title(self.step, self.blend)


class Choice(Settings):
    """What was selected and why; ``step`` None means that the untouched base is kept."""

    step: int | None
    blend: Blend = ()
    """What the chosen model is made of; empty: the checkpoint of ``step`` as it is."""
    rule: str
    reason: str
    candidates: Many[Candidate]
    confirmed: Candidate | None = None
    """The chosen model on the half of documents and items that had no part in the choice, where blends were tried."""
    alternatives: Many[Alternative] = ()
    """The built-in rules with their default settings, side by side."""

    @property
    def title(self) -> str:
        """What was chosen."""
        return "the base" if self.step is None else blend_title(self.step, self.blend)
