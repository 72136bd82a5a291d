"""The train stage: token shards and training order in, checkpoints, metrics and scores out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.formats.files.atomic import FileEntry, entry_of
from deepen.formats.manifest import (
    MANIFEST,
    Manifest,
    StageJob,
    begin_stage,
    finish_stage,
    read_manifest,
)
from deepen.formats.tokens.order import Order, appended_files
from deepen.formats.training.checkpoints import list_checkpoints, read_checkpoint
from deepen.formats.unchanged import check_inputs, check_shards_without_blocks
from deepen.model.config import ResolvedBase
from deepen.parallel.config import Compute, Mesh
from deepen.progress import readable, say, track
from deepen.train.beside.hooks import NO_HOOKS, Hooks
from deepen.train.config import Save, TrainConfig
from deepen.train.starting.resolved import SCHEDULE

if TYPE_CHECKING:
    from deepen.train.run import Run

FORMAT = 2


def train(
    config: TrainConfig,
    job: StageJob,
    *,
    base: ResolvedBase,
    compute: Compute,
    hooks: Hooks = NO_HOOKS,
    mesh: Mesh | None = None,
) -> Manifest:
    """Train ``base`` on the batches of ``job.inputs["mix"]`` over the shards of ``job.inputs["tokenize"]``.

    ``hooks.evaluate(model, step, tokens)`` is called at every ``evaluate_every`` and at the end; each scored model is
    saved as a milestone. When ``job.out`` holds checkpoints, the run goes on from the newest intact one, and every
    later tensor and logged loss is what it would have been without the stop. Raises ``TrainingError`` when the loss
    stays non-finite, and its subclass ``StoppedError`` (exit code 3) after SIGTERM, SIGINT or the limit of time.

    With ``mesh`` the processes that a launcher started beside this one train together; all of them call this. One of
    them writes what is written once, and all return the same manifest.
    """
    from deepen.parallel.process import leave, set_up
    from deepen.train.beside.interrupt import stop_on_signal
    from deepen.train.beside.watchdog import StepAlarm
    from deepen.train.checkpoints.saving import cannot_write
    from deepen.train.loop import training_steps
    from deepen.train.starting.build import prepare_run
    from deepen.train.starting.model import check_objective

    check_inputs(job, {"tokenize": [""], "mix": [""], "curate": ["held_out/"], "baseline": [""]})
    check_objective(config, job.inputs["tokenize"], job.inputs["mix"])
    process = set_up(compute, mesh)
    with process.main_first():
        for name in ("tokenize", "mix"):
            check_shards_without_blocks(job.inputs[name], job.out / ".hashes.json")
        begin_stage(job, stage="train", format_number=FORMAT, config=config)
    run = prepare_run(config, job, base, compute, hooks, process)
    _check_checkpoints(config.save, run)
    step_alarm = StepAlarm(hooks.watchdog, job.out, rank=process.rank)
    # Left from the last to the first: a signal while the last checkpoint is being written is noted, and kills nothing.
    with stop_on_signal() as stop, run.saver, step_alarm as alarm:
        steps = training_steps(run, stop, alarm)
        try:
            _follow(steps, run, config.batch_tokens)
        except OSError as error:
            raise cannot_write(run.progress.step, error) from error
    counts = _counts(config, run, job)
    say(_summary(run))
    with process.main_first():
        made = read_manifest(job.out) if not process.is_main else None
        if made is None:
            files = _files(job.out)
            made = finish_stage(job, stage="train", format_number=FORMAT, config=config, files=files, counts=counts)
    leave(process)
    return made


def _check_checkpoints(save: Save, run: Run) -> None:
    """What would be found out when it is late: no room for checkpoints, or one that does not come back as it was."""
    from deepen.train.checkpoints.disk_room import check_room, room_needed
    from deepen.train.checkpoints.self_test import self_test
    from deepen.train.run import CHECKPOINTS

    check_room(run.out / CHECKPOINTS, room_needed(run, save))
    if save.self_test and run.progress.step == 0:
        self_test(run)


def _follow(steps: Iterator[dict[str, Any]], run: Run, tokens_per_step: int) -> None:
    """Let the loop run, showing how far it is."""
    total_tokens, done = run.shape.total_steps * tokens_per_step, run.progress.step * tokens_per_step
    with track("train", total_tokens, "tokens", done) as tracker:
        for record in steps:
            loss = record["loss"]
            at = f"step {record['step']:,} of {run.shape.total_steps:,}, "
            tracker.advance(tokens_per_step, at + (f"loss {loss:.3f}" if loss is not None else "loss not finite"))
            if run.hooks.log is not None:
                run.hooks.log(record)


def _counts(config: TrainConfig, run: Run, job: StageJob) -> dict[str, Any]:
    from deepen.train.batches.counts import counts_to_json
    from deepen.train.faults.order_changes import ORDER, describe_changes
    from deepen.train.starting.model import counts_of_method

    progress = run.progress
    roles = job.inputs["mix"].counts["sources"]
    sources: dict[str, dict[str, Any]] = {**counts_to_json(run.names, progress.counts)}
    stop = run.ledger.stop_until(progress.step)
    files = appended_files(run.out / ORDER)  # all of them are in force now, also those of this very start
    if files or stop is not None:
        order = Order.open(job.inputs["mix"].path, *files)
        planned = order.rows_by_source(progress.batch_index if stop is not None else None)
        for name, rows in zip(run.names, planned.tolist(), strict=True):
            sources[name]["order_rows"] = rows
    return {
        "sources": {name: {"role": roles[name]["role"], **counts} for name, counts in sources.items()},
        "order_changes": describe_changes(run.out, files),
        "steps": progress.step,
        **({"ended": stop.reason} if stop is not None else {}),
        "skipped_batches": progress.skipped_steps,
        "final_loss": progress.last_loss,
        "tokens": progress.tokens,
        "peak_learning_rate": run.peak_learning_rate,
        "new_rows_steps": run.new_rows.steps,
        "precision": run.trainee.precision,
        "device": run.trainee.device.type,
        "parameters": sum(parameter.numel() for parameter in run.trainee.model.parameters()),
        **counts_of_method(config, run.trainee.model.model),
    }


def _summary(run: Run) -> str:
    progress = run.progress
    skipped = f", {progress.skipped_steps} of them skipped" if progress.skipped_steps else ""
    loss = f"{progress.last_loss:.3f}" if progress.last_loss is not None else "never finite"
    lines = [f"trained {progress.step} steps{skipped}, {readable(progress.tokens)} tokens; last loss {loss} nats"]
    for name, total in zip(run.names, progress.counts, strict=True):
        lines.append(f"  {name}: {readable(total.tokens)} tokens in {total.rows:,} rows")
    return "\n".join(lines)


def _files(out: Path) -> list[FileEntry]:
    """Everything the stage wrote; hashes of checkpoint files come from their own manifests."""
    files = [entry_of(out / SCHEDULE, out)]
    importance = ("importance.json", "importance.safetensors")
    for name in ("metrics.jsonl", "scores.jsonl", "decisions.jsonl", "rolled_back.jsonl", *importance):
        if (out / name).is_file():
            files.append(entry_of(out / name, out))
    for path in sorted((out / "order").glob("[0-9][0-9][0-9].*")):
        files.append(entry_of(path, out))
    for info in list_checkpoints(out / "checkpoints"):
        prefix = info.path.relative_to(out).as_posix()
        files.append(entry_of(info.path / MANIFEST, out))
        for entry in read_checkpoint(info).files:
            files.append(entry.model_copy(update={"path": f"{prefix}/{entry.path}"}))
    return files
