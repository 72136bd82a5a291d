"""Blends of a real run: what mixing a trained model with its base costs and gives, beside averages of checkpoints.

TinyStories (656k parameters) is trained on medical questions and answers without anything that keeps it from forgetting
text of its own; `evaluate.blends` then scores eleven shares of the last checkpoint and the average of the last three.

- Bar: share 0 of a blend is the run's starting model and share 1 the checkpoint, bit for bit as the files have them.
- Printed, whichever way it comes out: the curve, the shares at which it is better than the straight line between its
  ends on both axes, the forgetting where 70 % of the gain are kept, the averages, and what `deepen select` takes.

`python benchmarks/blends.py --picture docs/blends.png`; needs DEEPEN_TEST_DATA, and for the picture a Chromium. Each
bar prints PASS or FAIL, and the exit code says whether all passed. The run is kept and taken up again.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # the standard library first: this folder has a `tokenize.py` too

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from pictures import write_picture
from safetensors.torch import load_file
from tiny_runs import recipe, run, write_texts
from transformers import AutoModelForCausalLM, PreTrainedModel

from deepen.evaluate.models.subject import open_blend, open_run_model
from deepen.formats.files.records import read_records
from deepen.formats.manifest import open_artifact
from deepen.formats.training.checkpoints import list_checkpoints
from deepen.formats.training.scores import ALL_CANDIDATES, REPORT_ON, CheckpointScores, Score
from deepen.model.config import ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import unique_weights
from deepen.parallel.config import Compute

KEPT_GAIN = 0.70
_SETTINGS: dict[str, Any] = {
    "mix.domain_share": 0.98, "train.batch_tokens": 2048, "evaluate.every": "20%", "evaluate.forgetting.budget": 0.03,
    "curate.held_out": {"share": 0.05, "at_least": 100, "cap": 40_000}, "train.save": {"milestones": "10%"},
    "evaluate.blends": {"average": 3, "interpolate": 11},
    "evaluate.probes": [{"use": "held_out", "context": 256, "in_loop_tokens": 5_000}],
}  # fmt: skip
passed: list[bool] = []


def judge(what: str, good: bool) -> None:
    """Print whether a bar was met, and remember it."""
    passed.append(good)
    print(f"  {'PASS' if good else 'FAIL'}  {what}", flush=True)


@dataclass(frozen=True)
class Point:
    """A model on both axes."""

    title: str
    new: Score
    kept: Score
    share: float | None = None
    """Of the last checkpoint, the rest being the base; None: no point of the line between them."""

    @property
    def gain(self) -> float:
        """Relative fall of the domain's bits per byte."""
        return -self.new.difference

    @property
    def loss(self) -> float:
        """Relative rise of the kept text's bits per byte."""
        return self.kept.difference


def points_of(path: Path) -> list[Point]:
    """Checkpoints and blends that a run scored, those between base and last checkpoint with their share."""
    scored = [CheckpointScores.model_validate(record, strict=False) for record in read_records(path)]
    last = max(one.step for one in scored)
    found = []
    for one in scored:
        new, kept = one.of("held_out", "new"), one.of("held_out", "kept")
        assert new is not None and kept is not None, "both abilities are measured"
        mixed = [part.weight for part in one.blend if part.step is not None]
        is_between = len(mixed) < len(one.blend)
        share = mixed[0] if is_between else 1.0 if one.step == last and not one.blend else None
        what = f"mean of {len(mixed)} checkpoints" if one.blend and not is_between else f"step {one.step}"
        found.append(Point(what, new, kept, share))
    return found


Weights = Mapping[str, torch.Tensor]


def same_bits(ours: Weights, theirs: Weights) -> bool:
    """Whether two sets of weights have the same names and the same bits."""
    same_names = ours.keys() == theirs.keys()
    return same_names and all(torch.equal(ours[n].view(torch.int32), theirs[n].view(torch.int32)) for n in ours)


def check_ends(directory: Path, base_folder: Path) -> None:
    """Judge both ends, on the run's own files; the middle is held against the mean of the files."""
    base = ResolvedBase(base_folder.name, base_folder, None, "x")
    tokenize = open_artifact(directory / "tokenize")
    assert tokenize is not None, "the run is finished"
    last = list_checkpoints(directory / "train/checkpoints")[-1]

    def fresh() -> LossModel:
        return open_run_model(base, tokenize, seed=17, compute=Compute(device="cpu", threads=2))

    def mixed(share: float) -> PreTrainedModel:
        return open_blend([(last, share), (None, 1 - share)], fresh, base).model

    begun = unique_weights(AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32))
    ended = load_file(last.weights)
    what = "is the model that training began with, as transformers reads it, bit for bit"
    judge(f"share 0 {what}", same_bits(unique_weights(mixed(0.0)), begun))
    judge(f"share 1 is the file of checkpoint {last.step}, bit for bit", same_bits(unique_weights(mixed(1.0)), ended))
    halfway = unique_weights(mixed(0.5))
    error = max(
        float((halfway[name].detach() - (begun[name].detach() + ended[name]) / 2).abs().max()) for name in halfway
    )
    judge(f"share 0.5 is the mean of both (largest difference {error:.1e})", error < 1e-6)


def interval(score: Score) -> str:
    """The change of a score with its interval."""
    low, high = score.interval or (score.difference, score.difference)
    return f"{score.difference:+7.2%} ({low:+.2%} to {high:+.2%})"


def print_curve(points: list[Point]) -> list[Point]:
    """The table of the line between base and checkpoint; returns its points by rising share, without the base."""
    curve = sorted((point for point in points if point.share is not None), key=lambda point: point.share or 0)
    end = curve[-1]
    print("share  new bits per byte, 95 %          kept bits per byte, 95 %        of gain  of loss  beats the line")
    for point in curve:
        gain, loss = point.gain / end.gain, point.loss / end.loss
        beats = point.share != 1 and gain > (point.share or 0) > loss
        row = f"{point.share:5.1f}  {interval(point.new):<32}{interval(point.kept):<32}"
        print(f"{row}{gain:7.0%}{loss:9.0%}{'  yes' if beats else ''}")
    return curve


def print_results(curve: list[Point], others: list[Point]) -> None:
    """What the curve says, and the models that are not on it."""
    end, between = curve[-1], curve[:-1]
    better = [f"{point.share:g}" for point in between
              if point.gain / end.gain > (point.share or 0) > point.loss / end.loss]  # fmt: skip
    print(f"better than the straight line on both axes: {', '.join(better) or 'no share'}")
    enough = [point for point in curve if point.gain >= KEPT_GAIN * end.gain]
    least = min(enough, key=lambda point: point.loss)
    print(f"least forgetting with {KEPT_GAIN:.0%} of the gain: share {least.share:g}, {least.gain / end.gain:.0%} of "
          f"the gain, {least.loss / end.loss:.0%} of the loss ({least.loss:+.2%} not {end.loss:+.2%})")  # fmt: skip
    for point in others:
        print(f"{point.title}: new {interval(point.new)}, kept {interval(point.kept)}")


def picture(curve: list[Point], others: list[Point], target: Path) -> None:
    """Gain against forgetting: the curve, the straight line, and the other models."""
    figure = go.Figure()
    path = [point for point in others if point.title.startswith("step")]
    means = [point for point in others if point not in path]
    end = curve[-1]
    dashed = {"color": "#888888", "dash": "dash"}
    figure.add_scatter(x=[0, end.gain], y=[0, end.loss], mode="lines", line=dashed, name="straight line")
    figure.add_scatter(
        x=[0, *(point.gain for point in curve)], y=[0, *(point.loss for point in curve)], mode="lines+markers+text",
        text=["base", *(f"{point.share:g}" for point in curve)], textposition="bottom right",
        line={"color": "#1f77b4"}, name="share of the last checkpoint, the rest is the base",
    )  # fmt: skip
    marks = (("checkpoints of the run", path, "#d95f02", "circle-open"), ("averages", means, "#2a9d4a", "diamond"))
    for name, found, colour, symbol in marks:
        figure.add_scatter(x=[point.gain for point in found], y=[point.loss for point in found], mode="markers",
                           marker={"color": colour, "symbol": symbol, "size": 10}, name=name)  # fmt: skip
    figure.update_layout(
        template="plotly_white", width=900, height=520, legend={"x": 0.02, "y": 0.98},
        title="Blends of a tiny base and what it became on medical text",
        xaxis={"title": "gain: fall of the domain's bits per byte", "tickformat": ".0%", "rangemode": "tozero"},
        yaxis={"title": "forgetting: rise of the kept text's bits per byte", "tickformat": "+.1%"},
    )  # fmt: skip
    write_picture(figure, target)


def main() -> None:
    """The run, the bar, the curve and the picture."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=200, help="optimizer steps of 2,048 tokens")
    options.add_argument("--documents", type=int, default=2_000, help="of domain and of replay")
    options.add_argument("--runs", type=Path, default=Path("runs/blends"), help="where the run and texts are kept")
    options.add_argument("--picture", type=Path)
    given = options.parse_args()
    runs = given.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    texts = write_texts(runs / "texts", documents=given.documents, seed=1)
    made = recipe(texts, f"steps-{given.steps}", {**_SETTINGS, "train.tokens": 2048 * given.steps})
    directory = run(made, runs, "--until", "select")
    check_ends(directory, texts.base)
    for title, name in (("all held-out documents", ALL_CANDIDATES), ("the half to report on", REPORT_ON)):
        print(f"\n{title}")
        points = points_of(directory / "evaluate" / name)
        others = [point for point in points if point.share is None]
        curve = print_curve(points)
        print_results(curve, others)
        if given.picture is not None and name == ALL_CANDIDATES:
            picture(curve, others, given.picture)
    print(f"\nselect: {json.loads((directory / 'select/choice.json').read_text())['reason']}")
    print(f"\n{sum(passed)} of {len(passed)} bars met")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
