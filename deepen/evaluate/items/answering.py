"""Measuring answers that a model writes: greedy generation, compared with the accepted answers.

The likelihood of the first accepted answer is kept beside it: it moves long before a small model writes the answer out.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
import pyarrow as pa

from deepen.evaluate.documents.likelihoods import NOT_FINITE
from deepen.evaluate.documents.material import Material
from deepen.evaluate.documents.windows import likelihoods
from deepen.evaluate.items.files import Item
from deepen.evaluate.items.prompts import continuation_of, cut_left, texts_of
from deepen.evaluate.items.tables import Outcome, table_of
from deepen.model.generate import Decoding, generate
from deepen.model.loss.model import LossModel

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Answering:
    """How answers are asked for and compared."""

    max_tokens: int
    stop: tuple[str, ...]
    """An answer ends before the first of these."""
    extract: str = "all"
    """``all``, ``first_number`` or ``last_number``: what of the answer is compared."""
    begins_with: bool = False
    """Whether it is enough that the answer begins with an accepted one."""
    to_the_letter: bool = False
    """Whether nothing but spaces around an answer is forgiven."""
    separator: str = " "
    """Stands between prompt and answer where likelihoods are computed."""


def normalised(text: str) -> str:
    """Lower case, without punctuation, English articles and surplus spaces (the comparison of SQuAD, 2016).

    Punctuation is that of every script. A text of which nothing would be left (the answer `A`, or `+`) stays.
    """
    kept = "".join(character for character in text.lower() if not _is_punctuation(character))
    return " ".join(_ARTICLES.sub(" ", kept).split()) or " ".join(kept.split()) or text.strip().lower()


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def number_in(text: str, which: str) -> str:
    """The first or last number of a text in one notation (``1,250.0`` is ``1250``), all its digits, or nothing."""
    found = _NUMBER.findall(text)
    if not found:
        return ""
    # Not a float, in which the last digits of long numbers would be lost.
    written = f"{Decimal(found[0 if which == 'first_number' else -1].replace(',', '')):f}"
    shortest = written.rstrip("0").rstrip(".") if "." in written else written
    return "0" if shortest == "-0" else shortest


def is_right(answer: str, accepted: Sequence[str], answering: Answering) -> bool:
    """Whether an answer is one of the accepted ones after both were normalised."""
    if answering.extract != "all":
        found = number_in(answer, answering.extract)
        return found != "" and found in {number_in(one, answering.extract) for one in accepted}
    if answering.to_the_letter:
        return answer.strip() in accepted
    given, wanted = normalised(answer), [normalised(one) for one in accepted]
    if answering.begins_with:
        return any(_begins_with(given, one) for one in wanted)
    return given in wanted


def _begins_with(text: str, beginning: str) -> bool:
    """Whether a text begins with whole words; Chinese and Japanese have no spaces that would end one."""
    return text.startswith(beginning) and (_is_wide(beginning[-1]) or text[len(beginning) :][:1] in ("", " "))


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def prepare_answers(
    items: Sequence[Item], answering: Answering, material: Material
) -> Callable[[LossModel, str | None], pa.Table]:
    """Encode items (those of ``material.only``, if set); see ``Probe.prepare`` for what is returned."""
    asked = [item for item in items if material.only is None or item.id in material.only]
    usable = [item for item in asked if item.reason is None]
    texts = texts_of(material)
    prompts = [texts.encode(item.prompt.rstrip()) for item in usable]
    golds = [continuation_of(texts, item.prompt.rstrip(), _answered(item, answering)) for item in usable]

    def is_done(tokens: list[int]) -> bool:
        written = texts.decode(tokens)
        return any(stop in written for stop in answering.stop)

    def measure(model: LossModel, what: str | None) -> pa.Table:
        context = model.model.config.max_position_embeddings
        decoding = Decoding(answering.max_tokens, texts.end_ids, is_done, num_tokens=texts.num_tokens)
        written = [until_stop(texts.decode(one), answering.stop) for one in generate(model, prompts, decoding)]
        cut = [cut_left(document, context) or document for document in golds]
        nll = likelihoods(model, cut, context=context, stride=1.0, what=what)
        room = context - answering.max_tokens
        found = {
            id(item): replace(
                _outcome(item, answer, float(value), (gold.num_bytes, gold.num_scored), answering),
                cut_tokens=max(0, len(prompt) - room),
            )
            for item, prompt, answer, value, gold in zip(usable, prompts, written, nll, golds, strict=True)
        }
        unused = {id(item): Outcome(item.id, item.task, item.cluster, reason=item.reason) for item in asked}
        return table_of((unused | found)[id(item)] for item in asked)

    return measure


def _answered(item: Item, answering: Answering) -> str:
    """The first accepted answer as it stands behind the prompt; no space stands before Chinese or Japanese."""
    return ("" if _is_wide(item.answers[0][0]) else answering.separator) + item.answers[0]


def until_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop."""
    return min((text.split(one)[0] for one in stop), key=len, default=text)


def _outcome(item: Item, answer: str, nll: float, sizes: tuple[int, int], answering: Answering) -> Outcome:
    is_finite = bool(np.isfinite(nll))
    return Outcome(
        item.id, item.task, item.cluster,
        value=float(is_right(answer, item.answers, answering)) if is_finite else None,
        reason=None if is_finite else NOT_FINITE,
        gold=item.answers[0], answer=answer,
        nll=(nll,) if is_finite else (), bytes=(sizes[0],), tokens=(sizes[1],),
    )  # fmt: skip
