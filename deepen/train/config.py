"""How the model is trained. All batch quantities are global and in tokens; layout is the machine's business."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from deepen.errors import Problem
from deepen.formats.tokens.order import rows_in_batch
from deepen.plug import plug_from
from deepen.settings import Amount, AmountSetting, Count, Interval, IntervalSetting, Many, Settings, rounding_note
from deepen.train.faults.divergence import Divergence
from deepen.train.faults.spikes import SkipSpikes
from deepen.train.retention.config import Retention
from deepen.train.schedule.learning_rate import BaseRates, PeakRate, RateSetting, resolve_peak
from deepen.train.schedule.methods import METHODS, Full, Method, Plans
from deepen.train.schedule.schedules import SCHEDULES, Cosine, Multiple, Schedule

_LARGEST_BATCH_ROUNDING = 0.01


class Save(Settings):
    """When checkpoints are written and which are kept."""

    every: IntervalSetting = Interval((Amount(500, "steps"), Amount(1800, "seconds")))
    """How often: every 500 steps or 30 minutes, whichever comes first; our choice: at most half an hour is lost."""
    keep: int = Field(default=3, ge=1)
    """Newest checkpoints that are kept; our choice: one may be damaged and the one before it, too."""
    milestones: AmountSetting | None = Amount(0.1, "share")
    """Checkpoints that are never pruned: every 10 % of the run (our choice), besides each that was evaluated, the last,
    and the one where a WSD decay begins. None: only those."""
    milestones_weights_only: bool = False
    """Drop the optimizer's state (two thirds of the bytes) of a milestone once it is no longer among the newest: it can
    still be scored, chosen and exported, but training cannot go on, branch off or be rolled back there. The newest, the
    last good one and the one where a decay begins keep theirs. Our choice: off, since disk is cheaper than a run."""
    evaluated: Literal["all", "best"] = "all"
    """Which of the checkpoints scored in the run are milestones: all, or only the one that gained most, the one that
    forgot least and the last good one (`held_out` against the base; the last within the forgetting budget). Our choice:
    all, so that the choice afterwards has all of them; `best` for models of which few fit on the disk."""
    self_test: bool = True
    """Before the first step, write a whole checkpoint where the run's will lie, load it, compare every bit and remove
    it: a fault of disk, format or model is found then and not after days. Costs one save and one load. Our choice."""


class RateMultiples(Settings):
    """Multiples of the schedule's learning rate for parts of the model."""

    embeddings: Multiple = 1.0
    """The input embedding, and a head tied to it."""
    head: Multiple = 1.0
    """The output head, where it is not tied."""
    new_rows: Multiple = 1.0
    """Rows of tokens that the vocabulary grew by, in both."""


class TrainConfig(Settings):
    """The training run."""

    tokens: Count = Field(gt=0)
    """Length of the run in tokens, padding included; rounded up to whole batches."""
    batch_tokens: Count = Field(default=2_000_000, gt=0)
    """Tokens per optimizer step over all devices, rounded to whole rows. 2M: Ibrahim et al. (arXiv 2403.08763) used
    2.26M; small runs and models want less (65k to 500k)."""
    learning_rate: RateSetting = PeakRate(0.1, of_base="peak")
    """Peak learning rate: ``3e-5``, or a multiple of the base's own peak (``0.1x base``) or final rate (``1x base
    final``). 0.1x to 0.3x of the peak is typical below 50B tokens; sources disagree: arXiv 2403.08763 rewarms to 1.0x
    with replay, 2407.07263 starts at the base's final rate without warm-up."""
    base_peak_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the base's own pretraining, for ``x base``; None: our table of published peaks."""
    base_final_learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate that the base's pretraining ended with, for ``x base final``; None: our table of published ones."""
    schedule: Annotated[Schedule, plug_from(SCHEDULES)] = Cosine()
    """``cosine`` or ``linear`` for a run of known length; ``wsd``, ``infinite`` or ``constant`` when it should stay
    extendable."""
    objective: Literal["next_token", "sft"] = "next_token"
    """``next_token``: every token of plain documents, and of conversations what their mask says (the answers). ``sft``:
    the same loss for a run that teaches to answer. Every domain source must then consist of conversations or prompts
    with answers, plain text comes as replay only, and rows are not cut at random (`mix.packing: best_fit`)."""
    method: Annotated[Method, plug_from(METHODS)] = Full()
    """Which weights are trained: ``full``, or ``lora`` (adapters beside a frozen base)."""
    rate_multiples: RateMultiples = RateMultiples()
    """Learning rates of embeddings, head and new rows relative to the rest: 1, as the bases were trained."""
    freeze: Many[str] = ()
    """Patterns of parameter names that do not move, such as `model.layers.[0-3].*` (Guo et al., arXiv 2406.14833,
    freeze layers as a baseline against forgetting; replay did better there)."""
    neftune_alpha: float = Field(default=0.0, ge=0)
    """Noise on the embeddings of at most alpha / sqrt(T d) (arXiv 2310.05914, which uses 5 for instruction data); 0:
    none, since it serves style and not knowledge."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "pure_bf16"] = "auto"
    """``bf16``: forward and backward in bfloat16 on copies of fp32 weights (arXiv 1710.03740; 18 bytes per parameter);
    ``pure_bf16``: weights and moments in bfloat16 too, rounded stochastically (8 bytes; arXiv 2010.06192); ``tf32``:
    fp32 whose products a GPU may round to TensorFloat-32, on a CPU the same as fp32. ``auto``: bf16 where the
    GPU or the CPU (AVX512_BF16, AMX) computes in it, else fp32; decided when the run starts and written down, since it
    changes results."""
    retention: Retention = Retention()
    """Penalties on leaving the base: ``l2_sp``, ``ewc`` (weights), ``kl`` (predictions on replay). Our choice: none,
    since replay alone is the better studied answer."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices; none on embeddings, norms and biases (OLMo 2, arXiv 2501.00656)."""
    betas: tuple[float, float] = Field(default=(0.9, 0.95), strict=False)
    """AdamW's averaging of gradient and squared gradient (OLMo 2, arXiv 2501.00656; Llama 2, 2307.09288)."""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon (OLMo 2, arXiv 2501.00656, which lowered it from 1e-5)."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm; longer gradients are scaled down (OLMo 2, Llama 2)."""
    z_loss: float = Field(default=1e-5, ge=0)
    """Weight of log(Z)^2 in the objective, never in reported losses (OLMo 2, arXiv 2501.00656; PaLM: 1e-4)."""
    new_rows_first: AmountSetting | None = None
    """How long, at the beginning, only the rows of new tokens move, all else bit-identical: steps, tokens, or a share
    such as ``5%``, the most that is usual. None: everything moves from the start. For a vocabulary that grows
    (`tokenize.vocabulary: {extend: ...}`)."""
    new_rows_learning_rate: Multiple = 5.0
    """Learning rate of that time as a multiple of the schedule's. Practice is 3 to 10; we know of no controlled
    comparison, so the default lies between."""
    skip_spikes: SkipSpikes | None = SkipSpikes()
    """When a batch is passed over because its loss or gradient is far above what recent steps had; null: never. What
    is not finite is always passed over."""
    divergence: Divergence | None = Divergence()
    """When a slowly rising loss is answered, and how: a lower learning rate, then the way back to an earlier
    checkpoint, then the end; null: never."""
    save: Save = Save()
    """Checkpoints."""
    log: int = Field(default=1, ge=1)
    """Steps between records in metrics.jsonl."""


def num_steps(config: TrainConfig) -> int:
    """Optimizer steps of the run: ``tokens / batch_tokens``, rounded up."""
    return math.ceil(config.tokens / config.batch_tokens)


def new_rows_steps(config: TrainConfig) -> int:
    """Steps at the beginning in which only new rows move: at least one if any are asked for."""
    if config.new_rows_first is None:
        return 0
    return max(1, config.new_rows_first.in_steps(total_steps=num_steps(config), tokens_per_step=config.batch_tokens))


def schedule_roundings(config: TrainConfig) -> dict[str, str]:
    """Parts of the schedule that whole steps make notably longer or shorter than asked: key, and what became of it."""
    parts = {"train.new_rows_first": (config.new_rows_first, 1)}
    for name, least in (("warmup", 0), ("cooldown", 0), ("decay", 1)):
        parts[f"train.schedule.{name}"] = (getattr(config.schedule, name, None), least)
    return {key: note for key, (amount, least) in parts.items() if (note := _rounding(config, amount, least))}


def interval_roundings(config: TrainConfig, evaluate_every: Interval) -> dict[str, str]:
    """The same for what recurs, where the recipe gives it."""
    given = config.save.model_fields_set
    intervals = {
        "train.save.every": config.save.every.amounts if "every" in given else (),
        "train.save.milestones": (config.save.milestones,) if "milestones" in given else (),
        "evaluate.every": evaluate_every.amounts,
    }
    found = {key: [_rounding(config, amount, 1) for amount in amounts] for key, amounts in intervals.items()}
    return {key: "; ".join(filter(None, notes)) for key, notes in found.items() if any(notes)}


def _rounding(config: TrainConfig, amount: Amount | None, least: int) -> str | None:
    if amount is None:
        return None
    return rounding_note(amount, total_steps=num_steps(config), tokens_per_step=config.batch_tokens, least=least)


def base_rates(config: TrainConfig, base_name: str | None) -> BaseRates:
    """What is known of the rates that the base was pretrained with."""
    return BaseRates(base_name, config.base_peak_learning_rate, config.base_final_learning_rate)


def rows_per_batch(config: TrainConfig, sequence_length: int) -> int:
    """Rows of ``sequence_length`` tokens in a batch: the nearest whole number, at least 1."""
    return rows_in_batch(config.batch_tokens, sequence_length)


def problems(
    config: TrainConfig, *, sequence_length: int, base_name: str | None, evaluate_every: Interval | None = None
) -> list[Problem]:
    """Everything in the training settings that cannot work; paths are complete (``train.tokens``).

    ``base_name`` is the base's hub id or folder, None for a random network.
    """
    return [
        *_batch_problems(config, sequence_length),
        *_rate_problems(config, base_name),
        *_schedule_problems(config),
        *_new_rows_problems(config),
        *_interval_problems(config, evaluate_every),
    ]


def _batch_problems(config: TrainConfig, sequence_length: int) -> Iterator[Problem]:
    if config.tokens < config.batch_tokens:
        yield Problem(
            "train.tokens", f"the run is shorter than one batch of {config.batch_tokens:,} tokens",
            "train on more tokens, or make `train.batch_tokens` smaller", f"{config.tokens:,}",
        )  # fmt: skip
    rows = rows_per_batch(config, sequence_length)
    if abs(rows * sequence_length / config.batch_tokens - 1) > _LARGEST_BATCH_ROUNDING:
        yield Problem(
            "train.batch_tokens", f"is not a whole number of rows of {sequence_length:,} tokens",
            f"use {rows * sequence_length}", f"{config.batch_tokens:,}",
        )  # fmt: skip


def _rate_problems(config: TrainConfig, base_name: str | None) -> Iterator[Problem]:
    if base_name is None and config.learning_rate.of_base:
        yield Problem(
            "train.learning_rate", "a random network has no base whose peak it could be a multiple of",
            "give an absolute rate such as 1e-3", str(config.learning_rate),
        )  # fmt: skip
    elif resolve_peak(config.learning_rate, base_rates(config, base_name)) is None:
        which = config.learning_rate.of_base
        yield Problem(
            "train.learning_rate", f"the {which} learning rate that `{base_name}` was pretrained with is not known",
            f"give an absolute rate such as 3e-5, or `train.base_{which}_learning_rate`", str(config.learning_rate),
        )  # fmt: skip


def _schedule_problems(config: TrainConfig) -> Iterator[Problem]:
    found = config.schedule.problems(total_steps=num_steps(config), tokens_per_step=config.batch_tokens)
    for message in found:
        yield Problem("train.schedule", message, "make the run longer or the warm-up and decay shorter")
    if not all(0 <= beta < 1 for beta in config.betas):
        yield Problem("train.betas", "both must be at least 0 and below 1", value=str(config.betas))


def _new_rows_problems(config: TrainConfig) -> Iterator[Problem]:
    first = config.new_rows_first
    if first is None:
        return
    if first.unit == "seconds":
        yield Problem("train.new_rows_first", "may not depend on time", "use steps, tokens or %", str(first))
        return
    shape = config.schedule.shape(total_steps=num_steps(config), tokens_per_step=config.batch_tokens)
    steps = new_rows_steps(config)
    end = shape.decay_start if config.schedule.extendable else shape.total_steps - 1
    if steps + shape.warmup_steps > end:
        message = f"{steps} steps for new rows and {shape.warmup_steps} of warm-up after them do not fit into {end}"
        yield Problem("train.new_rows_first", message, "make it shorter, or the run longer", str(first))


def method_problems(config: TrainConfig, *, random_base: bool, grows: bool) -> Iterator[Problem]:
    """What the method cannot go with; ``grows``: the vocabulary is to grow."""
    plans = Plans(random_base=random_base, grows=grows, freezes=bool(config.freeze))
    for key, message, remedy in config.method.problems(plans):
        yield Problem(f"train.{key}", message, remedy, str(getattr(config.method, key.rpartition(".")[2], "")))


def _interval_problems(config: TrainConfig, evaluate_every: Interval | None) -> Iterator[Problem]:
    total_steps = num_steps(config)
    intervals = {"train.save.every": config.save.every if "every" in config.save.model_fields_set else None}
    intervals["evaluate.every"] = evaluate_every
    if config.save.milestones is not None and "milestones" in config.save.model_fields_set:
        intervals["train.save.milestones"] = Interval((config.save.milestones,))
    for path, interval in intervals.items():
        if interval is None:
            continue
        steps = interval.every_steps(total_steps=total_steps, tokens_per_step=config.batch_tokens)
        if steps is not None and steps > total_steps and (interval.every_seconds is None or path == "evaluate.every"):
            yield Problem(path, f"never happens in a run of {total_steps} steps", "make it shorter", str(interval))
        if path != "train.save.every" and interval.every_seconds is not None:
            yield Problem(
                path, "would differ from run to run: it may not depend on time", "use steps, tokens or %", str(interval)
            )
