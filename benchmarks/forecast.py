"""The forecast behind "under-trained", held against runs that were really made longer by a quarter.

TinyStories (656k parameters) is trained on medical questions and answers with 30 % replay, with four schedules and
three lengths; each run a second time with 1.25 times the tokens. `deepen diagnose` forecasts from the first what the
second gained, without having seen it.

- Bar: what came is not surely less than what was surely forecast, in any run. A finding would be false otherwise.
- Printed: forecast and outcome of every run, with 95 % intervals by document.

`python benchmarks/forecast.py --runs FOLDER`; needs DEEPEN_TEST_DATA; about an hour on two cores. Runs are kept and
taken up again; the exit code says whether the bar was passed.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
from pathlib import Path
from typing import Any

from tiny_runs import Texts, recipe, run, write_texts

from deepen.evaluate.compare.documents import compare
from deepen.evaluate.documents.likelihoods import read_likelihoods
from deepen.formats.training.checkpoints import checkpoint_name
from deepen.formats.training.scores import Score
from deepen.runs.diagnose.evidence import case_of

SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"use": "cosine", "warmup": "2%"},
    "zero": {"use": "cosine", "warmup": "2%", "floor": 0.0},
    "wsd": {"use": "wsd", "warmup": "2%", "decay": "15%"},
    "constant": {"use": "constant", "warmup": "2%"},
}
LENGTHS = (48, 160, 320)
BATCH_TOKENS, RATE = 1024, 1e-3


def trained(texts: Texts, runs: Path, schedule: str, steps: int, *, seed: int, every: str) -> Path:
    """Directory of a run that is trained and evaluated, now or earlier."""
    name = f"{schedule}-{steps}-{seed}-{RATE:g}"
    changes = {
        "seed": seed, "mix.sequence_length": 128, "mix.domain_share": 0.7, "train.tokens": steps * BATCH_TOKENS,
        "train.batch_tokens": BATCH_TOKENS, "train.learning_rate": RATE, "train.schedule": SCHEDULES[schedule],
        "train.save": {"milestones": None}, "curate.held_out": {"share": 0.1, "at_least": 50, "cap": 12_000},
        "evaluate.every": every,
        "evaluate.probes": [{"use": "held_out", "context": 128, "in_loop_tokens": 500}],
    }  # fmt: skip
    if (runs / name / "evaluate" / "manifest.json").is_file():
        return runs / name
    return run(recipe(texts, name, changes), runs, "--until", "evaluate", "--offline", threads=1)


def gained(shorter: Path, longer: Path, steps: tuple[int, int], seed: int) -> Score:
    """The change of domain bits per byte from the end of one run to the end of the other, paired by document."""
    folders = zip((shorter, longer), steps, strict=True)
    tables = [read_likelihoods(one / f"evaluate/held_out/{checkpoint_name(step)}.parquet") for one, step in folders]
    return compare(tables[0], tables[1], {"domain": "new"}, probe="held_out", seed=seed)[0]


def main() -> None:
    """Train what is missing, compare, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/forecast"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    texts = write_texts(options.runs / "texts", documents=500, seed=5)
    runs, seed, good = options.runs / "runs", options.seed, True
    for schedule in SCHEDULES:
        for steps in LENGTHS:
            longer = steps * 5 // 4
            first = trained(texts, runs, schedule, steps, seed=seed, every="12.5%")
            second = trained(texts, runs, schedule, longer, seed=seed, every="100%")
            found, came = case_of(first).forecast, gained(first, second, (steps, longer), seed)
            assert found is not None and came.interval is not None, "there are enough checkpoints and documents"
            low, high = found.interval
            passes = -came.interval[0] >= low
            good &= passes
            told = f"forecast {found.gain:.1%} ({low:.1%} to {high:.1%})"
            truth = f"came {-came.difference:.1%} ({-came.interval[1]:.1%} to {-came.interval[0]:.1%})"
            print(f"{'PASS' if passes else 'FAIL'}  {schedule:9} {steps:4} steps: {told}, {truth}", flush=True)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
