"""False alarms and detection of the comparison of two models, on two real runs that differ in the seed alone.

Two runs of one recipe pretrain a tiny model from other random weights in another order (`deepen run`); their documents'
likelihoods and their answers to HellaSwag are the material: from scratch, so that they differ on many items (two runs
that continue one base answer nearly all of them alike, and a trial then has too few swaps). A trial swaps the two
models on each item with probability 1/2: then no model is better, whatever the items are like. Over the trials

- the share of changes that an interval calls sure must lie in the 99 % binomial band around 5 %, per task;
- so must the share of trials in which Holm calls any of all tasks' changes one (or below it: Holm may be careful);
- a drop of the trial's minimum detectable size, planted into it, must be found in 80 % (or in the 99 % band below).

For outcomes of 0 and 1 the drop is planted by swapping unevenly where the models differ, so that they differ on as
many items as before. At last, without a bar: false alarms where the models differ on few items only, since an interval
cannot have every level there. Needs DEEPEN_TEST_DATA. `python benchmarks/false_alarms.py [--trials 200]`: each bar
prints PASS or FAIL, and the exit code says whether all passed.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
import gzip
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tiny_runs import data_folder, recipe, run, write_texts
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen.evaluate.compare.statistics import ALPHA, Change, Pairs, clustered, holm, paired
from deepen.evaluate.documents.likelihoods import read_likelihoods

Array = npt.NDArray[np.float64]
POWER = 0.80
LEAST_DISCORDANT = 100
"""Items on which the models must differ for a trial of outcomes to have the level that is nominal."""
_SETTINGS = {
    "base": {"init": "random", "hidden_size": 128, "layers": 2, "heads": 4, "intermediate_size": 384,
             "max_length": 512},
    "tokenize.vocabulary": {"train": 2048}, "train.learning_rate": 3e-3,
    "train.tokens": 819_200, "train.batch_tokens": 2048, "mix.domain_share": 0.7, "evaluate.every": "100%",
    "curate.held_out": {"share": 0.1, "at_least": 100, "cap": 30_000},
    "evaluate.probes": [{"use": "held_out", "context": 256, "in_loop_tokens": 2_000}],
}  # fmt: skip
passed: list[bool] = []


def judge(what: str, good: bool) -> None:
    """Print whether a bar was met, and remember it."""
    passed.append(good)
    print(f"  {'PASS' if good else 'FAIL'}  {what}")


def band(trials: int, rate: float, level: float = 0.99) -> tuple[int, int]:
    """The counts between which a binomial variable lies with ``level``, half of the rest on either side."""
    tail, below = (1 - level) / 2, 0.0
    low = high = None
    for count in range(trials + 1):
        below += math.comb(trials, count) * rate**count * (1 - rate) ** (trials - count)
        low = count if low is None and below > tail else low
        if below >= 1 - tail:
            high = count
            break
    assert low is not None and high is not None, "a distribution adds up to 1"
    return low, high


@dataclass(frozen=True)
class Task:
    """Items measured with both models."""

    name: str
    first: Array
    second: Array
    is_outcome: bool
    """0 and 1 rather than nats."""

    def swapped(self, generator: np.random.Generator, share: float = 0.5) -> Pairs:
        """Models swapped on each item; ``share``: how often the base gets the better one of two outcomes."""
        if not self.is_outcome or share == 0.5:
            turn = generator.random(len(self.first)) < 0.5
            return clustered(np.where(turn, self.second, self.first), np.where(turn, self.first, self.second))
        to_base = generator.random(len(self.first)) < share
        high, low = np.maximum(self.first, self.second), np.minimum(self.first, self.second)
        return clustered(np.where(to_base, high, low), np.where(to_base, low, high))

    def with_drop(self, generator: np.random.Generator, null: Pairs, drop: float) -> Pairs:
        """A trial in which the model is worse by a relative ``drop``."""
        if not self.is_outcome:
            return replace(null, model=null.model * (1 + drop))
        both, either = float((self.first * self.second).sum()), float((self.first != self.second).sum())
        # The expectation of (both + either (1 - p)) / (both + either p) - 1 is to be -drop.
        return self.swapped(generator, (drop * both + either) / (either * (2 - drop)))


def likelihood_tasks(one: Path, other: Path) -> list[Task]:
    """The held-out documents of every source at the last checkpoints."""
    tables = [
        read_likelihoods(max((path / "evaluate/held_out").glob("*.parquet"))).to_pylist() for path in (one, other)
    ]
    found = [{(row["source"], row["id"]): row["nll"] for row in table if row["nll"]} for table in tables]
    keys = sorted(found[0].keys() & found[1].keys())
    assert len(keys) > 0.99 * len(found[0]), "both runs hold out the same documents"
    tasks = []
    for source in sorted({source for source, _ in keys}):
        first, second = (np.array([nll[key] for key in keys if key[0] == source]) for nll in found)
        tasks.append(Task(f"bits per byte, {source}", first, second, is_outcome=False))
    return tasks


def outcome_task(one: Path, other: Path, items: int) -> Task:
    """Right (1) and wrong (0) choices of HellaSwag endings by likelihood per byte, with the exported models."""
    path = next((data_folder() / "eval_hellaswag").glob("*.jsonl.gz"))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        questions = [json.loads(line) for line in file][:items]
    first, second = (right_choices(folder / "export", questions) for folder in (one, other))
    return Task("accuracy, HellaSwag", first, second, is_outcome=True)


def right_choices(folder: Path, questions: list[dict[str, object]]) -> Array:
    """1 where the gold ending has the highest log-likelihood per byte, float64[questions]."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    return np.array([_is_right(tokenizer, model, question) for question in questions], dtype=np.float64)


@torch.inference_mode()
def _is_right(tokenizer: object, model: torch.nn.Module, question: dict[str, object]) -> bool:
    context = tokenizer(question["ctx"]).input_ids[-200:]  # type: ignore[operator]
    endings = [" " + ending for ending in question["endings"]]  # type: ignore[attr-defined]
    encoded = [tokenizer(ending, add_special_tokens=False).input_ids[:200] for ending in endings]  # type: ignore[operator]
    longest = max(map(len, encoded))
    rows = torch.tensor([context + ids + [0] * (longest - len(ids)) for ids in encoded])
    chances = torch.log_softmax(model(rows).logits[:, len(context) - 1 : -1], dim=-1)
    scores = [
        float(chances[row, range(len(ids)), ids].sum()) / len(ending.encode())
        for row, (ids, ending) in enumerate(zip(encoded, endings, strict=True))
    ]
    return int(np.argmax(scores)) == question["label"]


def is_sure(change: Change) -> bool:
    """Whether the interval excludes no change."""
    assert change.interval is not None, "there are many items"
    return change.interval[0] > 0 or change.interval[1] < 0


def trials_of(tasks: list[Task], trials: int, resamples: int) -> None:
    """All trials; judges the three bars."""
    alarms, found = dict.fromkeys([t.name for t in tasks], 0), dict.fromkeys([t.name for t in tasks], 0)
    detectable: dict[str, list[float]] = {task.name: [] for task in tasks}
    families = 0
    for trial in range(trials):
        generator = np.random.default_rng([2026, trial])
        p_values = {}
        for number, task in enumerate(tasks):
            null = task.swapped(generator)
            change = paired(null, seed=(trial, number), resamples=resamples)
            assert change.minimum_detectable is not None and change.p_value is not None, "there are many items"
            alarms[task.name] += is_sure(change)
            p_values[task.name] = change.p_value
            detectable[task.name].append(change.minimum_detectable)
            planted = task.with_drop(generator, null, change.minimum_detectable)
            found[task.name] += is_sure(paired(planted, seed=(trial, number + 100), resamples=resamples))
        families += min(holm(p_values).values()) <= ALPHA
    low, high = band(trials, ALPHA)
    least = band(trials, POWER)[0]
    print(f"{trials} trials, {resamples} redraws each; 99 % bands: {low} to {high} alarms, at least {least} found")
    for task in tasks:
        size = float(np.mean(detectable[task.name]))
        what = f"{task.name}: {len(task.first)} items, minimum detectable {size:.2%}"
        judge(f"{what}: {alarms[task.name]} false alarms ({alarms[task.name] / trials:.1%})",
              low <= alarms[task.name] <= high)  # fmt: skip
        share = found[task.name] / trials
        judge(f"{task.name}: a drop of that size is found in {share:.1%}", found[task.name] >= least)
    judge(f"any of the {len(tasks)} tasks after Holm: {families} of {trials} trials", families <= high)


def few_discordant(*, trials: int = 1_000, resamples: int = 1_000, items: int = 500) -> None:
    """Print how often an interval is sure by chance when the models differ on few of ``items``, half of them right."""
    print(f"\nfalse alarms by the number of items that the models differ on, of {items}; {trials} trials")
    for count in (3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100):
        alarms = 0
        for trial in range(trials):
            to_base = np.random.default_rng([count, trial]).random(count) < 0.5
            both = (np.arange(items - count) < items // 2).astype(np.float64)
            pairs = clustered(np.concatenate([to_base, both]), np.concatenate([~to_base, both]))
            alarms += is_sure(paired(pairs, seed=(count, trial), resamples=resamples))
        print(f"  {count:>4}: {alarms / trials:.1%}", flush=True)


def main() -> None:
    """Train the two runs (once), then run the trials."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trials", type=int, default=200)
    options.add_argument("--resamples", type=int, default=2_000)
    options.add_argument("--items", type=int, default=2_000, help="HellaSwag questions")
    options.add_argument("--documents", type=int, default=2_000, help="of domain and of replay")
    options.add_argument("--runs", type=Path, default=Path("runs/false-alarms"), help="where runs and texts are kept")
    given = options.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    texts = write_texts((given.runs / "texts").resolve(), documents=given.documents, seed=1)
    one, other = (
        run(recipe(texts, f"seed-{seed}", {**_SETTINGS, "seed": seed}), given.runs.resolve()) for seed in (1, 2)
    )
    tasks = [*likelihood_tasks(one, other), outcome_task(one, other, given.items)]
    for task in tasks:
        differ = float((task.first != task.second).mean())
        print(f"{task.name}: {len(task.first)} items, the runs differ on {differ:.1%}, sums {task.first.sum():.6g} "
              f"and {task.second.sum():.6g}")  # fmt: skip
        if task.is_outcome:
            discordant = int((task.first != task.second).sum())
            judge(f"{task.name}: the runs differ on {discordant} items", discordant >= LEAST_DISCORDANT)
    trials_of(tasks, given.trials, given.resamples)
    few_discordant()
    print(f"\n{sum(passed)} of {len(passed)} bars met")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
