"""What can be done and is probably not meant: said by `deepen check`, and never a reason to stop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from deepen.errors import Problem
from deepen.formats.files.yaml_text import YamlText
from deepen.ingest.config import Source
from deepen.ingest.files import list_files
from deepen.mix.config import smallest_domain_share
from deepen.model.config import BaseRun, RandomInit
from deepen.recipe.checks import key_of
from deepen.recipe.models import Recipe
from deepen.settings import BYTES_PER_TOKEN, rounding_note
from deepen.train.config import base_rates, interval_roundings, num_steps, schedule_roundings
from deepen.train.schedule.learning_rate import resolve_peak
from deepen.train.schedule.methods import Full

_HIGHEST_OF_RANDOM = 1e-2
_HIGHEST_OF_BASE = 1e-3
_HIGHEST_MULTIPLE = 2.0
_MOST_BYTES_PER_TOKEN = 5 * BYTES_PER_TOKEN
"""Compressed files hold up to five times their size: only what is beyond that is said to be too little."""


def doubts(recipe: Recipe, text: YamlText) -> list[Problem]:
    """Everything about a sound recipe that its author should look at again, with places."""
    found = [*_roundings(recipe), *_rate(recipe), *_forgetting(recipe), *_passes(recipe)]
    return [replace(problem, place=text.place(key_of(problem.path))) for problem in found]


def _roundings(recipe: Recipe) -> Iterator[Problem]:
    train, evaluate, mix = recipe.train, recipe.evaluate, recipe.mix
    found = schedule_roundings(train) | interval_roundings(train, evaluate.every)
    amounts = {"evaluate.full_every": evaluate.full_every, "evaluate.lag": evaluate.lag}
    amounts["mix.anneal.last"] = mix.anneal.last if mix.anneal is not None else None
    for name in ("sequence_length", "domain_share"):
        parts = getattr(mix, name)
        if isinstance(parts, tuple):
            amounts |= {f"mix.{name}[{index}].until": part.until for index, part in enumerate(parts)}
    for key, amount in amounts.items():
        if amount is not None:
            note = rounding_note(amount, total_steps=num_steps(train), tokens_per_step=train.batch_tokens)
            found |= {key: note} if note else {}
    for key, note in found.items():
        yield Problem(key, note, "write it in `steps`, or make the run longer or train.batch_tokens smaller")


def _rate(recipe: Recipe) -> Iterator[Problem]:
    train, base = recipe.train, recipe.base
    is_random = isinstance(base, RandomInit)
    name = None if isinstance(base, RandomInit) else base.run if isinstance(base, BaseRun) else base
    rates = base_rates(train, name)
    peak, of_base = resolve_peak(train.learning_rate, rates), rates.known("peak")
    if peak is None:
        return
    message, remedy = "", "0.1x to 0.3x of the base's peak is usual: see `deepen explain train.learning_rate`"
    if is_random or not isinstance(train.method, Full):
        if peak > _HIGHEST_OF_RANDOM:
            message = f"{peak:g} is far above the 1e-4 to {_HIGHEST_OF_RANDOM:g} of new networks and adapters"
            remedy = "try 1e-3"
    elif of_base is not None:
        if peak > _HIGHEST_MULTIPLE * of_base:
            message = f"{peak:g} is {peak / of_base:.3g} times the peak of the base's own pretraining ({of_base:g})"
    elif peak > _HIGHEST_OF_BASE:
        message = f"{peak:g} is above the peaks that bases are pretrained with (1e-4 to {_HIGHEST_OF_BASE:g})"
    if message:
        yield Problem("train.learning_rate", message, remedy, str(train.learning_rate))


def _forgetting(recipe: Recipe) -> Iterator[Problem]:
    roles = {source.role for source in recipe.ingest.sources} | {rows.role for rows in recipe.mix.fixed_rows}
    if "replay" in roles or isinstance(recipe.base, RandomInit) or "forgetting" not in recipe.evaluate.model_fields_set:
        return
    budget = f"{recipe.evaluate.forgetting.budget:.3g}"
    message = f"a budget of {float(budget):.1%} for forgetting, and no source with `role: replay` that would hold it"
    yield Problem("evaluate.forgetting.budget", message, "add general text as a source with `role: replay`", budget)


def _passes(recipe: Recipe) -> Iterator[Problem]:
    """Tokens asked of each role against bytes of its files, which are not read."""
    sources, mix = recipe.ingest.sources, recipe.mix
    if mix.fixed_rows or mix.control or isinstance(mix.domain_share, tuple) or mix.domain_share == "proportional":
        return
    share = smallest_domain_share(mix, has_replay=any(source.role == "replay" for source in sources))
    for role, part in (("domain", share), ("replay", 1 - share)):
        own = [source for source in sources if source.role == role]
        sizes = [_num_bytes(source) for source in own]
        known = [size for size in sizes if size is not None]
        if not own or len(known) < len(own) or sum(known) == 0:
            continue
        asked, there = recipe.train.tokens * part, sum(known) / BYTES_PER_TOKEN
        if asked > mix.max_epochs * there * (_MOST_BYTES_PER_TOKEN / BYTES_PER_TOKEN):
            message = (
                f"{asked:,.0f} tokens are asked of the {role} sources, whose files have {sum(known):,} bytes (about "
                f"{there:,.0f} tokens): {asked / there:,.0f} passes, and mix.max_epochs is {mix.max_epochs:g}"
            )
            yield Problem("train.tokens", message, "train on fewer tokens, or give more text", str(recipe.train.tokens))


def _num_bytes(source: Source) -> int | None:
    """Bytes of a source on this machine; None where they are elsewhere, or a limit takes only some of them."""
    if "://" in source.path or source.limit is not None:
        return None
    return sum(file.num_bytes for file in list_files(source.path, source.format))
