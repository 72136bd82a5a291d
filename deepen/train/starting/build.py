"""Building a run from its settings and inputs, resuming where an earlier start of it left off."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import AdamW
from transformers import PreTrainedModel

from deepen.errors import RunError, TrainingError
from deepen.formats.files.records import keep_records, read_records
from deepen.formats.manifest import StageJob
from deepen.formats.tokens.extension import new_rows_file
from deepen.formats.training.checkpoints import CheckpointInfo, checkpoint_before, newest_intact, read_state
from deepen.formats.training.decisions import DECISIONS, Ledger, open_ledger
from deepen.formats.training.scores import SCORES
from deepen.model.compute.attention import check_isolation
from deepen.model.compute.compiled import Compilations
from deepen.model.compute.precision import bf16_copies, keep_in_bf16
from deepen.model.config import ResolvedBase
from deepen.model.loss.model import LossModel, check_loss
from deepen.model.neftune import add_noise
from deepen.model.token_tables import new_row_ids, token_tables
from deepen.model.weights.streaming import placeholders
from deepen.parallel.config import Compute
from deepen.parallel.kernels import choose_kernels, compiles, prepare_layers
from deepen.parallel.process import Process, resolve_precision, set_up
from deepen.parallel.spread import spread
from deepen.progress import readable, say
from deepen.settings import Interval
from deepen.train.batches.counts import SourceCounts
from deepen.train.batches.prefetch import Prefetch
from deepen.train.batches.read import Batches
from deepen.train.beside.flops import Flops, flops_of
from deepen.train.beside.hooks import NO_HOOKS, Hooks
from deepen.train.beside.late_scores import forget_scores
from deepen.train.checkpoints.files import Keeping, load_checkpoint, remove_later
from deepen.train.checkpoints.saving import Saver, write_and_prune
from deepen.train.checkpoints.sharded import Shards
from deepen.train.config import TrainConfig, base_rates, new_rows_steps, num_steps, rows_per_batch, schedule_roundings
from deepen.train.faults.actions import forget_rolled_back, in_force, remove_rolled_back, restore, set_aside
from deepen.train.faults.order_changes import changes_in_force, describe_changes
from deepen.train.faults.spikes import RecentSteps, SkipSpikes
from deepen.train.retention.build import build_penalties
from deepen.train.run import CHECKPOINTS, METRICS, Calendar, Progress, Run
from deepen.train.schedule.learning_rate import resolve_peak
from deepen.train.schedule.new_rows import NewRowsFirst, RowHold
from deepen.train.schedule.optimizer import build_optimizer
from deepen.train.schedule.parts import RowRate, freeze, rate_multiples
from deepen.train.starting.model import starting_model
from deepen.train.starting.resolved import Resolved, read_resolved, write_resolved
from deepen.train.starting.streamed_model import checked_in_place_of, fill_in, streams
from deepen.train.step import Trainee


def prepare_run(
    config: TrainConfig,
    job: StageJob,
    base: ResolvedBase,
    compute: Compute,
    hooks: Hooks = NO_HOOKS,
    process: Process | None = None,
) -> Run:
    """A run that is ready to go, at its newest intact checkpoint or at the beginning.

    The model is spread over the mesh of ``process``; without one this process is alone.

    Checks first what would be noticed late or never: batches that do not fit the settings, rows longer than the model
    takes, a loss or an attention that is not what we think. Raises ``DeepenError`` for each.
    """
    process = process or set_up(compute)
    newest = process.from_main(newest_intact(_checkpoints(job), say) if process.is_main else None)  # hashed once
    with process.main_first():  # it tidies up, the others find it done
        ledger = _ledger(job, newest)
        found = resume_point(_checkpoints(job), ledger, newest)
        changes = changes_in_force(job.out, job.inputs["mix"].path, found, newest)
        batches = Batches.open(job.inputs["tokenize"].path, job.inputs["mix"].path, *changes)
        _check_batches(config, batches)
        resolved = _resolve(config, job, base, process)
        _forget_later(job, found)
    tokenized = job.inputs["tokenize"].counts
    settled = _Settled(config, job, base, compute, process, resolved, batches)
    loss_model, flops = _model(settled, batches.sequence_length, resumes=found is not None)
    trainee, new_rows = _trainee(settled, loss_model, found)
    names = batches.order.sources
    shards = {**tokenized["sources"], **job.inputs["mix"].counts.get("fixed_rows", {})}
    sizes = [shards[name] for name in names]
    # For dropout, in bases that have it, and NEFTune: other rows get other noise.
    torch.manual_seed(job.seed + (process.mesh.data_index if process.mesh else 0))
    run = Run(
        out=job.out,
        fingerprint=job.fingerprint,
        trainee=trainee,
        batches=batches,
        names=names,
        tokens_per_byte=np.array([_tokens_per_byte(size) for size in sizes]),
        schedule=config.schedule,
        shape=resolved.shape,
        peak_learning_rate=resolved.peak_learning_rate,
        calendar=_calendar(config, hooks.evaluate_every),
        new_rows=new_rows,
        skip_spikes=config.skip_spikes,
        progress=_resume(job, trainee, names, found, RecentSteps((config.skip_spikes or SkipSpikes()).window)),
        ledger=ledger,
        mix=job.inputs["mix"].path,
        divergence=config.divergence,
        hooks=hooks,
        flops=flops,
        prefetch=Prefetch(compute.prefetch_batches, pin=process.device.type == "cuda"),
        compilations=Compilations() if compiles(compute, process) else None,
        saver=_saver(config, job, compute, process),
        order_changes=tuple(describe_changes(job.out, changes)),
    )
    return in_force(run)


@dataclass(frozen=True)
class _Settled:
    """What is known of a run before its model is built."""

    config: TrainConfig
    job: StageJob
    base: ResolvedBase
    compute: Compute
    process: Process
    resolved: Resolved
    batches: Batches


def _model(settled: _Settled, sequence_length: int, *, resumes: bool) -> tuple[LossModel, Flops]:
    """The model to train, checked and spread, and what a step of it costs."""
    config, job, base, compute = settled.config, settled.job, settled.base, settled.compute
    process, precision = settled.process, settled.resolved.precision
    streamed = streams(config, job, base, process)
    model = placeholders(base, job.inputs["tokenize"]) if streamed else starting_model(config, job, base)
    if precision == "pure_bf16":
        keep_in_bf16(model)
    if not streamed:
        model.to(process.device)
    loss_model = LossModel(model, z_loss=config.z_loss)
    choose_kernels(loss_model, compute, process, precision)
    checked = checked_in_place_of(loss_model, base, compute, process) if streamed else loss_model
    _check_model(checked, sequence_length, precision)
    _parts(config, model)
    flops = flops_of(model, process.device, process.world_size)  # before new rows go first, which freezes the rest
    prepare_layers(loss_model, compute, process)
    loss_model = spread(loss_model, process, precision)
    if streamed:
        # Only here do weights get memory: what is not this process's never takes any. Penalties hold the model where it
        # began, so with them a resumed run reads the base, too.
        fill_in(loss_model, job, base, process, resumes=resumes and not config.retention.anchors)
    return loss_model, flops


def _trainee(settled: _Settled, loss_model: LossModel, found: CheckpointInfo | None) -> tuple[Trainee, NewRowsFirst]:
    """The model with its optimizer, and how the run begins."""
    config, job, model = settled.config, settled.job, loss_model.model
    multiples = config.rate_multiples
    # After spreading, which puts other parameters in place: the old ones would be moved for nobody.
    everything = build_optimizer(
        model, config, rate_multiples(model, embeddings=multiples.embeddings, head=multiples.head)
    )
    trainee = Trainee(
        model=loss_model,
        optimizer=everything,
        clip=config.clip,
        compute=settled.compute,
        precision=settled.resolved.precision,
        process=settled.process,
        row_rate=_row_rate(config, job, model),
    )
    # Before new rows go first, which freezes the rest, and before a checkpoint is loaded.
    penalties = build_penalties(config.retention, trainee, job, settled.base, settled.batches)
    optimizer, new_rows = _new_rows_first(settled, everything, model, found)
    return replace(trainee, optimizer=optimizer, hold=new_rows.hold, penalties=penalties), new_rows


def _tokens_per_byte(counts: dict[str, Any]) -> float:
    """Targets of a source's shard for each byte of text that they stand for; of masked sources the answers alone."""
    whole = "targets" not in counts
    targets, num_bytes = (counts["tokens"], counts["bytes"]) if whole else (counts["targets"], counts["target_bytes"])
    return float(targets / max(1, num_bytes))


def _parts(config: TrainConfig, model: PreTrainedModel) -> None:
    """Freeze what is to stay, and make embeddings noisy."""
    if config.freeze:
        say(f"train: {readable(freeze(model, config.freeze))} parameters are frozen")
    if config.neftune_alpha:
        add_noise(model.get_input_embeddings(), config.neftune_alpha)


def _row_rate(config: TrainConfig, job: StageJob, model: PreTrainedModel) -> RowRate | None:
    """The rows that have a rate of their own, in the tables as they are spread."""
    file = new_rows_file(job.inputs["tokenize"].path)
    if config.rate_multiples.new_rows == 1 or file is None:
        return None
    tables = [table for table in token_tables(model).values() if table.requires_grad]
    return RowRate(tables, new_row_ids(file).to(model.device), config.rate_multiples.new_rows)


def _check_batches(config: TrainConfig, batches: Batches) -> None:
    """The order must hold the batches that the settings ask for."""
    for stretch in batches.order.stretches():
        asked = rows_per_batch(config, stretch.sequence_length)
        if stretch.rows_per_batch != asked:
            raise RunError(
                f"the order has {stretch.rows_per_batch} rows per batch of {stretch.sequence_length} tokens each, "
                f"`train.batch_tokens` asks for {asked}",
                hint="run `deepen mix` again",
            )
    usable = len(batches) - sum(hole.num_batches for hole in batches.order.holes)
    if usable < num_steps(config):
        raise RunError(
            f"the order has {usable} batches, the run needs {num_steps(config)}",
            hint="run `deepen mix` again; after a change of mixture, `deepen remix RUN --at STEP` plans the rest",
        )


def _check_model(loss_model: LossModel, sequence_length: int, precision: str) -> None:
    longest = getattr(loss_model.model.config, "max_position_embeddings", None)
    if longest is not None and sequence_length > longest:
        raise TrainingError(
            f"rows of {sequence_length:,} tokens are longer than the {longest:,} that the model takes",
            hint=f"set `mix.sequence_length` to {longest} or less",
        )
    check_loss(loss_model)
    # Kernels that take boundaries take bfloat16: the one that trains is the one to check.
    in_bf16 = precision == "bf16" and loss_model.takes_boundaries
    with bf16_copies(loss_model.model) if in_bf16 else nullcontext():
        check_isolation(loss_model)


def _resolve(config: TrainConfig, job: StageJob, base: ResolvedBase, process: Process) -> Resolved:
    """What the first start of this run settled, or settles now."""
    known = read_resolved(job.out)
    if known is not None:
        if known.total_steps != num_steps(config):
            raise RunError(
                f"`{job.out}` holds a run of {known.total_steps} steps, not {num_steps(config)}",
                hint="give --continue to go on with more tokens, or --redo to begin anew",
            )
        return known
    peak = resolve_peak(config.learning_rate, base_rates(config, None if base.init else base.name))
    if peak is None:
        raise TrainingError(
            f"`{config.learning_rate}`: that rate of `{base.name}`'s own pretraining is not known",
            hint=f"give an absolute rate such as 3e-5, or `train.base_{config.learning_rate.of_base}_learning_rate`",
        )
    shape = config.schedule.shape(total_steps=num_steps(config), tokens_per_step=config.batch_tokens)
    resolved = Resolved(
        **asdict(shape),
        peak_learning_rate=peak,
        precision=resolve_precision(config.precision, process.device),
        new_rows_steps=_new_rows_steps(config, job),
        rounded=tuple(f"{key}: {note}" for key, note in schedule_roundings(config).items()),
    )
    for note in resolved.rounded:
        say(f"train: {note}")
    write_resolved(job.out, resolved)
    return resolved


def _calendar(config: TrainConfig, evaluate_every: Interval | None) -> Calendar:
    amounts = {"total_steps": num_steps(config), "tokens_per_step": config.batch_tokens}
    milestones = Interval((config.save.milestones,)) if config.save.milestones is not None else None
    return Calendar(
        log_every=config.log,
        save_every=config.save.every.every_steps(**amounts),
        save_every_seconds=config.save.every.every_seconds,
        milestone_every=milestones.every_steps(**amounts) if milestones else None,
        evaluate_every=evaluate_every.every_steps(**amounts) if evaluate_every else None,
        evaluated_stay=config.save.evaluated == "all",
    )


def _new_rows_first(
    settled: _Settled, everything: AdamW, model: PreTrainedModel, found: CheckpointInfo | None
) -> tuple[AdamW, NewRowsFirst]:
    """The optimizer that a run is at, and how it begins. A checkpoint of the last step of that time still holds the
    new rows' moments: everything moves from the step after it."""
    file = new_rows_file(settled.job.inputs["tokenize"].path)
    first = NewRowsFirst(settled.resolved.new_rows_steps, settled.config.new_rows_learning_rate)
    if first.steps == 0 or file is None or (found is not None and found.step > first.steps):
        return everything, first
    hold = RowHold(model, new_row_ids(file), everything)
    return hold.optimizer, replace(first, hold=hold)


def _new_rows_steps(config: TrainConfig, job: StageJob) -> int:
    """How long only new rows move; a vocabulary that was to grow if that is worth it may not have grown."""
    steps = new_rows_steps(config)
    if steps and new_rows_file(job.inputs["tokenize"].path) is None:
        say("train: the vocabulary did not grow, so there are no new rows to train first")
        return 0
    return steps


def _saver(config: TrainConfig, job: StageJob, compute: Compute, process: Process) -> Saver:
    keeping = Keeping(config.save.keep, weights_only=config.save.milestones_weights_only)
    shards = Shards(process) if process.mesh is not None else None
    write = partial(shards.write if shards else write_and_prune, _checkpoints(job), keeping, job.out / METRICS)
    return Saver(write, process.device, background=compute.background_saves, shards=shards)


def _checkpoints(job: StageJob) -> Path:
    directory = job.out / CHECKPOINTS
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _ledger(job: StageJob, newest: CheckpointInfo | None) -> Ledger:
    """What earlier starts of the run decided and what of it is in force, given their newest checkpoint."""
    reached = newest.step if newest else 0
    ledger, void = open_ledger(job.out / DECISIONS, reached)
    for decision in void:
        say(f"train: `{decision.action}`, decided at step {decision.step}, is void")
    for rewind in ledger.rewinds():
        if reached < rewind.step:
            # A start before this one ended on its way back, perhaps in the middle of this.
            set_aside(job.out, rewind)
    forget_rolled_back(job.out, ledger)
    remove_rolled_back(_checkpoints(job), ledger, reached)
    return ledger


def resume_point(directory: Path, ledger: Ledger, newest: CheckpointInfo | None) -> CheckpointInfo | None:
    """The checkpoint to go on from: the newest, or an earlier one where that was being rolled back."""
    if newest is None:
        return None
    limit = ledger.resume_limit(newest.step)
    return newest if limit == newest.step else checkpoint_before(directory, limit + 1, good_only=False)


def _forget_later(job: StageJob, found: CheckpointInfo | None) -> None:
    """Drop everything that was recorded or saved after the checkpoint ``found`` (None: the beginning)."""
    step = found.step if found else 0
    judged_step = read_state(found).get("judged_step", 0) if found else 0
    remove_later(_checkpoints(job), step)
    forget_scores(_checkpoints(job), judged_step)

    def is_kept(record: dict[str, Any]) -> bool:
        is_late = record.get("known_at") is not None
        return bool(record["step"] <= (judged_step if is_late else step))

    for name in (METRICS, SCORES):
        keep_records(job.out / name, is_kept)


def _resume(
    job: StageJob, trainee: Trainee, names: tuple[str, ...], found: CheckpointInfo | None, recent: RecentSteps
) -> Progress:
    """Load the checkpoint ``found``, if any; ``recent`` is empty and filled with what it remembers."""
    progress = Progress([SourceCounts() for _ in names], recent=recent)
    if found is None:
        return progress
    last = max(read_records(job.out / METRICS), key=lambda record: record["step"], default={})
    state = load_checkpoint(found, trainee.model.model, trainee.optimizer, trainee.process.rank)
    say(f"resuming after step {found.step}")
    restore(progress, names, state)
    progress.judged_step, progress.saved_step = state.get("judged_step", 0), found.step
    progress.elapsed_seconds = last.get("elapsed_seconds", 0.0)
    return progress
