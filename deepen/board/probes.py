"""The part of the report about probes of questions: what they measured, what they could not use, what failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import plotly.graph_objects as go

from deepen.board.charts import COLOURS, fragment
from deepen.board.page import Section, fold, preformatted, table
from deepen.evaluate.compare.summary_table import touched_scores
from deepen.evaluate.items.contaminated import described
from deepen.formats.manifest import Artifact
from deepen.formats.training.said import said
from deepen.formats.training.scores import SCORES, CheckpointScores, Score, score_records

_BITS = "bits per byte"


def probe_sections(stages: Mapping[str, Artifact]) -> Iterator[Section]:
    """A section when there is more than held-out text to tell, or when something failed."""
    base, full = stages["baseline"].counts, stages["evaluate"].counts
    checkpoints = score_records(stages["evaluate"].path / SCORES)
    failed = list(failures(base, full))
    others = any(score["unit"] != _BITS for one in checkpoints for score in one["scores"])
    if not failed and not others:
        return
    body = _failed_table(failed) + contamination_tables(checkpoints, full.get("contamination") or {})
    if others:
        body += values_chart(checkpoints) + _not_used(base) + _samples(stages)
    yield Section("Probes", _lead(failed), body)


def failures(base: Mapping[str, Any], full: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """``(probe, where, reason)`` of every measurement that failed."""
    for label, reason in base.get("failed", {}).items():
        yield label, "base", reason
    for label, reasons in full.get("failed", {}).items():
        yield from ((label, f"step {step}", reason) for step, reason in reasons.items() if step != "base")
    for label, reasons in (full.get("in_loop") or {}).get("failed", {}).items():
        yield from ((label, f"step {step}, during training", reason) for step, reason in reasons.items())


def _lead(failed: list[tuple[str, str, str]]) -> str:
    text = "Answers to the same questions by the base (dotted) and by every checkpoint."
    if failed:
        text += f" {len(failed)} measurements FAILED; the run went on without them."
    return text


def _failed_table(failed: list[tuple[str, str, str]]) -> str:
    return table(("probe that failed", "where", "reason"), failed) if failed else ""


def values_chart(checkpoints: list[dict[str, Any]]) -> str:
    """Values over tokens trained of every probe whose unit is not bits per byte, the base's dotted; of a probe with
    several tasks their mean, where it has one."""
    figure = go.Figure()
    found: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    for one in checkpoints:
        means = {(score["probe"], score["ability"]) for score in one["scores"]}
        for score in one["scores"]:
            name, is_part, _ = score["probe"].partition(":")
            if score["unit"] != _BITS and not (is_part and (name, score["ability"]) in means):
                found.setdefault((score["probe"], score["ability"]), []).append((one["tokens"], score))
    for number, ((probe, ability), points) in enumerate(found.items()):
        colour = COLOURS[number % len(COLOURS)]
        tokens = [0, *(tokens for tokens, _ in points)]
        baseline = points[0][1]["baseline"]
        values = [baseline, *(score["value"] for _, score in points)]
        figure.add_scatter(
            x=tokens, y=values, name=f"{probe} ({ability})", legendgroup=f"{probe}{ability}", line={"color": colour}
        )
        figure.add_scatter(
            x=[0, tokens[-1]], y=[baseline, baseline], line={"dash": "dot", "color": colour}, showlegend=False,
            legendgroup=f"{probe}{ability}",
        )  # fmt: skip
    figure.update_xaxes(title="tokens trained")
    figure.update_yaxes(title="share of items")
    return fragment(figure)


def contamination_tables(checkpoints: list[dict[str, Any]], found: Mapping[str, Any]) -> str:
    """What was found of test items in trained documents, and the last checkpoint's scores with and without them."""
    probes = found.get("probes", {})
    told = [(described(label, counts),) for label, counts in probes.items()]
    told += [(f"{label}: its items were kept out of the documents",) for label in found.get("kept_out", ())]
    told += [(f"{label}: could not be looked for: {why}",) for label, why in found.get("failed", {}).items()]
    told += [(f"{name}: token ids without text, not looked through",) for name in found.get("not_scanned", ())]
    if not told:
        return ""
    body = table(("test items in trained documents",), told)
    last = CheckpointScores.model_validate(checkpoints[-1], strict=False) if checkpoints else None
    rows = list(_with_and_without(last, probes)) if last is not None else []
    if last is not None and rows:
        columns = (
            "score",
            "items",
            "base",
            "value",
            "change",
            "items left",
            "base without",
            "without",
            "change without",
        )
        body += f"<p>Step {last.step} with all items, and without those that stand in trained documents:</p>"
        body += table(columns, rows)
    return body


def _with_and_without(one: CheckpointScores, probes: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for score in touched_scores(one, probes):
        left = next((s for s in one.without_hits if (s.probe, s.ability) == (score.probe, score.ability)), None)
        without = ("too few", "-", "-", "-") if left is None else _cells(left)
        yield (score.probe, *_cells(score), *without)


def _cells(score: Score) -> tuple[Any, ...]:
    return score.items, score.baseline, score.value, said(score)


def _not_used(base: Mapping[str, Any]) -> str:
    rows = [
        (label, reason, number, ", ".join(probe.get("examples", {}).get(reason, ())))
        for label, probe in base.get("probes", {}).items()
        for reason, number in probe.get("not_used", {}).items()
    ]
    cut = [(label, probe["cut"], probe["items"]) for label, probe in base.get("probes", {}).items() if probe.get("cut")]
    shown = fold("items that are not used", table(("probe", "reason", "items", "such as"), rows)) if rows else ""
    if cut:
        shown += fold("prompts longer than the model's context", table(("probe", "beginning cut off", "items"), cut))
    return shown


def _samples(stages: Mapping[str, Artifact]) -> str:
    """The texts of the last checkpoint, beside the base's."""
    found = sorted(stages["evaluate"].path.glob("*/step-*.md"))
    return preformatted("texts of the last checkpoint", found[-1].read_text()) if found else ""
