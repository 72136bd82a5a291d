"""The forgetting monitor in closed loop, on a really trained tiny base: what it keeps, and what that costs.

The base (TinyStories, 656k parameters) is trained on medical questions and answers; what it is to keep is text sampled
from itself, so that every rise of its loss is forgetting. Per seed two runs of the same recipe: one that only watches,
and one with a budget of half the forgetting of the first, fixed before it starts, and actions. Bars, per seed:

- the monitored run ends inside its budget;
- it keeps at least 70 % of the gain on the domain.

`python benchmarks/forgetting.py --picture docs/forgetting.png`; needs DEEPEN_TEST_DATA, and for the picture a Chromium.
Each bar prints PASS or FAIL, and the exit code says whether all passed. Runs are kept and taken up again.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from pictures import write_picture
from tiny_runs import Texts, recipe, run, write_texts

from deepen.formats.files.records import read_records
from deepen.formats.training.scores import CheckpointScores, Score

LEAST_GAIN = 0.70
ACTIONS = [{"use": "more_replay", "by": "20 points", "times": 3, "at_least": 0.3},
           {"use": "lower_learning_rate", "to": "0.5x", "times": 2}, "rewind", "stop"]  # fmt: skip
passed: list[bool] = []


def judge(what: str, good: bool) -> None:
    """Print whether a bar was met, and remember it."""
    passed.append(good)
    print(f"  {'PASS' if good else 'FAIL'}  {what}", flush=True)


@dataclass(frozen=True)
class Course:
    """What a run went through."""

    path: list[CheckpointScores]
    decisions: list[dict[str, Any]]

    def last(self, ability: str) -> Score:
        """The score at the end."""
        score = self.path[-1].of("held_out", ability)  # type: ignore[arg-type]
        assert score is not None, "every evaluation scores both abilities"
        return score

    @property
    def gain(self) -> float:
        """Relative fall of the domain's bits per byte at the end."""
        return -self.last("new").difference

    @property
    def loss(self) -> float:
        """Relative rise of the kept text's bits per byte at the end."""
        return self.last("kept").difference


def course_of(train: Path) -> Course:
    """Scores and decisions of a finished training."""
    records = read_records(train / "scores.jsonl")
    path = [CheckpointScores.model_validate(record, strict=False) for record in records]
    decisions = [one for one in read_records(train / "decisions.jsonl") if one.get("by") == "forgetting"]
    return Course(path, decisions)


def trained(texts: Texts, runs: Path, seed: int, steps: int, budget: float | None) -> Course:
    """One run up to the end of its training; without a budget it only watches."""
    name = f"seed-{seed}-{'watched' if budget is None else 'monitored'}"
    changes: dict[str, Any] = {
        "seed": seed, "mix.domain_share": 0.95, "train.batch_tokens": 2048, "train.tokens": 2048 * steps,
        "curate.held_out": {"share": 0.02, "at_least": 40, "cap": 12_000}, "evaluate.every": "5%",
        "evaluate.probes": [{"use": "held_out", "context": 256, "in_loop_tokens": 12_000}],
    }  # fmt: skip
    if budget is not None:
        changes["evaluate.forgetting"] = {"budget": budget, "actions": ACTIONS}
    directory = run(recipe(texts, name, changes), runs, "--until", "train", threads=1)
    return course_of(directory / "train")


def describe(name: str, course: Course) -> None:
    """A line per run, and one per decision."""
    kept = course.last("kept")
    low, high = kept.interval or (kept.difference, kept.difference)
    print(f"  {name}: gain {course.gain:.1%}, kept text lost {kept.difference:+.2%} ({low:+.2%} to {high:+.2%})")
    for one in course.decisions:
        what = f"cannot: {one['cannot']}" if one["cannot"] else str(one["details"])
        print(f"    step {one['step']}: {one['action']} {what}; {one['reason']}", flush=True)


def picture(courses: dict[int, tuple[Course, Course, float]], target: Path) -> None:
    """Loss of the kept text over the steps of every run, with budgets and decisions, as PNG."""
    figure = go.Figure()
    colours = ("#1f77b4", "#d95f02", "#2a9d4a", "#7b3fa0")
    for colour, (seed, (watched, monitored, budget)) in zip(colours, courses.items(), strict=False):
        for course, name, dash in ((watched, "only watched", "dot"), (monitored, "monitored", "solid")):
            steps = [0, *(scores.step for scores in course.path)]
            losses = [score.difference for scores in course.path if (score := scores.of("held_out", "kept"))]
            label = f"seed {seed}, {name}: gain {course.gain:.0%}"
            line = {"color": colour, "dash": dash}
            figure.add_scatter(x=steps, y=[0, *losses], mode="lines", line=line, name=label)
        done = [one for one in monitored.decisions if not one["cannot"]]
        at = {scores.step: score.difference for scores in monitored.path if (score := scores.of("held_out", "kept"))}
        marks = {"color": colour, "size": 9, "symbol": "diamond"}
        figure.add_scatter(
            x=[one["step"] for one in done], y=[at[one["step"]] for one in done], mode="markers", marker=marks,
            name=f"seed {seed}, decisions",
        )  # fmt: skip
        figure.add_hline(y=budget, line={"color": colour, "width": 1, "dash": "dash"})
    figure.update_layout(
        template="plotly_white", width=1000, height=520, xaxis_title="step",
        yaxis={"title": "bits per byte of kept text, against the base", "tickformat": "+.0%"},
        title="Forgetting of a tiny base trained on medical text (dashed: budgets)", legend={"font": {"size": 11}},
    )  # fmt: skip
    write_picture(figure, target)


def main() -> None:
    """All seeds, the bars, and the picture."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options.add_argument("--steps", type=int, default=100, help="optimizer steps of each run")
    options.add_argument("--documents", type=int, default=2_000, help="of domain and of replay")
    options.add_argument("--runs", type=Path, default=Path("runs/forgetting"), help="where runs and texts are kept")
    options.add_argument("--picture", type=Path)
    given = options.parse_args()
    runs = given.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    texts = write_texts(runs / "texts", documents=given.documents, seed=1)
    courses: dict[int, tuple[Course, Course, float]] = {}
    for seed in given.seeds:
        watched = trained(texts, runs, seed, given.steps, None)
        budget = round(watched.loss / 2, 4)
        print(f"seed {seed}: budget {budget:.2%}")
        describe("only watched", watched)
        monitored = trained(texts, runs, seed, given.steps, budget)
        describe("monitored", monitored)
        courses[seed] = watched, monitored, budget
        judge(f"ends inside the budget: {monitored.loss:.2%} of {budget:.2%}", monitored.loss <= budget)
        share = monitored.gain / watched.gain
        judge(f"keeps {share:.0%} of the gain, at least {LEAST_GAIN:.0%}", share >= LEAST_GAIN)
    if given.picture is not None:
        picture(courses, given.picture)
    print(f"\n{sum(passed)} of {len(passed)} bars met")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
