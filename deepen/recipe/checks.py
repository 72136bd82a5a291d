"""Checks across rooms: settings that are each fine and together impossible, and inputs that are not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from deepen.curate import config as curate_config
from deepen.errors import Problem
from deepen.evaluate import config as evaluate_config
from deepen.formats.yaml_text import Key, YamlText
from deepen.ingest import config as ingest_config
from deepen.model.config import BaseRun, RandomInit
from deepen.recipe.models import Machine, Recipe
from deepen.train import config as train_config


def check(recipe: Recipe, machine: Machine, text: YamlText) -> list[Problem]:
    """Everything that is wrong with a recipe whose values are each valid; places come from ``text``."""
    del machine  # nothing of the machine can contradict a recipe yet
    found = [
        *_check_sources(recipe),
        *curate_config.problems(recipe.curate),
        *_check_mixture(recipe),
        *_check_base(recipe),
        *_check_training(recipe),
        *_check_evaluation(recipe),
    ]
    return [replace(problem, place=text.place(_key(problem.path))) for problem in found]


def _key(dotted: str) -> Key:
    parts = dotted.replace("[", ".").replace("]", "").split(".")
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _check_sources(recipe: Recipe) -> Iterator[Problem]:
    for problem in ingest_config.problems(recipe.ingest):
        path = problem.path if problem.path.startswith("ingest") else f"ingest.{problem.path}"
        yield replace(problem, path=path)
    if not any(source.role in ("domain", "replay") for source in recipe.ingest.sources):
        yield Problem(
            "ingest.sources",
            "there is nothing to train on: every source has the role `watch`",
            "give one `role: domain`",
        )


def _check_mixture(recipe: Recipe) -> Iterator[Problem]:
    roles = {source.role for source in recipe.ingest.sources}
    share = recipe.mix.domain_share
    if share is None:
        return
    if share < 1 and "replay" not in roles:
        remedy = "add a source with `role: replay`, or set domain_share to 1"
        yield Problem(
            "mix.domain_share", f"asks for {1 - share:.0%} replay, and no source has that role", remedy, str(share)
        )
    if share > 0 and "domain" not in roles:
        remedy = "add a source with `role: domain`, or set domain_share to 0"
        yield Problem(
            "mix.domain_share", f"asks for {share:.0%} domain text, and no source has that role", remedy, str(share)
        )


def _check_base(recipe: Recipe) -> Iterator[Problem]:
    base, length = recipe.base, recipe.mix.sequence_length
    trains_vocabulary = recipe.tokenize.vocabulary != "keep"
    if isinstance(base, RandomInit):
        if not trains_vocabulary:
            yield Problem(
                "tokenize.vocabulary",
                "a base with `init: random` has no tokenizer to keep",
                "set {train: 4096}",
                "keep",
            )
        if base.max_length < length:
            yield Problem(
                "base.max_length", f"is shorter than mix.sequence_length ({length})", "", str(base.max_length)
            )
        return
    if trains_vocabulary:
        yield Problem("tokenize.vocabulary", "a new vocabulary does not fit a trained base", "set it to `keep`")
    if isinstance(base, BaseRun):
        if not (Path(base.run) / "recipe.yaml").is_file():
            yield Problem("base.run", "there is no such run", "give the run's folder, for example runs/NAME", base.run)
        return
    yield from _check_base_folder(base, length)


def _check_base_folder(base: str, length: int) -> Iterator[Problem]:
    folder = Path(base).expanduser()
    looks_like_path = base.startswith((".", "/", "~")) or base.count("/") != 1
    if not folder.is_dir():
        if looks_like_path:
            yield Problem(
                "base", "there is no such folder", "give a Hugging Face model folder or a hub id such as org/name", base
            )
        return
    path = folder / "config.json"
    if not path.is_file():
        yield Problem("base", "the folder has no config.json", "give the folder that holds the model's weights", base)
        return
    most = json.loads(path.read_text()).get("max_position_embeddings")
    if most and length > most:
        yield Problem(
            "mix.sequence_length", f"is longer than the base's {most} positions", f"at most {most}", str(length)
        )


def _check_training(recipe: Recipe) -> list[Problem]:
    base = recipe.base
    name = None if isinstance(base, RandomInit) else base.run if isinstance(base, BaseRun) else base
    return train_config.problems(
        recipe.train,
        sequence_length=recipe.mix.sequence_length,
        base_name=name,
    )


def _check_evaluation(recipe: Recipe) -> Iterator[Problem]:
    total_steps, tokens_per_step = train_config.num_steps(recipe.train), recipe.train.batch_tokens
    yield from evaluate_config.problems(recipe.evaluate, total_steps=total_steps, tokens_per_step=tokens_per_step)
    trained = recipe.mix.sequence_length
    for index, probe in enumerate(recipe.evaluate.probes):
        context = getattr(probe, "context", 0)
        if isinstance(recipe.base, RandomInit) and recipe.base.max_length > trained and context > trained:
            yield Problem(
                f"evaluate.probes[{index}].context",
                f"scores documents at positions beyond the {trained} that this network will ever be trained on",
                f"set it, or base.max_length, to {trained}",
                str(context),
            )
