"""How long training stands still for checkpoints every 50 steps, beside a plain copy of the same state.

One run per size, on a CPU, as the train stage builds it. Each block is what the run itself recorded
(``checkpoint_stall_seconds``: asking for a save, waiting for the one before, waiting for the copy before an update);
the plain copy is a ``clone()`` of all weights and moments half-way between two saves, whose time is left out of the
run's. The bar: 1 % of the time of the steps. With ``--foreground`` saves happen at once, for comparison.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from train_data import Size, random_data
from train_loops import SAVE_EVERY, our_run

from deepen.train.beside.interrupt import StopRequest
from deepen.train.checkpoints.files import Marks, snapshot_of
from deepen.train.loop import training_steps
from deepen.train.run import Run

BAR = 0.01
SIZES = {
    "toy": Size(vocabulary=512, hidden=64, layers=2, sequence_length=64, rows=4),
    "small": Size(vocabulary=4096, hidden=128, layers=2, sequence_length=128, rows=4),
}


@dataclass(frozen=True)
class Blocks:
    """What one run with checkpoints took, in seconds."""

    blocks: dict[int, float]
    """How long training stood still, by the step after the save."""
    clones: dict[int, float]
    """A plain copy of the state in the same run, by step."""
    step_seconds: dict[int, float]
    """Every step, checkpoints included, copies left out."""
    last_wait: float
    """For the last checkpoint to be on the disk, when nothing was left to train meanwhile."""
    state_bytes: int

    @property
    def share(self) -> float:
        """Part of the run's time that checkpoints took from training."""
        return sum(self.blocks.values()) / sum(self.step_seconds.values())

    @property
    def slowdown(self) -> float:
        """How much longer than the others the steps take beside which a checkpoint is copied and written (medians)."""
        beside = [self.step_seconds[step] - block for step, block in self.blocks.items()]
        others = [seconds for step, seconds in self.step_seconds.items() if step % SAVE_EVERY > SAVE_EVERY // 2]
        return median(beside) / median(others) - 1


def measure(root: Path, size: Size, num_steps: int, *, background: bool = True) -> Blocks:
    """Train ``num_steps`` with a checkpoint every 50 of them."""
    size = Size(**{**vars(size), "num_batches": num_steps})
    run = our_run(root / "train", random_data(root, size), size)
    if not background:
        run.saver.background = False
    blocks: dict[int, float] = {}
    clones: dict[int, float] = {}
    seconds: dict[int, float] = {}
    steps = training_steps(run, StopRequest())
    for step in range(1, num_steps):
        started = time.perf_counter()
        record = next(steps)
        seconds[step] = time.perf_counter() - started
        if step > SAVE_EVERY and step % SAVE_EVERY == 1:
            blocks[step] = record["checkpoint_stall_seconds"]
        elif step % SAVE_EVERY == SAVE_EVERY // 2:
            clones[step], state_bytes = clone_seconds(run)
    next(steps)
    return Blocks(blocks, clones, seconds, run.saver.take_stall_seconds(), state_bytes)


def clone_seconds(run: Run) -> tuple[float, int]:
    """Seconds of copying every weight and moment once, by the plainest code, and their bytes."""
    snapshot = snapshot_of(run.trainee.model.model, run.trainee.optimizer, {"step": 0}, Marks())
    started = time.perf_counter()
    copies = [tensor.detach().clone() for part in (snapshot.weights, snapshot.optimizer) for tensor in part.values()]
    seconds = time.perf_counter() - started
    return seconds, sum(copy.numel() * copy.element_size() for copy in copies)


def report(name: str, found: Blocks) -> bool:
    """Print every block beside the plain copy before it; whether the bar was met."""
    print(f"{name}: state of {found.state_bytes / 1e6:.1f} MB, steps took {sum(found.step_seconds.values()):.1f} s")
    for (step, block), clone in zip(found.blocks.items(), found.clones.values(), strict=False):
        print(f"  after step {step - 1:>5}: stood still {1e3 * block:8.2f} ms, a plain copy {1e3 * clone:8.2f} ms")
    print(f"  at the end: waited {1e3 * found.last_wait:.0f} ms for the last checkpoint (nothing left to train)")
    print(f"  steps beside which a checkpoint is written take {found.slowdown:+.0%} (medians)")
    passed = found.share <= BAR
    print(f"  {'PASS' if passed else 'FAIL'}: {found.share:.3%} of the time of the steps (bar {BAR:.0%})")
    return passed


def main() -> int:
    """Measure the sizes asked for; 0 when each met the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all")
    parser.add_argument("--steps", type=int, default=350, help="at least 300 for the bar to mean something")
    parser.add_argument("--foreground", action="store_true", help="save at once, as a comparison")
    arguments = parser.parse_args()
    passed = True
    for name in SIZES if arguments.size == "all" else [arguments.size]:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), SIZES[name], arguments.steps, background=not arguments.foreground)
            passed &= report(name, found)
    return 0 if passed or arguments.foreground else 1


if __name__ == "__main__":
    sys.exit(main())
