"""One loop on one shape, for ``gpu.py``: builds packed data and the model, warms up, times a window, prints JSON."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from gpu_shapes import SHAPES, TOYS, Plan, Shape

from deepen.formats.documents.document_ids import pack_ids
from deepen.formats.manifest import Artifact, CodeVersion, Manifest, StageJob
from deepen.formats.tokens.megatron import IndexedDatasetWriter, token_dtype
from deepen.formats.tokens.order import Segment, Segments, row_ids, write_order, write_segments
from deepen.formats.tokens.packs import write_packs
from deepen.formats.training.checkpoints import list_checkpoints
from deepen.model.config import ResolvedBase
from deepen.model.weights.load import load_model
from deepen.parallel.config import Compute
from deepen.parallel.peaks import peak_bf16
from deepen.parallel.process import memory_bytes
from deepen.train.batches.read import Batches
from deepen.train.beside.interrupt import StopRequest
from deepen.train.config import TrainConfig
from deepen.train.loop import training_steps
from deepen.train.starting.build import prepare_run

NUM_BATCHES = 2000
DISTINCT_BATCHES = 8
MEDIAN_TOKENS, SPREAD = 400.0, 1.0
"""Of the lognormal lengths of documents: many are short, a few longer than a row, which cuts them."""
FEWEST_STEPS = 2
_NEVER = 1_000_000_000.0


@dataclass(frozen=True)
class _Init:
    """Stands where a recipe has ``base: {init: random}``; shapes here have heads that it cannot describe."""

    shape: Shape

    def config_json(self, vocabulary_size: int) -> dict[str, Any]:
        assert vocabulary_size == self.shape.vocabulary, "data of another vocabulary"
        return self.shape.config_json()


def write_data(root: Path, shape: Shape, rows: int) -> dict[str, Artifact]:
    """Random documents as a shard, rows cut from them laid end to end, and an order: what the train stage reads."""
    random = np.random.default_rng(0)
    length, num_rows = shape.sequence_length, rows * DISTINCT_BATCHES
    median = min(MEDIAN_TOKENS, length / 4)
    lengths = np.maximum(2, random.lognormal(np.log(median), SPREAD, 4 * num_rows * length // int(median))).astype(int)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), num_rows * length)) + 1]
    dtype = token_dtype(shape.vocabulary)
    for name in ("tokenize/shards", "tokenize/documents"):
        (root / name).mkdir(parents=True)
    with IndexedDatasetWriter(root / "tokenize/shards/text", dtype) as writer:
        writer.add_documents(random.integers(1, shape.vocabulary, int(lengths.sum())).astype(dtype), lengths)
    ids = pack_ids([f"{number:032x}" for number in range(len(lengths))])
    np.save(root / "tokenize/documents/text.npy", ids)
    ends = np.cumsum(lengths)
    cuts = np.union1d(np.concatenate([[0], ends]), np.arange(num_rows + 1) * length)
    cuts = cuts[cuts <= num_rows * length]
    begins = cuts[:-1]
    sequences = np.searchsorted(ends, begins, side="right")
    pieces = np.stack([sequences, begins - (ends - lengths)[sequences], np.diff(cuts)], 1).astype(np.int32)
    write_packs(root / "mix", "text", np.searchsorted(begins, np.arange(num_rows + 1) * length), pieces)
    write_order(root / "mix/order/000.u64", [np.resize(row_ids(0, np.arange(num_rows)), NUM_BATCHES * rows)], root)
    segment = Segment(
        file="order/000.u64", first_batch=0, num_batches=NUM_BATCHES, sequence_length=length, rows_per_batch=rows
    )
    write_segments(root / "mix", Segments(sources=("text",), segments=(segment,)))
    sources = {"text": {"role": "domain", "tokens": int(lengths.sum()), "bytes": 4 * int(lengths.sum())}}
    return {name: _artifact(root / name, sources, shape.vocabulary) for name in ("tokenize", "mix")}


def _artifact(path: Path, sources: dict[str, Any], vocabulary: int) -> Artifact:
    manifest = Manifest(
        stage=path.name, format=1, fingerprint=path.name, config={}, inputs={}, code=CodeVersion(version="0"),
        started="", finished="", counts={"sources": sources, "vocabulary_size": vocabulary},
    )  # fmt: skip
    return Artifact(path, manifest)


def make_model(shape: Shape, device: torch.device) -> Any:
    """The random network, made where it is used: billions of random numbers take a CPU longer than the measurement."""
    base = ResolvedBase("random", None, _Init(shape), "random")  # type: ignore[arg-type]
    with device:
        return load_model(base, vocabulary_size=shape.vocabulary, seed=17)


def why_no_checkpoint(shape: Shape, plan: Plan, folder: Path) -> str | None:
    """Why nothing is saved in the window: a state that disk or host memory has no room for."""
    needed = shape.parameters * (12 if plan.precision == "bf16" else 6)
    if not plan.checkpoint:
        return "not asked for"
    free = shutil.disk_usage(folder).free
    if free < 1.1 * needed:
        return f"a state of {needed / 1e9:.0f} GB does not fit on the disk ({free / 1e9:.0f} GB free)"
    memory = {line.split(":")[0]: line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()}
    available = 1024 * int(memory["MemAvailable"])
    return None if available > 1.1 * needed else f"host memory has no room for a copy ({available / 1e9:.0f} GB)"


def our_loop(shape: Shape, plan: Plan, device: torch.device, root: Path) -> dict[str, Any]:
    """``prepare_run`` and ``training_steps`` as the train stage uses them."""
    batch_tokens = plan.rows * shape.sequence_length
    config = TrainConfig.model_validate(
        {
            "tokens": NUM_BATCHES * batch_tokens, "batch_tokens": batch_tokens, "learning_rate": 1e-5,
            "schedule": {"use": "constant", "warmup": "0 steps"}, "precision": plan.precision,
            "save": {"every": f"{int(_NEVER)} seconds", "milestones": None, "keep": 1},
        }
    )  # fmt: skip
    compute = Compute.model_validate(
        {
            "device": device.type, "micro_batch_rows": plan.rows_at_once, "recompute": plan.recompute,
            "deterministic": plan.deterministic,
        }
    )  # fmt: skip
    job = StageJob(root / "train", "benchmark", write_data(root, shape, plan.rows))
    base = ResolvedBase("random", None, _Init(shape), "random")  # type: ignore[arg-type]
    with mock.patch("deepen.train.starting.model.load_run_model", lambda *_, **__: make_model(shape, device)):
        run = prepare_run(config, job, base, compute)
    skipped_checkpoint = why_no_checkpoint(shape, plan, root)
    steps = training_steps(run, StopRequest())
    for _ in range(plan.warm_steps):
        first = next(steps)
    begun = _now(device)
    if skipped_checkpoint is None:
        run.progress.last_save = time.monotonic() - _NEVER  # due now, and not again
    records = [next(steps) for _ in _until(begun, plan.seconds)]
    elapsed = _now(device) - begun
    del steps
    run.saver.wait()
    return {
        "tokens_per_second": (records[-1]["tokens"] - first["tokens"]) / elapsed,
        "steps": len(records),
        "elapsed_seconds": elapsed,
        "data_wait_share": sum(record["data_wait_seconds"] for record in records) / elapsed,
        "stall_seconds": sum(record["checkpoint_stall_seconds"] for record in records),
        "checkpoints": len(list_checkpoints(root / "train/checkpoints")),
        "checkpoint_skipped": skipped_checkpoint,
        "recompiles": sum(record.get("recompiles", 0) for record in records),
        "attention": run.trainee.model.model.config._attn_implementation,
        "loss": records[-1]["loss"],
        "records": records,
    }


def _until(begun: float, seconds: float) -> Any:
    """Counts while there is time, at least ``FEWEST_STEPS``."""
    count = 0
    while count < FEWEST_STEPS or time.perf_counter() - begun < seconds:
        yield count
        count += 1


def _now(device: torch.device) -> float:
    """The time once the GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The same rows for Trainer, whose loss shifts labels itself."""

    def __init__(self, batches: Batches, rows: int) -> None:
        self.batches, self.rows = batches, rows

    def __len__(self) -> int:
        return NUM_BATCHES * self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch, row = self.batches[index // self.rows % DISTINCT_BATCHES], index % self.rows
        labels = np.concatenate([[-100], batch.labels_BT[row, :-1]])
        values = {"input_ids": batch.tokens_BT[row], "labels": labels, "position_ids": batch.positions_BT[row]}
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}


def trainer_loop(shape: Shape, plan: Plan, device: torch.device, root: Path) -> dict[str, Any]:
    """Hugging Face Trainer with bf16 autocast, fused AdamW, clipping and a log each step; it saves nothing."""
    import transformers

    write_data(root, shape, plan.rows)
    batches = Batches.open(root / "tokenize", root / "mix")
    model = make_model(shape, device)
    marks: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _arguments: Any, _state: Any, control: Any, **_: Any) -> None:
            marks.append(_now(device))
            timed = len(marks) - plan.warm_steps
            if timed > FEWEST_STEPS and marks[-1] - marks[plan.warm_steps - 1] >= plan.seconds:
                control.should_training_stop = True

    arguments = transformers.TrainingArguments(
        output_dir=str(root / "trainer"), per_device_train_batch_size=plan.rows_at_once, max_steps=NUM_BATCHES,
        gradient_accumulation_steps=plan.rows // plan.rows_at_once, learning_rate=1e-5, bf16=True,
        lr_scheduler_type="constant", weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0,
        optim="adamw_torch_fused", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=device.type == "cpu", train_sampling_strategy="sequential", dataloader_num_workers=2,
        dataloader_pin_memory=device.type == "cuda",
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=_Rows(batches, plan.rows), callbacks=[Clock()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    elapsed, steps = marks[-1] - marks[plan.warm_steps - 1], len(marks) - plan.warm_steps
    return {
        "tokens_per_second": steps * plan.rows * shape.sequence_length / elapsed,
        "steps": steps,
        "elapsed_seconds": elapsed,
        "data_wait_share": None,
        "stall_seconds": None,
    }


def main() -> None:
    """Run what the argument says (JSON) and print the result as the last line."""
    asked = json.loads(sys.argv[1])
    shape, plan = (TOYS if asked["toy"] else SHAPES)[asked["name"]], Plan(**asked["plan"])
    device = torch.device(asked["device"])
    with tempfile.TemporaryDirectory(prefix="deepen-gpu-") as folder:
        try:
            loop = our_loop if plan.loop == "deepen" else trainer_loop
            found = loop(shape, plan, device, Path(folder))
        except torch.OutOfMemoryError as error:
            print(json.dumps({"out_of_memory": str(error)}), flush=True)
            return
    peak = peak_bf16(torch.cuda.get_device_name()) if device.type == "cuda" else None
    per_second = found["tokens_per_second"]
    found |= {
        "parameters": shape.parameters / 1e9,
        "mfu": per_second * shape.flops_per_token(12) / peak if peak else None,
        "mfu_causal": per_second * shape.flops_per_token(6) / peak if peak else None,
        "peak_gigabytes": memory_bytes(device) / 1e9,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
