"""When memory runs out in a step: the same step again with smaller micro-batches, or advice that is computed.

Smaller micro-batches give the same update up to rounding. Gradients so far are dropped and random numbers put back;
the optimizer has not moved, since the fused update takes no memory of its own beyond moments that are still zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from deepen.errors import TrainingError
from deepen.formats.architecture import Architecture
from deepen.formats.training.decisions import Decision
from deepen.parallel.config import Compute
from deepen.progress import say
from deepen.train.batches.read import Batch
from deepen.train.run import Run
from deepen.train.step import StepResult, Trainee

# On a CPU it is a plain RuntimeError, and only its words tell.
_CPU_SAYS = ("can't allocate memory", "not enough memory", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the host."""
    said = str(error)
    is_known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_known or (isinstance(error, RuntimeError) and any(words in said for words in _CPU_SAYS))


def within_memory(run: Run, batch: Batch, update: Callable[[Trainee], StepResult]) -> tuple[Run, StepResult]:
    """``update`` on ``batch`` with as many rows at once as fit; the run it returns goes on with that many.

    Raises ``TrainingError`` with what takes the memory when not even one row fits, when the machine file forbids
    smaller micro-batches, or when other processes take part (they wait for this one in the middle of the step).
    """
    run = _as_recorded(run, batch)
    while True:
        # Dropout and noise have drawn by the time that memory runs out: the step that is repeated draws the same.
        random = _random_state(run.trainee.device)
        try:
            return run, update(run.trainee)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = str(error).strip().splitlines()[0]
        # Out of the handler: the error holds the frames of the step, and with them its activations.
        run = _smaller(run, batch, said)
        _restore(random, run.trainee.device)


def _rows(trainee: Trainee, batch: Batch) -> int:
    num_rows, length = batch.tokens_BT.shape
    return trainee.compute.rows_per_micro_batch(
        rows_per_batch=num_rows, sequence_length=length, device=trainee.device.type
    )


def _as_recorded(run: Run, batch: Batch) -> Run:
    """The run with the micro-batches that earlier starts came to by this step, if they began where this one does."""
    mine = [d for d in run.ledger.decisions if d.by == "memory" and d.step <= run.progress.step]
    for decision in mine:
        # Not if this start begins with other rows: then the machine file was changed on purpose.
        if _rows(run.trainee, batch) == decision.details["from"]:
            run = _with_rows(run, int(decision.details["rows"]))
    return run


def _smaller(run: Run, batch: Batch, said: str) -> Run:
    trainee, progress = run.trainee, run.progress
    rows = _rows(trainee, batch)
    trainee.model.zero_grad(set_to_none=True)
    if trainee.device.type == "cuda":
        # PyTorch keeps freed blocks, cut for the old shapes, where they are of no use to smaller ones.
        torch.cuda.empty_cache()
    if rows == 1 or not trainee.compute.shrink_on_oom or trainee.process.world_size > 1:
        raise TrainingError(
            f"memory ran out in step {progress.step + 1} with {rows} rows of {batch.tokens_BT.shape[1]:,} tokens at "
            f"once: {said}",
            hint="; ".join(advice(trainee, run.flops.architecture, rows, batch.tokens_BT.shape[1])),
        )
    decision = Decision(
        step=progress.step,
        action="smaller_micro_batch",
        batch=progress.batch_index,
        by="memory",
        reason=said,
        details={"rows": rows // 2, "from": rows},
        parent_step=progress.saved_step,
    )
    run.ledger.write([decision])
    say(
        f"train: memory ran out in step {progress.step + 1} with {rows} rows at once; from here on {rows // 2}. "
        f"`compute: {{micro_batch_rows: {rows // 2}}}` in the machine file does so from the start"
    )
    return _with_rows(run, rows // 2)


def _with_rows(run: Run, rows: int) -> Run:
    compute: Compute = run.trainee.compute.model_copy(update={"micro_batch_rows": rows})
    return replace(run, trainee=replace(run.trainee, compute=compute))


def advice(trainee: Trainee, architecture: Architecture | None, rows: int, sequence_length: int) -> list[str]:
    """What takes how much memory at ``rows`` rows at once, and which setting frees how much of it, largest first."""
    trained = sum(p.numel() for p in trainee.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in trainee.model.parameters())
    weights, gradients, moments = 4 * total, 4 * trained, 8 * trained
    lines = [f"weights take {_gb(weights)}, gradients {_gb(gradients)}, AdamW's moments {_gb(moments)}"]
    found: list[tuple[float, str]] = []
    if architecture is not None:
        width = 0.5 if trainee.precision == "bf16" else 1.0
        activations = width * architecture.activation_bytes(rows * sequence_length)
        # What `full` keeps of the activations: one input for each layer.
        inputs = width * 4.0 * architecture.num_layers * architecture.hidden_size * rows * sequence_length
        lines[0] += f", activations of these rows {_gb(activations)} (by arithmetic)"
        if rows > 1:
            freed = activations * (1 - (rows // 2) / rows)
            found.append((freed, f"`compute.micro_batch_rows: {rows // 2}` frees {_gb(freed)}"))
        if trainee.compute.recompute == "none":
            freed = max(0.0, activations - inputs)
            found.append((freed, f"`compute.recompute: full` frees {_gb(freed)} for a third more work"))
        if trainee.precision != "bf16":
            found.append((activations / 2, f"`train.precision: bf16` frees {_gb(activations / 2)}"))
    if trained == total:
        freed = gradients + moments
        found.append((freed, f"LoRA (`train.method: lora`) frees most of {_gb(freed)}"))
    freed = (weights + gradients + moments) / 2
    found.append((freed, f"`mesh.shard: 2`, on two devices, frees {_gb(freed)} on each"))
    return [*lines, *(text for _, text in sorted(found, reverse=True))]


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
