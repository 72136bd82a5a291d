"""Speed, memory and arithmetic of the training loop against Hugging Face Trainer and a bare PyTorch loop, on a CPU.

All three train the same random network on the same batches in the same precision with the same optimizer. Speed: steps
are interleaved in one process, in rotating order, because a shared machine drifts; the best round counts, the interval
is of the ratios within rounds. Memory: one process each. Arithmetic: loss curves in fp64.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from deepen.formats.document_ids import pack_ids
from deepen.formats.documents import document_id
from deepen.formats.manifest import Artifact, CodeVersion, Manifest, StageJob
from deepen.formats.megatron import IndexedDatasetWriter, token_dtype
from deepen.formats.order import Segment, Segments, row_ids, write_order, write_segments
from deepen.formats.packs import write_packs
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.load import load_model
from deepen.parallel.config import Compute
from deepen.train.config import TrainConfig
from deepen.train.interrupt import StopRequest
from deepen.train.loop import Run, training_steps
from deepen.train.optimizer import decay_groups
from deepen.train.setup import prepare_run

LEARNING_RATE = 3e-4
SMALLEST_SPEED_OF_BARE, SMALLEST_SPEED_OF_TRAINER, LARGEST_MEMORY, LARGEST_DIFFERENCE = 0.95, 1.0, 0.65, 1e-9


@dataclass(frozen=True)
class Size:
    """A network and its batches."""

    vocabulary: int
    hidden: int
    layers: int
    sequence_length: int
    rows: int
    num_batches: int = 400

    @property
    def tokens_per_step(self) -> int:
        """Positions in a batch."""
        return self.sequence_length * self.rows


SPEED = Size(vocabulary=8192, hidden=256, layers=4, sequence_length=256, rows=8)
MEMORY = Size(vocabulary=32768, hidden=256, layers=4, sequence_length=512, rows=8, num_batches=8)
PRECISE = Size(vocabulary=512, hidden=64, layers=2, sequence_length=64, rows=4, num_batches=20)


def write_data(root: Path, size: Size) -> dict[str, Artifact]:
    """Random documents as a shard, spliced rows and an order: the files that the training stage reads."""
    random = np.random.default_rng(0)
    num_rows = size.rows * min(size.num_batches, 40)
    num_tokens = num_rows * size.sequence_length
    lengths = random.integers(20, 3 * size.sequence_length // 2, 2 * num_tokens // size.sequence_length + 2)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1]
    tokens = random.integers(1, size.vocabulary, int(lengths.sum())).astype(token_dtype(size.vocabulary))
    for name in ("tokenize/shards", "tokenize/documents"):
        (root / name).mkdir(parents=True)
    with IndexedDatasetWriter(root / "tokenize/shards/text", tokens.dtype) as writer:
        writer.add_documents(tokens, lengths)
    ids = pack_ids([document_id("text", str(number)) for number in range(len(lengths))])
    np.save(root / "tokenize/documents/text.npy", ids)
    _write_rows(root / "mix", lengths, num_rows, size.sequence_length)
    order = np.resize(row_ids(0, np.arange(num_rows)), size.num_batches * size.rows)
    write_order(root / "mix/order/000.u64", [order], root)
    segment = Segment(
        file="order/000.u64", first_batch=0, num_batches=size.num_batches, sequence_length=size.sequence_length,
        rows_per_batch=size.rows,
    )  # fmt: skip
    write_segments(root / "mix", Segments(sources=("text",), segments=(segment,)))
    counts = {"role": "domain", "tokens": int(lengths.sum()), "bytes": 4 * int(lengths.sum())}
    both = {"sources": {"text": counts}, "vocabulary_size": size.vocabulary}
    return {name: _artifact(root / name, both) for name in ("tokenize", "mix")}


def _write_rows(mix: Path, lengths: np.ndarray[Any, Any], num_rows: int, sequence_length: int) -> None:
    """Cut the documents, laid end to end, into rows."""
    ends = np.cumsum(lengths)
    cuts = np.union1d(np.concatenate([[0], ends]), np.arange(num_rows + 1) * sequence_length)
    cuts = cuts[cuts <= num_rows * sequence_length]
    begins = cuts[:-1]
    sequences = np.searchsorted(ends, begins, side="right")
    segments = np.stack([sequences, begins - (ends - lengths)[sequences], np.diff(cuts)], 1).astype(np.int32)
    rows = np.searchsorted(begins, np.arange(num_rows + 1) * sequence_length)
    write_packs(mix, "text", rows, segments)


def _artifact(path: Path, counts: dict[str, Any]) -> Artifact:
    manifest = Manifest(
        stage=path.name, format=1, fingerprint=path.name, config={}, inputs={}, counts=counts,
        code=CodeVersion(version="0"), started="", finished="",
    )  # fmt: skip
    return Artifact(path, manifest)


def base_of(size: Size) -> ResolvedBase:
    """The random network that all three train."""
    init = RandomInit(
        init="random", hidden_size=size.hidden, layers=size.layers, heads=size.hidden // 32, max_length=2048
    )
    return ResolvedBase("random", None, init, "random")


def our_run(root: Path, inputs: dict[str, Artifact], size: Size, micro_batch_rows: int) -> Run:
    """Our loop as the train stage builds it, with a record for every step; z-loss off, as the others have none."""
    config = TrainConfig.model_validate(
        {
            "tokens": size.num_batches * size.tokens_per_step, "batch_tokens": size.tokens_per_step,
            "learning_rate": LEARNING_RATE, "schedule": {"use": "wsd", "warmup": "0 steps", "decay": "1 step"},
            "z_loss": 0.0, "save": {"every": "1000000 steps", "milestones": None}, "precision": "fp32",
        }
    )  # fmt: skip
    job = StageJob(root, "benchmark", inputs)
    return prepare_run(config, job, base_of(size), Compute(device="cpu", micro_batch_rows=micro_batch_rows))


def our_steps(run: Run) -> Iterator[float]:
    """Losses of our loop, one per step."""
    for record in training_steps(run, StopRequest()):
        yield record["loss"]


def bare_steps(batches: Any, size: Size, dtype: torch.dtype = torch.float32) -> Iterator[float]:
    """What one would write by hand: logits, cross-entropy, fused AdamW, clipping."""
    model = load_model(base_of(size), vocabulary_size=size.vocabulary, seed=17).to(dtype)
    decayed, plain = decay_groups(model)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    for index in range(size.num_batches):
        batch = batches[index]
        tokens, labels, positions = map(torch.from_numpy, (batch.tokens_BT, batch.labels_BT, batch.positions_BT))
        logits = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The same rows for Trainer, which shifts labels itself."""

    def __init__(self, batches: Any, size: Size) -> None:
        self.batches, self.size = batches, size

    def __len__(self) -> int:
        return self.size.num_batches * self.size.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch, row = self.batches[index // self.size.rows], index % self.size.rows
        labels = np.concatenate([[-100], batch.labels_BT[row, :-1]])
        values = {"input_ids": batch.tokens_BT[row], "labels": labels, "position_ids": batch.positions_BT[row]}
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}


def trainer_steps(batches: Any, size: Size) -> Iterator[float]:
    """Hugging Face Trainer, run in a thread and let through one step at a time, logging every step as ours does."""
    import transformers

    go, done = threading.Semaphore(0), threading.Semaphore(0)

    class Gate(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            done.release()
            go.acquire()

    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=size.rows, max_steps=size.num_batches,
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0,
        optim="adamw_torch_fused", logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True, train_sampling_strategy="sequential", dataloader_pin_memory=False,
    )  # fmt: skip
    model = load_model(base_of(size), vocabulary_size=size.vocabulary, seed=17)
    trainer = transformers.Trainer(model, arguments, train_dataset=_Rows(batches, size), callbacks=[Gate()])
    trainer.remove_callback(transformers.PrinterCallback)

    def work() -> None:
        go.acquire()
        trainer.train()

    threading.Thread(target=work, daemon=True).start()
    for _ in range(size.num_batches):
        go.release()
        done.acquire()
        yield float("nan")


def measure_speed(rounds: int, steps_per_round: int) -> dict[str, list[float]]:
    """Tokens per second of each loop in each round."""
    size = SPEED
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        run = our_run(root / "train", write_data(root, size), size, size.rows)
        loops = {
            "deepen": our_steps(run),
            "bare": bare_steps(run.batches, size),
            "trainer": trainer_steps(run.batches, size),
        }
        for loop in loops.values():
            for _ in range(3):
                next(loop)
        speeds: dict[str, list[float]] = {name: [] for name in loops}
        names = list(loops)
        for number in range(rounds):
            for name in names[number % 3 :] + names[: number % 3]:
                started = time.perf_counter()
                for _ in range(steps_per_round):
                    next(loops[name])
                speeds[name].append(steps_per_round * size.tokens_per_step / (time.perf_counter() - started))
    return speeds


def paired_interval(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median ratio within a round."""
    ratios = np.array(ours) / np.array(theirs)
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (4000, len(ratios))), axis=1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


def peak_memory(kind: str) -> int:
    """Largest resident memory of this process after three steps of one loop, in bytes."""
    size = MEMORY
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        inputs = write_data(root, size)
        if kind == "deepen":
            loop = our_steps(our_run(root / "train", inputs, size, size.rows))
        else:
            from deepen.train.batches import Batches

            batches = Batches.open(root / "tokenize", root / "mix")
            makers: dict[str, Callable[..., Iterator[float]]] = {"bare": bare_steps, "trainer": trainer_steps}
            loop = makers[kind](batches, size)
        for _ in range(3):
            next(loop)
        status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def memory_of(kind: str) -> int:
    """``peak_memory`` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--memory", kind], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.strip().splitlines()[-1]))


def largest_difference() -> float:
    """Largest relative difference of loss between our loop (in two micro-batches) and the bare one, in fp64."""
    size = PRECISE
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        run = our_run(root / "train", write_data(root, size), size, size.rows // 2)
        run.trainee.model.double()
        ours = list(our_steps(run))
        bare = list(bare_steps(run.batches, size, torch.float64))
    assert len(ours) == len(bare) == size.num_batches
    assert max(bare) - min(bare) > 1e-3, "a curve that does not move proves nothing"
    return max(abs(a - b) / b for a, b in zip(ours, bare, strict=True))


def main() -> int:
    """Measure, print a table and one PASS or FAIL per bar; the exit code is 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of the speed comparison (at least 10)")
    parser.add_argument("--steps", type=int, default=5, help="steps of each loop in a round")
    parser.add_argument("--memory", choices=("deepen", "bare", "trainer"), help="only print one loop's peak memory")
    arguments = parser.parse_args()
    if arguments.memory:
        peak = peak_memory(arguments.memory)
        print(peak, flush=True)
        os._exit(0)  # Trainer's thread waits for a step that never comes
    speeds = measure_speed(max(10, arguments.rounds), arguments.steps)
    memory = {kind: memory_of(kind) for kind in speeds}
    difference = largest_difference()
    print(f"{torch.get_num_threads()} threads; {SPEED}; memory: {MEMORY}")
    print(f"{'loop':<10}{'best tokens/s':>15}{'median':>10}{'ours / it':>12}{'95 % of ratio':>18}{'peak MB':>10}")
    best = {name: max(values) for name, values in speeds.items()}
    for name, values in speeds.items():
        low, high = paired_interval(speeds["deepen"], values)
        ratio = best["deepen"] / best[name]
        print(
            f"{name:<10}{best[name]:>15,.0f}{np.median(values):>10,.0f}{ratio:>12.3f}{f'{low:.3f} .. {high:.3f}':>18}"
            f"{memory[name] / 1e6:>10,.0f}"
        )
    bars = [
        ("speed against bare", best["deepen"] / best["bare"], ">=", SMALLEST_SPEED_OF_BARE),
        ("speed against Trainer", best["deepen"] / best["trainer"], ">=", SMALLEST_SPEED_OF_TRAINER),
        ("peak memory against Trainer", memory["deepen"] / memory["trainer"], "<=", LARGEST_MEMORY),
        ("fp64 loss difference to bare", difference, "<=", LARGEST_DIFFERENCE),
    ]
    passed = [value >= bar if sign == ">=" else value <= bar for _, value, sign, bar in bars]
    for (name, value, sign, bar), good in zip(bars, passed, strict=True):
        print(f"{'PASS' if good else 'FAIL'}  {name}: {value:.3g} ({sign} {bar})")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
