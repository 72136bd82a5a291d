"""Proofs on a user's own model, data and machine that training does what it says, on a few rows each.

Each looks for a fault that a run would not notice by itself: documents that see each other, a tokenizer that is not the
base's, micro-batches that are weighted wrongly, a checkpoint that lacks something. What is measured and the limit it is
held against are part of the result.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepen.formats.files.arrays import Array
from deepen.formats.training.checkpoints import CheckpointInfo
from deepen.model.loss.model import evaluating
from deepen.model.weights.load import unique_weights
from deepen.train.batches.read import IGNORED, Batch
from deepen.train.checkpoints.files import load_checkpoint, save_checkpoint
from deepen.train.checkpoints.self_test import digest_of
from deepen.train.run import Run
from deepen.train.step import Trainee, train_step

Prepare = Callable[[], Run]
"""A fresh run at its beginning, every time the same."""

_ROWS = 4
_LOOKED_AT = 8
"""Batches that are looked through for rows to prove something on."""
_TOKENS = 256
_FP32_TOLERANCE = 1e-4
_NOT_SEEN = 1e-5
_LEARNING_RATE = 1e-4
_SHIFT = 7


@dataclass(frozen=True)
class Proof:
    """What one proof found."""

    name: str
    passed: bool | None
    """None: there was nothing to prove it on."""
    found: str


def prove_isolation(run: Run) -> Iterator[Proof]:
    """Packed rows against their documents alone, and whether what stands before a document reaches into it."""
    batch, row = _row_of_many(run)
    if row is None:
        for name in ("packed equals separate", "no attention leak"):
            yield Proof(name, None, "no row of the first batches holds two documents")
        return
    model = run.trainee.model
    pieces = _pieces(batch.documents_BT[row])
    packed = _nll(run, batch, row)
    alone = np.concatenate([_nll(run, _cut(batch, begin, end), row) for begin, end in pieces])
    difference = float(np.abs(packed[: len(alone)] - alone).max())
    found = f"{len(pieces)} documents, largest difference {difference:.1e} nats (limit {_FP32_TOLERANCE:.0e})"
    yield Proof("packed equals separate", difference <= _FP32_TOLERANCE, found)
    begin, end = pieces[0]
    size = model.model.get_input_embeddings().weight.shape[0]
    tokens_BT = batch.tokens_BT.copy()
    tokens_BT[row, begin:end] = (tokens_BT[row, begin:end] + _SHIFT) % size
    changed = _nll(run, replace(batch, tokens_BT=tokens_BT), row)
    reached = float(np.abs(changed[end:] - packed[end:]).max())
    found = f"other text before them moves later documents by {reached:.1e} nats (limit {_NOT_SEEN:.0e})"
    yield Proof("no attention leak", reached <= _NOT_SEEN, found)


def prove_accumulation(run: Run) -> Proof:
    """One row at a time against all rows at once: the same loss and gradient norm; without noise and dropout, whose
    random numbers are others for other micro-batches."""
    name = "accumulation changes nothing"
    batch = _rows_with_labels(run)
    if batch is None:
        return Proof(name, None, f"no row of the first {_LOOKED_AT} batches has a label: nothing there is in the loss")
    norms, losses = [], []
    run.trainee.model.eval()
    for rows in (1, len(batch.source_B)):
        trainee = replace(run.trainee, compute=run.trainee.compute.model_copy(update={"micro_batch_rows": rows}))
        # A reason to skip keeps both from moving the weights, so that the second sees the same ones.
        result = train_step(trainee, batch, 0.0, lambda _loss, _norm: "only measured")
        norms.append(result.gradient_norm)
        losses.append(result.loss)
    run.trainee.model.train()
    if not all(norms + losses):
        return Proof(name, None, f"gradient norms {norms}, losses {losses}: nothing to compare where one is 0")
    worst = max(abs(a / b - 1) for a, b in (norms, losses))
    # Other micro-batches are products of another shape, which add up, and in bf16 round, in another order.
    limit = _FP32_TOLERANCE if run.trainee.precision == "fp32" else 0.02
    found = (
        f"gradient norms {norms[0]:.5g} and {norms[1]:.5g}, largest relative difference {worst:.1e} (limit {limit:.0e})"
    )
    return Proof(name, worst <= limit, found)


def prove_resume(prepare: Prepare) -> Proof:
    """Three steps in one go against two, a checkpoint, a new start and the third: equal in every bit."""
    whole = prepare()
    for number in range(3):
        _step(whole.trainee, whole, number)
    expected = digest(whole.trainee)
    # Only hashes are kept, so that one model at a time is in memory.
    del whole
    with tempfile.TemporaryDirectory(prefix="deepen-prove-") as folder:
        info = _save_after(prepare(), 2, Path(folder))
        resumed = prepare()
        load_checkpoint(info, resumed.trainee.model.model, resumed.trainee.optimizer)
        _step(resumed.trainee, resumed, 2)
    found = digest(resumed.trainee)
    differing = sorted(name for name in expected if found[name] != expected[name])
    text = (
        f"{len(expected)} tensors equal in every bit" if not differing else f"{len(differing)} differ, {differing[0]}"
    )
    return Proof("save, stop and resume", not differing, text)


def _save_after(run: Run, steps: int, folder: Path) -> CheckpointInfo:
    for number in range(steps):
        _step(run.trainee, run, number)
    state: dict[str, Any] = {"step": steps, "fingerprint": run.fingerprint}
    return save_checkpoint(folder, run.trainee.model.model, run.trainee.optimizer, state, milestone=False)


def _step(trainee: Trainee, run: Run, number: int) -> None:
    train_step(trainee, first_rows(run.batches[number % len(run.batches)]), _LEARNING_RATE)


def digest(trainee: Trainee) -> dict[str, str]:
    """A hash of every tensor of the model."""
    return {name: digest_of(tensor.detach()) for name, tensor in unique_weights(trainee.model.model).items()}


def first_rows(batch: Batch, rows: int = _ROWS) -> Batch:
    """The first rows of a batch; enough for a proof, and little enough for a laptop."""
    return _changed(batch, lambda values: values[:rows])


def _rows_with_labels(run: Run) -> Batch | None:
    """Some rows of one batch that have labels: of answers alone the first rows may have none. The batch with most."""
    best: Batch | None = None
    for number in range(min(_LOOKED_AT, len(run.batches))):
        batch = run.batches[number]
        rows = np.flatnonzero((batch.labels_BT != IGNORED).any(axis=1))[:_ROWS]
        if len(rows) and (best is None or len(rows) > len(best.source_B)):
            best = Batch(**{field.name: getattr(batch, field.name)[rows] for field in fields(batch)})
        if len(rows) == _ROWS:
            break
    return best


def _row_of_many(run: Run) -> tuple[Batch, int | None]:
    """A batch with a row of at least two documents."""
    for number in range(min(_LOOKED_AT, len(run.batches))):
        batch = run.batches[number]
        for row in range(len(batch.source_B)):
            if len(_pieces(batch.documents_BT[row])) > 1:
                return batch, row
    return batch, None


def _pieces(documents_T: Array) -> list[tuple[int, int]]:
    """Where the documents of a row begin and end; padding left out."""
    edges = [0, *(np.flatnonzero(np.diff(documents_T)) + 1).tolist(), len(documents_T)]
    return [(a, b) for a, b in zip(edges, edges[1:], strict=False) if documents_T[a] >= 0]


def _cut(batch: Batch, begin: int, end: int) -> Batch:
    return _changed(batch, lambda values: values[:, begin:end] if values.ndim == 2 else values)


def _changed(batch: Batch, change: Callable[[Array], Array]) -> Batch:
    return Batch(**{field.name: change(getattr(batch, field.name)) for field in fields(batch)})


def _nll(run: Run, batch: Batch, row: int) -> Array:
    """Nats per position of one row in float32, 0 where there is no label."""
    model, device = run.trainee.model, run.trainee.device
    values = (batch.tokens_BT, batch.labels_BT, batch.positions_BT)
    tokens_1T, labels_1T, positions_1T = (torch.from_numpy(value[row : row + 1]).to(device) for value in values)
    with evaluating(model):
        nll_T = model.token_nll(tokens_1T, labels_1T, positions_1T)[0]
    return np.asarray(nll_T.float().cpu().numpy())


def prove_first_loss(
    run: Run, reference: Callable[[Sequence[int]], float], texts: Sequence[tuple[list[int], list[int]]], num_old: int
) -> Proof:
    """The loss before the first update against the base's own, on ``texts`` (our ids, the base tokenizer's ids).

    ``reference`` gives the base's mean nats per token of some ids, computed by other code. ``num_old`` is the size of
    the base's vocabulary. With k rows of mean vectors beside n old ones the loss of text without new tokens rises by at
    most log(1 + k / n) (see ``model/new_rows.py``); other new rows are held to the same.
    """
    name = "first loss is the base's"
    other = [ours for ours, theirs in texts if ours != theirs and max(ours) < num_old]
    if other:
        found = f"{len(other)} of {len(texts)} documents have other ids than the base's own tokenizer gives"
        return Proof(name, False, found)
    same = [ours[:_TOKENS] for ours, theirs in texts if ours == theirs]
    if not same:
        return Proof(name, None, "no document of plain text without new tokens to compare")
    num_rows = run.trainee.model.model.get_input_embeddings().weight.shape[0]
    limit = math.log(max(1.0, num_rows / num_old)) + _FP32_TOLERANCE
    rises = [_mean_nll(run, ids) - reference(ids) for ids in same]
    worst = max(rises, key=abs)
    held = all(-limit <= rise <= limit for rise in rises)
    return Proof(name, held, f"{len(same)} documents, largest difference {worst:+.1e} nats (limit {limit:.1e})")


def _mean_nll(run: Run, ids: Sequence[int]) -> float:
    tokens = torch.tensor([list(ids)], device=run.trainee.device)
    labels = torch.full_like(tokens, -100)
    labels[:, :-1] = tokens[:, 1:]
    positions = torch.arange(len(ids), device=tokens.device)[None]
    with evaluating(run.trainee.model):
        nll = run.trainee.model.token_nll(tokens, labels, positions)
    return float(nll.double().sum()) / (len(ids) - 1)
