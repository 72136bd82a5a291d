"""What several processes gain and cost: FSDP2 on two of them against one, and blocks of background checkpoints.

On a CPU: two processes of one thread with half of each batch, against one process of two threads and one of one thread
with all of it; rounds take turns, and the best median counts. Where there are several GPUs: the shapes of ``gpu.py`` on
1, 2, 4, ... of them, the batch growing with their number. Every run is what the train stage builds, with checkpoints.

    python benchmarks/parallel.py [--size small] [--rounds 3] [--steps 20] [--shapes qwen3-0.6b,llama-3.2-1b]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import os
import socket
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from itertools import takewhile
from statistics import median
from typing import Any
from unittest import mock

WARM_STEPS = 3
SIZES = {"toy": (512, 64, 2, 64, 8), "small": (4096, 256, 4, 256, 8), "wide": (8192, 512, 4, 256, 8)}
"""Vocabulary, hidden size, layers, sequence length, rows of a batch."""


@dataclass(frozen=True)
class Work:
    """What one run is to do."""

    what: str
    """A size of ``SIZES``, or a shape of ``gpu.py``."""
    mesh: dict[str, Any] | None
    processes: int
    threads: int
    steps: int
    folder: str
    device: str = "cpu"
    rows: int = 8
    rows_at_once: int = 8
    precision: str = "fp32"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shapes", default="qwen3-0.6b,llama-3.2-1b,qwen3-1.7b")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(train(Work(**json.loads(arguments.work)))))
        return
    import torch

    num_gpus = torch.cuda.device_count()
    if num_gpus > 1:
        on_gpus(arguments, num_gpus)
    else:
        on_cpu(arguments)


def on_cpu(arguments: argparse.Namespace) -> None:
    """Two processes of one thread, one of two, one of one."""
    kinds = {
        "1 process, 2 threads": (None, 1, 2),
        "1 process, 1 thread": (None, 1, 1),
        "FSDP2, 2 processes of 1 thread": ({"shard": 2}, 2, 1),
        "copies, 2 processes of 1 thread": ({"replicate": 2, "shard": 1}, 2, 1),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    for number in range(arguments.rounds):
        for name, (mesh, processes, threads) in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                work = Work(arguments.size, mesh, processes, threads, arguments.steps, folder)
                found[name].append(run(work))
        print(f"round {number + 1} of {arguments.rounds} done, load {os.getloadavg()[0]:.1f}", flush=True)
    best = {name: min(result["step_seconds"] for result in results) for name, results in found.items()}
    whole = best["1 process, 2 threads"]
    shape = "vocabulary {}, hidden {}, {} layers, {} tokens x {} rows".format(*SIZES[arguments.size])
    print(f"\nsize {arguments.size}: {shape}")
    for name, results in found.items():
        share = median(result["stall_share"] for result in results)
        longest = max(result["longest_stall_seconds"] for result in results)
        print(
            f"{name:34s} step {best[name] * 1e3:8.1f} ms, x {best[name] / whole:.2f} of one process on both cores; "
            f"checkpoints blocked {share:.2%} of the time, longest {longest * 1e3:.1f} ms; "
            f"loss {results[0]['loss']:.6f}"
        )
    print("Two processes do the same work with the same cores: 1.00 would be no cost at all.")


def on_gpus(arguments: argparse.Namespace, num_gpus: int) -> None:
    """Tokens per second of FSDP2 on 1, 2, 4, ... GPUs, rows per GPU the same."""
    from gpu_shapes import SHAPES

    for name in arguments.shapes.split(","):
        alone = None
        for count in takewhile(lambda count: count <= num_gpus, (1, 2, 4, 8, 16)):
            with tempfile.TemporaryDirectory() as folder:
                mesh = {"shard": count} if count > 1 else None
                work = Work(name, mesh, count, 4, arguments.steps, folder, "cuda", 8 * count, 4, "bf16")
                result = run(work)
            alone = alone or result["tokens_per_second"]
            efficiency = result["tokens_per_second"] / alone / count
            print(
                f"{name} ({SHAPES[name].parameters / 1e9:.1f}B) on {count} GPUs: "
                f"{result['tokens_per_second']:,.0f} tokens/s, "
                f"{efficiency:.0%} of {count} x one; checkpoints blocked {result['stall_share']:.2%}; "
                f"memory {result['memory_bytes'] / 1e9:.0f} GB",
                flush=True,
            )


def run(work: Work) -> dict[str, Any]:
    """Start the processes of a run and return what the first of them measured."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common: dict[str, object] = {"WORLD_SIZE": work.processes, "LOCAL_WORLD_SIZE": work.processes}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--work", json.dumps(asdict(work))],
            env=os.environ
            | {name: str(value) for name, value in common.items()}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(work.threads)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(work.processes)
    ]
    try:
        out, err = started[0].communicate(timeout=1200)
    finally:
        for process in started:
            process.kill()
    if started[0].returncode != 0:
        raise SystemExit(f"the run failed:\n{err[-3000:]}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def train(work: Work) -> dict[str, Any]:
    """One process of a run: the real loop, with a checkpoint every ten steps."""
    from deepen.parallel.config import Compute, Mesh
    from deepen.parallel.process import memory_bytes, set_up
    from deepen.train.beside.interrupt import StopRequest
    from deepen.train.loop import training_steps

    compute = Compute.model_validate(
        {"device": work.device, "threads": work.threads, "micro_batch_rows": work.rows_at_once}
    )
    process = set_up(compute, None if work.mesh is None else Mesh.model_validate(work.mesh))
    prepared = _prepare(work, compute, process)
    steps = training_steps(prepared, StopRequest())
    records = [next(steps) for _ in range(WARM_STEPS + work.steps)][WARM_STEPS:]
    prepared.saver.wait()
    tokens = [after["tokens"] - before["tokens"] for before, after in zip(records, records[1:], strict=False)]
    seconds = [count / record["tokens_per_second"] for count, record in zip(tokens, records[1:], strict=True)]
    stalls = [record["checkpoint_stall_seconds"] for record in records]
    return {
        "step_seconds": median(seconds),
        "tokens_per_second": median(record["tokens_per_second"] for record in records),
        "stall_share": sum(stalls) / (sum(seconds) + sum(stalls)),
        "longest_stall_seconds": max(stalls),
        "memory_bytes": memory_bytes(process.device),
        "loss": records[-1]["loss"],
    }


def _prepare(work: Work, compute: Any, process: Any) -> Any:
    from deepen.formats.manifest import StageJob
    from deepen.train.config import TrainConfig
    from deepen.train.starting.build import prepare_run

    base, inputs, batch_tokens, make = _material(work, process)
    config = TrainConfig.model_validate(
        {
            "tokens": (WARM_STEPS + work.steps + 1) * batch_tokens, "batch_tokens": batch_tokens, "learning_rate": 3e-4,
            "schedule": {"use": "constant", "warmup": "0 steps"}, "precision": work.precision,
            "save": {"every": "10 steps", "milestones": None, "keep": 1},
        }
    )  # fmt: skip
    job = StageJob(Path(work.folder) / "train", "benchmark", inputs)
    if make is None:
        return prepare_run(config, job, base, compute, process=process)
    with mock.patch("deepen.train.starting.model.load_run_model", make):
        return prepare_run(config, job, base, compute, process=process)


def _material(work: Work, process: Any) -> tuple[Any, Any, int, Any]:
    """Base, finished stages, tokens of a batch, and how the model is made where it is too large for a CPU."""
    root = Path(work.folder) / f"inputs-{process.rank}"  # every process makes the same
    if work.device == "cpu":
        from train_data import Size, base_of, random_data

        size = Size(*SIZES[work.what])
        return base_of(size), random_data(root, size), size.tokens_per_step, None
    from gpu_run import _Init, make_model, write_data
    from gpu_shapes import SHAPES

    from deepen.model.config import ResolvedBase

    shape = SHAPES[work.what]
    base = ResolvedBase("random", None, _Init(shape), "random")  # type: ignore[arg-type]
    inputs = write_data(root, shape, work.rows)
    return base, inputs, work.rows * shape.sequence_length, lambda *_, **__: make_model(shape, process.device)


if __name__ == "__main__":
    main()
