"""The model that training starts from, made ready for the method: adapters beside a frozen base, or the base itself."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from deepen.errors import TrainingError
from deepen.formats.manifest import Artifact, StageJob
from deepen.formats.tokens.extension import new_rows_file
from deepen.model.adapters import adapters_of, add_adapters
from deepen.model.config import ResolvedBase
from deepen.model.token_tables import token_tables
from deepen.model.weights.load import load_run_model
from deepen.progress import readable, say
from deepen.train.config import TrainConfig, base_rates
from deepen.train.schedule.learning_rate import resolve_peak
from deepen.train.schedule.methods import Start

_LOW_RATE_OF_ADAPTERS = 5e-5
"""Half of the lowest rate that arXiv 2405.09673 found good for adapters."""


def starting_model(config: TrainConfig, job: StageJob, base: ResolvedBase) -> PreTrainedModel:
    """The base with rows for new tokens and what `train.method` adds, on the CPU, as every start of the run has it."""
    tokenize = job.inputs["tokenize"]
    model = load_run_model(base, tokenize, seed=job.seed)
    grew = new_rows_file(tokenize.path) is not None
    adapters = config.method.adapters(Start(tuple(token_tables(model)), grew, base.fingerprint))
    if adapters is not None:
        add_adapters(model, adapters, seed=job.seed)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        whole = sum(parameter.numel() for parameter in model.parameters())
        say(f"train: {adapters.title}; {readable(trained)} of {readable(whole)} parameters are trained")
        _advise_rate(config, base)
    return model


def _advise_rate(config: TrainConfig, base: ResolvedBase) -> None:
    """Adapters at the rate of a full training learn next to nothing, and nothing else would say so."""
    peak = resolve_peak(config.learning_rate, base_rates(config, None if base.init else base.name))
    if peak is not None and peak < _LOW_RATE_OF_ADAPTERS:
        say(f"train: a peak learning rate of {peak:g} is low for adapters: 1e-4 to 2e-4 is usual (see docs/train.md)")


def counts_of_method(config: TrainConfig, model: PreTrainedModel) -> dict[str, Any]:
    """What the manifest says of objective and method: how many of the weights are trained, and through what."""
    adapters = adapters_of(model)
    return {
        "objective": config.objective,
        "method": config.method.use,
        "trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "adapters": None if adapters is None else adapters.model_dump(mode="json"),
    }


def check_objective(config: TrainConfig, tokenize: Artifact, mix: Artifact) -> None:
    """Raise ``TrainingError`` when `objective: sft` would train words of a domain source that are no answers.

    Says how often conversations are cut because they are longer than a row: behind a cut, questions are out of sight.
    """
    if config.objective != "sft":
        return
    fixed = mix.counts.get("fixed_rows", {})
    for name, counts in {**tokenize.counts["sources"], **fixed}.items():
        if counts["role"] != "domain":
            continue
        plain = _rows_without_answers(counts) if name in fixed else counts["documents"] - counts.get("conversations", 0)
        if plain:
            raise TrainingError(
                f"`train.objective: sft`: {plain:,} of {counts['documents']:,} documents of `{name}` have no answers "
                "marked, so all of their words would be trained",
                hint="make it conversations (`ingest.sources.conversations`), give it the role `replay`, or use "
                "`objective: next_token`",
            )
        cuts = mix.counts["sources"].get(name, {}).get("cuts", 0)
        if cuts:
            say(
                f"train: conversations of `{name}` are longer than a row and cut in {cuts:,} places; what is behind "
                "a cut is trained without what was asked before it (a longer `mix.sequence_length` keeps them whole)"
            )


def _rows_without_answers(counts: dict[str, Any]) -> int:
    return 0 if counts["targets"] < counts["tokens"] else int(counts["documents"])
