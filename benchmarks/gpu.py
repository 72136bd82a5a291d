"""Training speed on one GPU: this loop on the shapes of known models, and Hugging Face Trainer on the smallest.

    python benchmarks/gpu.py --log gpu.json

Weights are random, in bfloat16 computation; rows are 4,096 tokens of packed documents of lognormal lengths, isolated
from each other, read from token shards through the training order. Gradient clipping, a record for each step and one
background checkpoint inside the timed window are on. Each shape runs in a process of its own, in under 90 seconds.

Needs a checkout, Python 3.12 (3.11 does), torch >= 2.11 with CUDA and its Triton, transformers >= 5.10, and what these
lines name: numpy, pydantic, safetensors, xxhash, zstandard, rich, tokenizers; accelerate for Trainer; a C
compiler for `torch.compile`. Nothing is installed or downloaded. Without a GPU it says so and ends with exit code 2.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout, nothing installed

import argparse
import json
import subprocess
import time
from dataclasses import asdict
from typing import Any

import torch
from gpu_shapes import SHAPES, TOYS, Plan, first_plan, smaller_plan

from deepen.parallel.peaks import peak_bf16

LONGEST = 300
"""Seconds after which a shape is given up."""
COLUMNS = (
    ("shape", "shape", "<14"), ("loop", "loop", "<9"), ("parameters", "params", ">8.2f"),
    ("tokens_per_second", "tok/s", ">9,.0f"),
    ("mfu", "MFU", ">7.1%"), ("mfu_causal", "causal", ">7.1%"), ("peak_gigabytes", "peak GB", ">8.1f"),
    ("data_wait_share", "wait", ">7.2%"), ("stall_seconds", "stall s", ">8.2f"), ("total_seconds", "all s", ">6.0f"),
)  # fmt: skip


def measure(name: str, plan: Plan, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one loop on one shape in a process of its own; with a smaller plan when memory runs out."""
    while True:
        started = time.perf_counter()
        asked = json.dumps({"name": name, "plan": asdict(plan), "toy": arguments.toy, "device": arguments.device})
        command = [sys.executable, str(Path(__file__).with_name("gpu_run.py")), asked]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
        except subprocess.TimeoutExpired:
            return {"shape": name, "loop": plan.loop, "error": f"took longer than {LONGEST} s", "plan": asdict(plan)}
        lines = done.stdout.strip().splitlines()
        found: dict[str, Any] = json.loads(lines[-1]) if done.returncode == 0 and lines else {}
        found |= {
            "shape": name,
            "loop": plan.loop,
            "plan": asdict(plan),
            "total_seconds": time.perf_counter() - started,
        }
        if not lines or done.returncode != 0:
            return found | {"error": done.stderr[-3000:] or f"exit code {done.returncode}"}
        smaller = smaller_plan(plan) if found.get("out_of_memory") else None
        if smaller is None:
            return found
        print(f"  {name}: out of memory with {plan.describe()}; again with {smaller.describe()}", flush=True)
        plan = smaller


def show(record: dict[str, Any]) -> None:
    """Print one row, or why there is none."""
    if "error" in record or record.get("out_of_memory"):
        why = record.get("error", "out of memory").strip().splitlines()[-1]
        print(f"{record['shape']:<14} {record['loop']:<9} no result: {why}", flush=True)
        return
    cells = []
    for key, _, how in COLUMNS:
        value = record[key]
        cells.append(format("-", how[0] + how[1:].split(".")[0].rstrip("%f,")) if value is None else format(value, how))
    print(" ".join(cells), flush=True)


def header(device_name: str, peak: float | None) -> str:
    """What is measured, on what, and how MFU is counted."""
    found = f"{peak / 1e12:.0f} TFLOP/s dense bf16 (data sheet)" if peak else "unknown, so no MFU"
    titles = " ".join(format(title, how[0] + how[1:].split(".")[0].rstrip("%f,")) for _, title, how in COLUMNS)
    return (
        f"{device_name}; torch {torch.__version__}; peak {found}\n"
        "MFU = tokens/s x (6 N + 12 layers x heads x head size x sequence) / peak (PaLM, arXiv 2204.02311, B), N\n"
        "without the input embedding; causal: 6 in place of 12, half of attention, as a causal model computes it.\n"
        "Documents are isolated: both count attention that is not computed. params in billions; wait: share of time\n"
        "without a batch; stall: seconds that saving held the loop up; all: with start, compilation and end\n\n"
        + titles
    )


def main() -> int:
    """Measure all shapes; 1 when one gave no result, 2 without a GPU."""
    parser = argparse.ArgumentParser(description="Training speed on one GPU")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="which to measure")
    parser.add_argument("--log", type=Path, help="write everything that was measured to this file (JSON)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the timed window")
    parser.add_argument("--no-trainer", action="store_true", help="leave out Hugging Face Trainer")
    parser.add_argument("--no-checkpoint", action="store_true", help="save nothing (a full disk, say)")
    parser.add_argument("--deterministic", action="store_true", help="only kernels that repeat bit by bit")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="tiny shapes, to try this script without a GPU")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a GPU that PyTorch can use, and there is none.", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU (toy shapes mean nothing)"
    memory = torch.cuda.get_device_properties(0).total_memory if arguments.device == "cuda" else 8 << 30
    print(header(name, peak_bf16(name)), flush=True)
    records = []
    for shape in arguments.shapes:
        for loop in ("deepen", "Trainer") if shape == "qwen3-0.6b" and not arguments.no_trainer else ("deepen",):
            plan = first_plan((TOYS if arguments.toy else SHAPES)[shape], memory, loop, arguments)
            records.append(measure(shape, plan, arguments))
            show(records[-1])
            if arguments.log:  # after each, so that what is there stays if the next one ends badly
                about = {"device": name, "torch": torch.__version__, "peak_bf16_flops": peak_bf16(name)}
                arguments.log.write_text(json.dumps(about | {"records": records}, indent=1) + "\n")
    return int(any("error" in record or record.get("out_of_memory") for record in records))


if __name__ == "__main__":
    sys.exit(main())
