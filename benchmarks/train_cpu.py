"""Speed, overhead, memory and arithmetic of the training loop against Hugging Face Trainer and a bare loop, on a CPU.

Real packed text with document and target masks, accumulation, a record for every step and checkpoints. Loops go in
turns within one process, in rotating order, because a shared machine drifts; the best round counts, intervals are of
the ratios within rounds. Memory: one process each. Arithmetic: loss curves in fp64.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from train_data import Size, random_data, real_data, real_documents
from train_loops import (
    SAVE_EVERY,
    Documents,
    bare_steps,
    our_run,
    our_steps,
    trainer_on_rows,
    trainer_with_defaults,
)

from deepen.train.batches.read import IGNORED, Batches

SPEED = Size(vocabulary=8192, hidden=256, layers=4, sequence_length=256, rows=8, num_batches=2_000, micro_batch_rows=4)
TOY = Size(vocabulary=128, hidden=32, layers=1, sequence_length=16, rows=2, num_batches=100_000)
MEMORY = Size(vocabulary=150_016, hidden=128, layers=2, sequence_length=512, rows=8, num_batches=8)
PRECISE = Size(vocabulary=512, hidden=64, layers=2, sequence_length=64, rows=4, num_batches=20, micro_batch_rows=2)

Speeds = dict[str, list[float]]


def take_turns(loops: dict[str, Iterator[float]], tokens: dict[str, int], rounds: int, steps: int) -> Speeds:
    """Tokens per second of each loop in each round; ``tokens`` is what a step of each trains."""
    for loop in loops.values():
        for _ in range(3):
            next(loop)
    speeds: Speeds = {name: [] for name in loops}
    names = list(loops)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            started = time.perf_counter()
            for _ in range(steps):
                next(loops[name])
            speeds[name].append(steps * tokens[name] / (time.perf_counter() - started))
    return speeds


def measure_speed(root: Path, rounds: int, steps: int) -> tuple[Speeds, Speeds]:
    """Same rows and settings for all; and ours as it comes against Trainer as it comes, in trained tokens."""
    inputs = real_data(root, SPEED)
    run = our_run(root / "train", inputs, SPEED)
    same = {"deepen": our_steps(run)}
    same["bare, our loss"] = bare_steps(run.batches, SPEED, our_loss=True)
    same["bare"] = bare_steps(run.batches, SPEED)
    same["Trainer"] = trainer_on_rows(run.batches, SPEED)
    equal = take_turns(same, dict.fromkeys(same, SPEED.tokens_per_step), rounds, steps)

    documents = Documents(real_documents(SPEED.vocabulary)[0], SPEED)
    by_default = our_run(root / "default", inputs, replace(SPEED, micro_batch_rows=None), precision="auto")
    both = {"deepen": our_steps(by_default), "Trainer": trainer_with_defaults(documents)}
    tokens = {"deepen": _labels_per_step(run.batches), "Trainer": 8 * _mean_trained(documents)}
    print(f"deepen by default: {by_default.trainee.precision}")
    defaults = take_turns(both, tokens, rounds, steps)
    return equal, defaults


def _labels_per_step(batches: Batches) -> int:
    """Predicted tokens of a batch, the prompts counted: Trainer's documents have no mask."""
    found = [batches[index] for index in range(20)]
    return int(np.mean([(batch.labels_BT != IGNORED).sum() + batch.masked_B.sum() for batch in found]))


def _mean_trained(documents: Documents) -> int:
    """Predicted tokens of a document cut at the row's length."""
    return int(np.mean([min(len(ids), documents.size.sequence_length) - 1 for ids in documents.documents]))


def measure_overhead(root: Path, rounds: int) -> dict[str, float]:
    """Milliseconds per step of a network that computes next to nothing; the median of the rounds."""
    inputs = random_data(root, TOY)
    run = our_run(root / "train", inputs, TOY)
    loops = {
        "deepen": our_steps(run),
        "bare": bare_steps(run.batches, TOY),
        "Trainer": trainer_on_rows(run.batches, TOY),
    }
    per_second = take_turns(loops, dict.fromkeys(loops, 1), rounds, SAVE_EVERY - 1)
    return {name: 1e3 / float(np.median(values)) for name, values in per_second.items()}


def paired_interval(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median ratio within a round."""
    ratios = np.array(ours) / np.array(theirs)
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (4000, len(ratios))), axis=1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


def peak_memory(kind: str) -> int:
    """Largest resident memory of this process after three steps of one loop, in bytes."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        inputs = random_data(root, MEMORY)
        batches = Batches.open(root / "tokenize", root / "mix")
        if kind == "deepen":
            loop = our_steps(our_run(root / "train", inputs, MEMORY))
        else:
            loop = {"bare": bare_steps, "Trainer": trainer_on_rows}[kind](batches, MEMORY)
        for _ in range(3):
            next(loop)
        status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def memory_of(kind: str) -> int:
    """``peak_memory`` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--memory", kind], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.strip().splitlines()[-1]))


def largest_difference(root: Path) -> float:
    """Largest relative difference of loss between our loop (in two micro-batches) and the bare one, in fp64."""
    run = our_run(root / "train", real_data(root, PRECISE), PRECISE)
    run.trainee.model.double()
    ours = list(our_steps(run))
    bare = list(bare_steps(run.batches, PRECISE, torch.float64))
    assert len(ours) == len(bare) == PRECISE.num_batches
    assert max(bare) - min(bare) > 1e-3, "a curve that does not move proves nothing"
    return max(abs(a - b) / b for a, b in zip(ours, bare, strict=True))


def print_speeds(title: str, speeds: Speeds) -> dict[str, float]:
    """One line per loop; returns the ratio of our best round to each other's."""
    print(f"\n{title}\n{'loop':<16}{'best tokens/s':>15}{'median':>10}{'ours / it':>12}{'95 % of ratio':>18}")
    ratios = {}
    for name, values in speeds.items():
        low, high = paired_interval(speeds["deepen"], values)
        ratios[name] = max(speeds["deepen"]) / max(values)
        interval = f"{low:.3f} .. {high:.3f}"
        print(f"{name:<16}{max(values):>15,.0f}{np.median(values):>10,.0f}{ratios[name]:>12.3f}{interval:>18}")
    return ratios


def main() -> int:
    """Measure, print tables and one PASS or FAIL per bar; the exit code is 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of each comparison (at least 10)")
    parser.add_argument("--steps", type=int, default=5, help="steps of each loop in a round")
    parser.add_argument("--memory", choices=("deepen", "bare", "Trainer"), help="only print one loop's peak memory")
    arguments = parser.parse_args()
    if arguments.memory:
        print(peak_memory(arguments.memory), flush=True)
        os._exit(0)  # Trainer's thread waits for a step that never comes
    rounds = max(10, arguments.rounds)
    print(f"{torch.get_num_threads()} threads\nspeed: {SPEED}\noverhead: {TOY}\nmemory: {MEMORY}")
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        equal, defaults = measure_speed(Path(one), rounds, arguments.steps)
        milliseconds = measure_overhead(Path(two), rounds)
    ratios = print_speeds("Same rows, precision, optimizer; records and checkpoints in deepen and Trainer", equal)
    by_default = print_speeds("Each with its own defaults, predicted tokens", defaults)
    print("\nMilliseconds per step of a toy:", ", ".join(f"{name} {value:.2f}" for name, value in milliseconds.items()))
    overhead = {name: value - milliseconds["bare"] for name, value in milliseconds.items()}
    memory = {kind: memory_of(kind) for kind in ("deepen", "bare", "Trainer")}
    print("Peak MB:", ", ".join(f"{name} {value / 1e6:,.0f}" for name, value in memory.items()))
    with tempfile.TemporaryDirectory() as directory:
        difference = largest_difference(Path(directory))
    return judge(
        [
            ("speed against a bare loop with the same loss", ratios["bare, our loss"], ">=", 0.95),
            ("speed against Trainer, same settings", ratios["Trainer"], ">=", 1.0),
            ("speed against Trainer, each with its defaults", by_default["Trainer"], ">=", 1.5),
            ("overhead per step against Trainer's", overhead["deepen"] / overhead["Trainer"], "<=", 0.6),
            ("peak memory against Trainer, 150k vocabulary", memory["deepen"] / memory["Trainer"], "<=", 0.5),
            ("fp64 loss difference to bare", difference, "<=", 1e-9),
        ]
    )


def judge(bars: list[tuple[str, float, str, float]]) -> int:
    """Print a line for each bar; 1 when one is missed."""
    passed = [value >= bar if sign == ">=" else value <= bar for _, value, sign, bar in bars]
    for (name, value, sign, bar), good in zip(bars, passed, strict=True):
        print(f"{'PASS' if good else 'FAIL'}  {name}: {value:.3g} ({sign} {bar})")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
