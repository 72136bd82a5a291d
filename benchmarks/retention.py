"""What penalties on leaving the base keep, and what they cost, on a really trained tiny base.

The base (TinyStories, 656k parameters) is trained on medical questions and answers with a little replay; what it is to
keep is text sampled from itself. The same recipe without a penalty and with each of several, same steps, same order of
data; per run the gain on the domain and the rise of the kept text's bits per byte, on held-out documents. Bars:

- `kl`, at every strength, forgets less than no penalty;
- `ewc` and `l2_sp` forget no more than no penalty.

`python benchmarks/retention.py`; needs DEEPEN_TEST_DATA. Runs are kept and taken up again.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
from pathlib import Path
from typing import Any

from tiny_runs import Texts, recipe, run, write_texts

from deepen.formats.files.records import read_records
from deepen.formats.training.scores import CheckpointScores, Score

PENALTIES: dict[str, dict[str, Any]] = {
    "none": {},
    "kl 0.5": {"kl": {"strength": 0.5}},
    "kl 2": {"kl": {"strength": 2.0}},
    "kl 8": {"kl": {"strength": 8.0}},
    "ewc 1": {"ewc": {"strength": 1.0, "sequences": 256}},
    "ewc 100": {"ewc": {"strength": 100.0, "sequences": 256}},
    "l2_sp 0.01": {"l2_sp": {"strength": 0.01}},
    "l2_sp 0.1": {"l2_sp": {"strength": 0.1}},
}


def trained(texts: Texts, runs: Path, seed: int, steps: int, name: str) -> CheckpointScores:
    """The scores at the end of one run."""
    changes: dict[str, Any] = {
        "seed": seed, "mix.domain_share": 0.8, "train.batch_tokens": 2048, "train.tokens": 2048 * steps,
        "train.weight_decay": 0.0, "train.precision": "fp32", "train.retention": PENALTIES[name],
        "curate.held_out": {"share": 0.02, "at_least": 40, "cap": 12_000}, "evaluate.every": "100%",
        "evaluate.probes": [{"use": "held_out", "context": 256, "in_loop_tokens": 12_000}],
    }  # fmt: skip
    label = f"seed-{seed}-{name.replace(' ', '-').replace('.', '_').replace('l2_sp', 'l2sp')}"
    directory = run(recipe(texts, label, changes), runs, "--until", "train", threads=1)
    return CheckpointScores.model_validate(list(read_records(directory / "train/scores.jsonl"))[-1], strict=False)


def score_of(scores: CheckpointScores, ability: Any) -> Score:
    """Held-out bits per byte of one ability."""
    score = scores.of("held_out", ability)
    assert score is not None, "every evaluation scores both abilities"
    return score


def main() -> None:
    """All seeds and penalties, and the bars."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="+", default=[1])
    options.add_argument("--steps", type=int, default=80, help="optimizer steps of each run")
    options.add_argument("--documents", type=int, default=2_000, help="of domain and of replay")
    options.add_argument("--runs", type=Path, default=Path("runs/retention"), help="where runs and texts are kept")
    given = options.parse_args()
    runs = given.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    texts = write_texts(runs / "texts", documents=given.documents, seed=1)
    passed: list[bool] = []
    for seed in given.seeds:
        plain = None
        for name in PENALTIES:
            scores = trained(texts, runs, seed, given.steps, name)
            new, kept = score_of(scores, "new"), score_of(scores, "kept")
            low, high = kept.interval or (kept.difference, kept.difference)
            line = f"seed {seed}, {name}: gain {-new.difference:.1%}, kept text lost {kept.difference:+.2%}"
            print(f"{line} ({low:+.2%} to {high:+.2%})", flush=True)
            if plain is None:
                plain = kept.difference
                continue
            good = kept.difference < plain if name.startswith("kl") else kept.difference <= plain
            passed.append(good)
            print(f"  {'PASS' if good else 'FAIL'}  against {plain:+.2%} without a penalty", flush=True)
    print(f"\n{sum(passed)} of {len(passed)} bars met")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
