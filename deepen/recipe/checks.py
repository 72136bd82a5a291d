"""Checks across rooms: settings that are each fine and together impossible, and inputs that are not there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deepen.curate import config as curate_config
from deepen.curate.config import CurateConfig
from deepen.errors import Problem
from deepen.evaluate import config as evaluate_config
from deepen.evaluate.config import EvaluateConfig
from deepen.evaluate.forgetting import config as forgetting
from deepen.evaluate.forgetting.config import Circumstances
from deepen.evaluate.probes.held_out import HeldOut
from deepen.export.config import ExportConfig
from deepen.formats.files.yaml_text import Key, YamlText
from deepen.ingest import config as ingest_config
from deepen.ingest.config import Source
from deepen.mix import config as mix_config
from deepen.mix.config import MixConfig
from deepen.model.config import BaseRun, BaseSetting, RandomInit
from deepen.recipe.layouts import read_config_json
from deepen.recipe.models import Recipe
from deepen.tokenize import config as tokenize_config
from deepen.tokenize.config import ExtendVocabulary, TokenizeConfig, TrainVocabulary
from deepen.train import config as train_config
from deepen.train.config import TrainConfig
from deepen.train.retention import config as retention
from deepen.train.schedule.methods import Full


@dataclass(frozen=True)
class Sections:
    """The parts of a recipe that are each valid; what is not is None, so that the rest can still be checked."""

    base: str | BaseRun | RandomInit | None
    sources: tuple[Source | None, ...]
    curate: CurateConfig | None
    tokenize: TokenizeConfig | None
    mix: MixConfig | None
    train: TrainConfig | None
    evaluate: EvaluateConfig | None
    export: ExportConfig | None = None


_ROOMS = {
    "curate": CurateConfig, "tokenize": TokenizeConfig, "mix": MixConfig, "train": TrainConfig,
    "evaluate": EvaluateConfig, "export": ExportConfig,
}  # fmt: skip


def sections_of(recipe: Recipe) -> Sections:
    """All parts of a valid recipe."""
    return Sections(recipe.base, recipe.ingest.sources, **{name: getattr(recipe, name) for name in _ROOMS})


def salvage(data: Mapping[str, Any], wrong: Iterable[Key]) -> Sections:
    """The parts of a recipe that are valid once the ``wrong`` keys are taken out of its ``data``."""
    data = deepcopy(dict(data))
    for key in wrong:
        _take_out(data, key)
    ingest = data.get("ingest")
    sources = ingest.get("sources") if isinstance(ingest, dict) else None
    return Sections(
        base=_valid(BaseSetting, data.get("base")),
        sources=tuple(_valid(Source, source) for source in sources) if isinstance(sources, list) else (),
        **{name: _valid(kind, data.get(name, {})) for name, kind in _ROOMS.items()},
    )


def _take_out(data: Any, key: Key) -> None:
    for part in key[:-1]:
        reachable = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if not reachable:
            return
        data = data[part]
    if isinstance(data, dict) and key:
        data.pop(str(key[-1]), None)


def _valid(kind: Any, value: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return None


def check(sections: Sections, text: YamlText) -> list[Problem]:
    """Everything that is wrong between settings that are each valid, and with inputs; places come from ``text``."""
    found = [*_check_sources(sections), *_check_mixture(sections), *_check_base(sections)]
    found += [*_check_forgetting(sections), *_check_retention(sections)]
    if sections.curate is not None:
        known = [source.name for source in sections.sources if source is not None]
        all_known = sections.sources and None not in sections.sources
        found += curate_config.problems(sections.curate, known if all_known else None)
    if sections.tokenize is not None:
        found += tokenize_config.problems(sections.tokenize)
    if sections.train is not None and sections.mix is not None and sections.base is not None:
        found += _check_training(sections.train, sections.mix, sections.base)
        if sections.evaluate is not None:
            found += _check_evaluation(sections.evaluate, sections.train, sections.mix, sections.base)
    if sections.train is not None and sections.tokenize is not None:
        found += _check_new_rows(sections.train, sections.tokenize)
        found += _check_method(sections.train, sections.tokenize, sections.base)
    found += _check_objective(sections)
    if sections.export is not None and sections.export.adapter and sections.train is not None:
        found += _check_adapter(sections.train)
    if sections.mix is not None and sections.tokenize is not None:
        found += _check_fixed_rows(sections.mix, sections.tokenize)
    return [replace(problem, place=text.place(key_of(problem.path))) for problem in found]


def key_of(dotted: str) -> Key:
    """``curate.steps[0].min`` as ``("curate", "steps", 0, "min")``."""
    parts = dotted.replace("[", ".").replace("]", "").split(".")
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _check_sources(sections: Sections) -> Iterator[Problem]:
    for index, source in enumerate(sections.sources):
        if source is not None:
            yield from ingest_config.problems_of(source, index)
    roles = [source.role for source in sections.sources if source is not None]
    if roles and len(roles) == len(sections.sources) and set(roles) == {"watch"}:
        message = "there is nothing to train on: every source has the role `watch`"
        yield Problem("ingest.sources", message, "give one `role: domain`")


def _check_mixture(sections: Sections) -> Iterator[Problem]:
    mix, train = sections.mix, sections.train
    if mix is None:
        return
    if train is not None:
        steps = train_config.num_steps(train)
        yield from mix_config.timing_problems(mix, total_steps=steps, tokens_per_step=train.batch_tokens)
    if sections.sources and None not in sections.sources:
        yield from mix_config.problems(mix, [(source.name, source.role) for source in sections.sources if source])


def _check_base(sections: Sections) -> Iterator[Problem]:
    base, length = sections.base, sections.mix.longest if sections.mix is not None else 0
    trains_vocabulary = sections.tokenize is not None and isinstance(sections.tokenize.vocabulary, TrainVocabulary)
    if isinstance(base, RandomInit):
        if sections.tokenize is not None and not trains_vocabulary:
            message = "a base with `init: random` has no tokenizer to keep or to extend"
            yield Problem("tokenize.vocabulary", message, "set {train: 4096}")
        if base.max_length < length:
            message = f"is shorter than mix.sequence_length ({length})"
            yield Problem("base.max_length", message, f"at least {length}", str(base.max_length))
    elif trains_vocabulary:
        message = "a new vocabulary does not fit a trained base"
        yield Problem("tokenize.vocabulary", message, "set it to `keep`, or to {extend: auto}")
    if isinstance(base, BaseRun) and not (Path(base.run) / "recipe.yaml").is_file():
        yield Problem("base.run", "there is no such run", "give the run's folder, for example runs/NAME", base.run)
    if isinstance(base, str):
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
    config = read_config_json(folder)
    if config is None:
        yield Problem("base", f"`{path}` is no JSON object that can be read", "fetch the model again", base)
        return
    most = config.get("max_position_embeddings")
    if isinstance(most, int) and most and length > most:
        yield Problem(
            "mix.sequence_length", f"is longer than the base's {most} positions", f"at most {most}", str(length)
        )


def _check_training(train: TrainConfig, mix: MixConfig, base: str | BaseRun | RandomInit) -> list[Problem]:
    name = None if isinstance(base, RandomInit) else base.run if isinstance(base, BaseRun) else base
    # Of several lengths each must divide the batch, which the mixture's own checks say.
    length = mix.longest if len(mix.lengths) == 1 else 1
    return train_config.problems(train, sequence_length=length, base_name=name)


def _check_new_rows(train: TrainConfig, tokenize: TokenizeConfig) -> Iterator[Problem]:
    if train.new_rows_first is not None and not isinstance(tokenize.vocabulary, ExtendVocabulary):
        message = "there are no new rows: the vocabulary does not grow"
        remedy = "take it out, or set tokenize.vocabulary: {extend: auto}"
        yield Problem("train.new_rows_first", message, remedy, str(train.new_rows_first))


def _check_method(
    train: TrainConfig, tokenize: TokenizeConfig, base: str | BaseRun | RandomInit | None
) -> Iterator[Problem]:
    grows = isinstance(tokenize.vocabulary, ExtendVocabulary)
    yield from train_config.method_problems(train, random_base=isinstance(base, RandomInit), grows=grows)


def _check_retention(sections: Sections) -> Iterator[Problem]:
    train, tokenize = sections.train, sections.tokenize
    if train is None or not train.retention.strengths:
        return
    around = retention.Surroundings(
        adapters=not isinstance(train.method, Full),
        random_base=isinstance(sections.base, RandomInit),
        grows=tokenize is not None and isinstance(tokenize.vocabulary, ExtendVocabulary),
        has_replay=_has_replay(sections),
    )
    yield from retention.problems(train.retention, around)


def _has_replay(sections: Sections) -> bool | None:
    """Whether there is text of the base's own kind; None where that cannot be told."""
    if sections.mix is None or not sections.sources or None in sections.sources:
        return None
    roles = {source.role for source in sections.sources if source is not None}
    return "replay" in roles | {rows.role for rows in sections.mix.fixed_rows}


def _check_adapter(train: TrainConfig) -> Iterator[Problem]:
    if isinstance(train.method, Full):
        yield Problem("export.adapter", "there are no adapters: all weights are trained", "leave it out", "true")


def _check_objective(sections: Sections) -> Iterator[Problem]:
    """What can be said of `objective: sft` before any document is read; the rest is checked before training."""
    if sections.train is None or sections.train.objective != "sft":
        return
    if sections.mix is not None and (sections.mix.packing == "concatenate" or sections.mix.order != "shuffled"):
        key = "packing" if sections.mix.packing == "concatenate" else "order"
        message = "cuts conversations at random, so that answers would be trained without their questions"
        value = str(getattr(sections.mix, key))
        yield Problem(f"mix.{key}", message, "with `train.objective: sft`, leave it out", value)
    if sections.tokenize is not None and sections.tokenize.template == "none":
        message = "a model that is taught to answer is asked through its chat template, and this writes none"
        yield Problem("tokenize.template", message, "set `auto`", "none")
    for index, source in enumerate(sections.sources):
        if source is not None and source.role == "domain" and source.conversations == "as_text":
            message = f"source `{source.name}`: all words of its conversations would be trained, questions as well"
            remedy = "with `train.objective: sft`, set `answers`, or make its role `replay`"
            yield Problem(f"ingest.sources[{index}].conversations", message, remedy, "as_text")


def _check_fixed_rows(mix: MixConfig, tokenize: TokenizeConfig) -> Iterator[Problem]:
    if mix.fixed_rows and isinstance(tokenize.vocabulary, TrainVocabulary):
        message = "hold ids of another tokenizer, and this run learns a vocabulary of its own"
        yield Problem("mix.fixed_rows", message, "leave them out, or take a base with the tokenizer that made them")


def _check_evaluation(
    evaluate: EvaluateConfig, train: TrainConfig, mix: MixConfig, base: str | BaseRun | RandomInit
) -> Iterator[Problem]:
    total_steps = train_config.num_steps(train)
    yield from evaluate_config.problems(evaluate, total_steps=total_steps, tokens_per_step=train.batch_tokens)
    trained = mix.longest
    for index, probe in enumerate(evaluate.probes):
        context = getattr(probe, "context", 0)
        if isinstance(base, RandomInit) and base.max_length > trained and context > trained:
            yield Problem(
                f"evaluate.probes[{index}].context",
                f"scores documents at positions beyond the {trained} that this network will ever be trained on",
                f"set it, or base.max_length, to {trained}",
                str(context),
            )


def _check_forgetting(sections: Sections) -> Iterator[Problem]:
    evaluate, mix, sources = sections.evaluate, sections.mix, sections.sources
    if evaluate is None or mix is None or not sources or None in sources:
        return
    roles = {source.role for source in sources if source is not None} | {rows.role for rows in mix.fixed_rows}
    measures_kept = any(
        bool(roles & {"replay", "watch"}) if isinstance(probe, HeldOut) else getattr(probe, "ability", None) == "kept"
        for probe in evaluate.in_loop.all_probes
    )
    circumstances = Circumstances(
        has_replay="replay" in roles,
        domain_share=mix_config.smallest_domain_share(mix, has_replay="replay" in roles),
        changeable_order=not mix.is_megatron,
        penalties=frozenset(sections.train.retention.strengths if sections.train is not None else ()),
    )
    yield from forgetting.problems(evaluate.forgetting, circumstances, measures_kept=measures_kept)
