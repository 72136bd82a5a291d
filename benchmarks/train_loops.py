"""The loops that are compared: deepen's, a bare PyTorch loop, and Hugging Face Trainer; each yields once per step.

All train the same network with the same optimizer. They are iterators, so that a benchmark can let them go one step
each in turn; Trainer runs in a thread and is let through step by step.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention
from train_data import Size, base_of

from deepen.formats.manifest import Artifact, StageJob
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import load_model
from deepen.parallel.config import Compute
from deepen.train.batches.read import Batches
from deepen.train.beside.interrupt import StopRequest
from deepen.train.config import TrainConfig
from deepen.train.loop import training_steps
from deepen.train.run import Run
from deepen.train.schedule.optimizer import decay_groups
from deepen.train.starting.build import prepare_run

LEARNING_RATE = 3e-4
SAVE_EVERY = 50


def our_run(root: Path, inputs: dict[str, Artifact], size: Size, precision: str = "fp32") -> Run:
    """Our loop as the train stage builds it: a record for every step, a checkpoint every 50, z-loss off, as the others
    have none."""
    config = TrainConfig.model_validate(
        {
            "tokens": size.num_batches * size.tokens_per_step, "batch_tokens": size.tokens_per_step,
            "learning_rate": LEARNING_RATE, "schedule": {"use": "wsd", "warmup": "0 steps", "decay": "1 step"},
            "z_loss": 0.0, "save": {"every": f"{SAVE_EVERY} steps", "milestones": None}, "precision": precision,
            "skip_spikes": {"deviations": 1000.0},
        }
    )  # fmt: skip
    job = StageJob(root, "benchmark", inputs)
    return prepare_run(config, job, base_of(size), Compute(device="cpu", micro_batch_rows=size.at_once))


def our_steps(run: Run) -> Iterator[float]:
    """Losses of our loop, one per step."""
    for record in training_steps(run, StopRequest()):
        yield record["loss"]


def bare_steps(
    batches: Batches, size: Size, dtype: torch.dtype = torch.float32, *, our_loss: bool = False
) -> Iterator[float]:
    """What one would write by hand: loss over micro-batches, fused AdamW, clipping; no records, no checkpoints.

    ``our_loss`` takes deepen's chunked loss in place of logits and ``cross_entropy``.
    """
    model = load_model(base_of(size), vocabulary_size=size.vocabulary, seed=17).to(dtype)
    loss_model = LossModel(model)
    decayed, plain = decay_groups(model)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    for index in range(size.num_batches):
        batch = batches[index]
        tokens_BT, labels_BT, positions_BT = map(
            torch.from_numpy, (batch.tokens_BT, batch.labels_BT, batch.positions_BT)
        )
        num_valid = (labels_BT != -100).sum()
        total = 0.0
        for begin in range(0, size.rows, size.at_once):
            rows = slice(begin, begin + size.at_once)
            if our_loss:
                summed, _ = loss_model(tokens_BT[rows], labels_BT[rows], positions_BT[rows])
            else:
                logits = model(input_ids=tokens_BT[rows], position_ids=positions_BT[rows], use_cache=False).logits
                summed = F.cross_entropy(logits.flatten(0, 1), labels_BT[rows].flatten(), reduction="sum")
            loss = summed / num_valid
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield total


class PackedRows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The same rows for Trainer, which shifts labels itself."""

    def __init__(self, batches: Batches, size: Size) -> None:
        self.batches, self.size = batches, size

    def __len__(self) -> int:
        """All rows of all batches."""
        return self.size.num_batches * self.size.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One row."""
        batch, row = self.batches[index // self.size.rows], index % self.size.rows
        labels = np.concatenate([[-100], batch.labels_BT[row, :-1]])
        values = {"input_ids": batch.tokens_BT[row], "labels": labels, "position_ids": batch.positions_BT[row]}
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}


class Documents(torch.utils.data.Dataset[dict[str, Any]]):
    """Documents as most users of Trainer hand them over: one per row, cut at its length, padded by the collator."""

    def __init__(self, documents: list[list[int]], size: Size) -> None:
        self.documents, self.size = documents, size
        self.trained: list[int] = []
        """Tokens that carried loss, by the order in which documents were asked for."""

    def __len__(self) -> int:
        """As many as Trainer can ask for."""
        return self.size.num_batches * 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One document."""
        ids = self.documents[index % len(self.documents)][: self.size.sequence_length]
        self.trained.append(len(ids) - 1)
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids}


def _pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """To the longest of the batch, as ``DataCollatorForLanguageModeling`` does."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.tensor([[*row[name], *[value] * (longest - len(row[name]))] for row in rows])
        for name, value in fill.items()
    }


def trainer_on_rows(batches: Batches, size: Size) -> Iterator[float]:
    """Trainer with all of our settings: the same packed rows, accumulation, a log every step, a save every 50."""
    arguments = {
        "per_device_train_batch_size": size.at_once, "gradient_accumulation_steps": size.rows // size.at_once,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "weight_decay": 0.1, "adam_beta2": 0.95,
        "max_grad_norm": 1.0, "optim": "adamw_torch_fused", "logging_steps": 1, "save_steps": SAVE_EVERY,
        "save_total_limit": 3, "train_sampling_strategy": "sequential", "dataloader_pin_memory": False,
    }  # fmt: skip
    return _trainer_steps(size, PackedRows(batches, size), arguments, None)


def trainer_with_defaults(documents: Documents) -> Iterator[float]:
    """Trainer as it comes: its own batch size, precision, optimizer, logging and saving; documents padded."""
    return _trainer_steps(documents.size, documents, {"train_sampling_strategy": "sequential"}, _pad)


def _trainer_steps(size: Size, rows: Any, arguments: dict[str, Any], collator: Any) -> Iterator[float]:
    import transformers

    go, done = threading.Semaphore(0), threading.Semaphore(0)

    class Gate(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            done.release()
            go.acquire()

    settings = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="deepen-trainer-"), max_steps=size.num_batches, report_to="none",
        use_cpu=True, disable_tqdm=True, **arguments,
    )  # fmt: skip
    model = load_model(base_of(size), vocabulary_size=size.vocabulary, seed=17)
    trainer = transformers.Trainer(
        model, settings, train_dataset=rows, callbacks=[Gate()], **({"data_collator": collator} if collator else {})
    )
    trainer.remove_callback(transformers.PrinterCallback)

    def work() -> None:
        go.acquire()
        trainer.train()

    threading.Thread(target=work, daemon=True).start()
    for _ in range(size.num_batches):
        go.release()
        done.acquire()
        yield float("nan")
