"""Tiny runs started as users start them, as processes of their own that a test can wait for and surely ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.parallel.gang import free_port

TIMEOUT_SECONDS = 900
"""More than anything takes on a slow and busy machine: who needs longer hangs."""
WORDS = "time person year way day thing man world life hand part child eye woman place work week case".split()
TIMES = {
    "tokens_per_second", "data_wait_seconds", "elapsed_seconds", "memory_bytes", "checkpoint_stall_seconds",
    "model_flops_per_second", "mfu",
}  # fmt: skip
RECIPE = """\
name: tiny
base: {init: random, hidden_size: 32, layers: 2, heads: 4, kv_heads: 2, intermediate_size: 64, max_length: 32}
ingest:
  sources:
    - {name: code, role: domain, path: code.jsonl}
    - {name: prose, role: replay, path: prose.jsonl}
curate: {steps: [normalize], held_out: {share: 5%, at_least: 5 documents, cap: 1k tokens}}
tokenize: {vocabulary: {train: 400}}
mix: {sequence_length: 32, domain_share: 0.6, max_epochs: 16}
train:
  tokens: 1920
  batch_tokens: 192
  learning_rate: 1e-2
  precision: fp32
  schedule: {use: wsd, warmup: 1 steps, decay: 20%}
  save: {every: 2 steps, keep: 2}
evaluate: {every: 50%}
"""


def write_inputs(root: Path) -> None:
    """Recipe and sources of a run of 10 steps."""
    root.mkdir(parents=True, exist_ok=True)
    generator = random.Random(5)
    for name in ("code", "prose"):
        lines = []
        for index in range(50):
            words = [f"{generator.choice(WORDS)}{name[0] * generator.randint(0, 3)}" for _ in range(40)]
            lines.append(json.dumps({"text": f"{name} {index} " + " ".join(words)}) + "\n")
        (root / f"{name}.jsonl").write_text("".join(lines))
    (root / "recipe.yaml").write_text(RECIPE)


def machine(root: Path, text: str) -> Path:
    """A machine file with more lines of the test's own."""
    path = root / "machine.yaml"
    path.write_text("workers: 1\ncompute: {threads: 1, device: cpu}\n" + text)
    return path


def deepen(*words: str) -> list[str]:
    return [sys.executable, "-m", "deepen.cli", *words]


def torchrun(processes: int, *options: str) -> list[str]:
    """The beginning of a command line of torchrun; what follows is a module with its arguments."""
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    return [*run, *(options or (f"--master-port={free_port()}",)), "-m", "deepen.cli"]


@contextmanager
def started(command: Sequence[str], root: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process with its output in ``output``; at the end all that came from it are killed."""
    mark = f"DEEPEN_TEST={uuid.uuid4()}"
    if "PYTHONPATH" in environment:
        environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], os.environ.get("PYTHONPATH", "")])
    values = {**os.environ, **environment, **dict([mark.split("=")]), "PYTHONUNBUFFERED": "1"}
    with (root / "output").open("w") as output:
        process = subprocess.Popen(
            command, cwd=root, env=values, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            yield process
        finally:
            for number in marked(mark):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            process.wait()


def marked(text: str) -> list[int]:
    """Processes that have this in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if text.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def finish(command: Sequence[str], root: Path, code: int = 0, **environment: str) -> str:
    """Run to the end, which must come in time and with this exit code; returns the output."""
    with started(command, root, **environment) as process:
        return end(process, root, code)


def end(process: subprocess.Popen[str], root: Path, code: int = 0) -> str:
    try:
        process.wait(TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"it hangs:\n{(root / 'output').read_text()[-5000:]}") from None
    output = (root / "output").read_text()
    assert process.returncode == code, output[-8000:]
    return output


def wait_for_step(root: Path, step: int) -> None:
    """Until ``metrics.jsonl`` has a step."""

    def is_there() -> bool:
        with suppress(FileNotFoundError):
            return any(record["step"] >= step for record in metrics(root))
        return False

    wait_until(is_there, root)


def wait_until(happened: Callable[[], bool], root: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"it never happens:\n{(root / 'output').read_text()[-5000:]}"
        time.sleep(0.05)


def status_of(process: int, name: str) -> str:
    """A line of ``/proc/PROCESS/status``."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


def metrics(root: Path, runs: str = "runs") -> list[dict[str, Any]]:
    """The records of a run without what depends on the clock."""
    lines = (root / runs / "tiny/train/metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def losses(root: Path, runs: str = "runs") -> list[float]:
    """Of the ten steps of a run."""
    found = metrics(root, runs)
    assert [record["step"] for record in found] == list(range(1, 11)), "no step is missing, none comes twice"
    return [record["loss"] for record in found]
