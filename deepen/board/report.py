"""The report of a run as one self-contained HTML file: what was gained, what was kept, and from what it was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from deepen.board import charts
from deepen.board.console import outcomes_of
from deepen.board.decisions import COLUMNS, decision_rows
from deepen.board.masking import masked
from deepen.board.page import Card, Section, fold, preformatted, render, table
from deepen.errors import RunError
from deepen.formats.atomic import write_bytes
from deepen.formats.manifest import Artifact
from deepen.formats.records import read_records
from deepen.formats.yaml_text import read_yaml
from deepen.progress import readable
from deepen.workflow.account import account
from deepen.workflow.batches import open_order, shares_over_time
from deepen.workflow.decisions import decisions_of
from deepen.workflow.lineage import StageStatus, status
from deepen.workflow.preview import examples
from deepen.workflow.stages import finished_stages

_MOST_STEPS = 200


def write_report(run: Path) -> Path:
    """Write ``report.html`` into ``run`` from whatever stages are finished; raises ``RunError`` when none is."""
    stages = finished_stages(run)
    if not stages:
        raise RunError(f"`{run}` has no finished stage to report on", hint="run it first: `deepen run RECIPE`")
    recipe = read_yaml(run / "recipe.yaml").data
    path = run / "report.html"
    rows = status(run)
    script = f"<script>{get_plotlyjs()}</script>"
    page = render(
        f"deepen: {recipe['name']}",
        _subtitle(recipe, stages),
        _cards(stages),
        _sections(run, recipe, stages, rows),
        script,
    )
    write_bytes(path, page.encode())
    return path


def _subtitle(recipe: Mapping[str, Any], stages: Mapping[str, Artifact]) -> str:
    base = recipe["base"]
    name = base if isinstance(base, str) else base.get("run") or f"random {base.get('architecture')}"
    last = list(stages.values())[-1].manifest
    return f"base: {name} · seed {recipe['seed']} · last stage {last.stage}, finished {_when(last.finished)} UTC"


def _when(time: str) -> str:
    """A time to the minute, for people."""
    return time.replace("T", " ")[:16]


def _cards(stages: Mapping[str, Artifact]) -> Iterator[Card]:
    if "select" in stages:
        yield from _choice_cards(_choice(stages))
    if "train" in stages:
        counts = stages["train"].counts
        tokens = sum(source["tokens"] for source in counts["sources"].values())
        yield Card(
            "trained", readable(tokens), f"tokens in {counts['steps']:,} steps; last loss {counts['final_loss']:.3f}"
        )
    if "export" in stages:
        difference = stages["export"].counts["largest_logit_difference"]
        mood = "good" if difference == 0 else ""
        yield Card("export", f"{difference:.2g}", "largest difference of logits after reload", mood)


def _choice(stages: Mapping[str, Artifact]) -> dict[str, Any]:
    return dict(json.loads((stages["select"].path / "choice.json").read_text()))


def _choice_cards(choice: Mapping[str, Any]) -> Iterator[Card]:
    step = choice["step"]
    if step is None:
        yield Card("chosen", "the base", "no checkpoint qualified", "bad")
        return
    chosen = next(candidate for candidate in choice["candidates"] if candidate["step"] == step)
    yield Card("chosen", f"step {step}", choice["rule"].replace("_", " "))
    if chosen["new"] is not None:
        mood = "good" if chosen["new"] < 0 else "bad"
        yield Card("domain", f"{chosen['new']:+.1%}", "bits per byte against the base; less is better", mood)
    if chosen["kept"] is not None:
        mood = "good" if chosen["eligible"] else "bad"
        yield Card("kept", f"{chosen['kept']:+.1%}", "bits per byte of general text; less is better", mood)


def _sections(
    run: Path, recipe: Mapping[str, Any], stages: Mapping[str, Artifact], rows: list[StageStatus]
) -> Iterator[Section]:
    if "select" in stages:
        yield from _outcome_sections(run, recipe, stages)
    if "train" in stages:
        metrics = list(read_records(stages["train"].path / "metrics.jsonl"))
        body = charts.loss_chart(metrics) + charts.learning_rate_chart(metrics)
        if decided := decision_rows(decisions_of(run)):
            body += fold(f"{len(decided)} decisions of the run", table(COLUMNS, decided))
        yield Section("Training", "Loss of every step and smoothed; learning rate and gradient norm below.", body)
    if "mix" in stages:
        yield _mixture_section(run, stages["mix"])
    if "tokenize" in stages and (stages["tokenize"].path / "report.json").is_file():
        yield _vocabulary_section(stages["tokenize"])
    if "curate" in stages:
        yield _funnel_section(stages)
    yield _account_section(run)
    yield _lineage_section(rows)
    text = (run / "recipe.yaml").read_text()
    yield Section("Recipe", "With every default written out.", preformatted("show recipe.yaml", text))


def _outcome_sections(run: Path, recipe: Mapping[str, Any], stages: Mapping[str, Artifact]) -> Iterator[Section]:
    choice, budget = _choice(stages), float(recipe["evaluate"]["forgetting"]["budget"])
    paths = {recipe["name"]: choice["candidates"]} | _neighbours(run, stages)
    body = charts.plane_chart(paths, budget, choice["step"])
    yield Section("Gain against forgetting", _reading(choice), body + _rules(choice))
    checkpoints = list(read_records(stages["evaluate"].path / "scores.jsonl"))
    rows = [
        (
            c["step"],
            s["probe"],
            s["ability"],
            s["baseline"],
            s["value"],
            f"{s['difference']:+.2%}",
            _interval(s),
            s["items"],
        )
        for c in checkpoints
        for s in c["scores"]
    ]
    columns = ("step", "probe", "ability", "base", "value", "change", "95 % interval", "documents")
    lead = (
        "Held-out bits per byte against the untouched base on the same documents; bars are 95 % intervals by document."
    )
    shown = choice["step"] if choice["step"] is not None else checkpoints[-1]["step"]
    chosen, others = [row for row in rows if row[0] == shown], [row for row in rows if row[0] != shown]
    every = fold(f"scores of the other {len(checkpoints) - 1} checkpoints", table(columns, others))
    yield Section("Scores over time", lead, charts.change_chart(checkpoints, budget) + table(columns, chosen) + every)


def _interval(score: Mapping[str, Any]) -> str:
    return "{:+.2%} to {:+.2%}".format(*score["interval"]) if score["interval"] else "not computed"


def _rules(choice: Mapping[str, Any]) -> str:
    """What every rule of selection would have taken."""
    by_step = {candidate["step"]: candidate for candidate in choice["candidates"]}
    rows = []
    for one in (choice, *choice["alternatives"]):
        taken = by_step.get(one["step"])
        new, kept = (f"{taken[axis]:+.2%}" if taken and taken[axis] is not None else "-" for axis in ("new", "kept"))
        name = one["rule"] + (" (this recipe's)" if one is choice else "")
        rows.append((name, "the base" if taken is None else f"step {one['step']}", new, kept))
    return fold("what each rule would take", table(("rule", "takes", "new", "kept"), rows))


def _reading(choice: Mapping[str, Any]) -> str:
    """The argument of the choice, with a word on what a surely improved kept ability means."""
    chosen = next((c for c in choice["candidates"] if c["step"] == choice["step"]), None)
    reason = f"{choice['reason']} Changes are of bits per byte against the untouched base: less is better."
    if chosen is not None and chosen["kept_upper"] is not None and chosen["kept_upper"] < 0:
        reason += " General text improved as well: the base was under-trained there and still learns from the replay."
    return reason


def _neighbours(run: Path, stages: Mapping[str, Artifact]) -> dict[str, Any]:
    """Candidates of neighbouring runs measured against the very same baseline, for comparison in the plane."""
    mark = stages["baseline"].fingerprint
    found = {}
    for other in sorted(run.resolve().parent.iterdir()):
        if other == run.resolve() or not (other / "select" / "manifest.json").is_file():
            continue
        theirs = finished_stages(other)
        if "baseline" in theirs and theirs["baseline"].fingerprint == mark and "select" in theirs:
            found[other.name] = _choice(theirs)["candidates"]
    return found


def _mixture_section(run: Path, mix: Artifact) -> Section:
    order = open_order(run)
    steps, shares = shares_over_time(order, _MOST_STEPS)
    rows = [
        (
            name,
            s["role"],
            s["shard_tokens"],
            s["rows"],
            s["padding"],
            s["order_rows"],
            round(float(s["epochs"]), 2),
            s["unused_tokens"],
        )
        for name, s in mix.counts["sources"].items()
    ]
    columns = ("source", "role", "tokens", "rows", "padding", "rows in the order", "epochs", "tokens unused")
    phases = mix.counts["phases"]
    lengths = ", then ".join(f"{length:,}" for length in dict.fromkeys(p["sequence_length"] for p in phases))
    changes = "; later changes of the mixture are laid over it" if len(order.appended) else ""
    lead = f"What the model sees, as written down before training: rows of {lengths} tokens{changes}."
    body = charts.mixture_chart(shares, steps) + table(columns, rows)
    return Section("Mixture", lead, body + _phase_table(phases) if len(phases) > 1 else body)


def _phase_table(phases: list[dict[str, Any]]) -> str:
    """Shares of the sources by phase, as asked and as the order has them."""
    rows = [
        (
            f"{p['first_batch'] + 1} to {p['first_batch'] + p['num_batches']}",
            p["sequence_length"],
            name,
            f"{p['asked'][name]:.2%}",
            f"{p['realised'][name]:.2%}",
        )
        for p in phases
        for name in p["asked"]
    ]
    return table(("steps", "tokens in a row", "source", "share asked", "share in the order"), rows)


def _vocabulary_section(tokenized: Artifact) -> Section:
    """How the base's vocabulary fits the text of each source, and what a larger one changed."""
    report = json.loads((tokenized.path / "report.json").read_text())
    rows = [
        (
            s["source"],
            s["language"] or "",
            s["unit"],
            f"{s['fertility']:.2f}",
            f"{s['bytes_per_token']:.2f}",
            f"{s['continued_share']:.1%}",
            f"{s['byte_share']:.1%}",
            f"{s['premium']:.2f}",
        )
        for s in report["sources"]
    ]
    columns = (
        "source",
        "language",
        "unit",
        "tokens per unit",
        "bytes/token",
        "split",
        "bytes of characters",
        "x English",
    )
    lead = f"Verdict on the base's vocabulary: {report['verdict']}, because {report['reason']}."
    if report["extension"] is not None:
        lead += f" This run added {report['extension']['new_tokens']:,} tokens."
    return Section("Vocabulary", lead, table(columns, rows))


def _funnel_section(stages: Mapping[str, Artifact]) -> Section:
    flows = {name: outcomes_of(source) for name, source in stages["curate"].counts["sources"].items()}
    rows = [
        (
            name,
            s["role"],
            s["licence"] or "not stated",
            s["files"],
            s["documents"],
            s["bytes"],
            sum(s["rejected"].values()),
        )
        for name, s in stages["ingest"].counts["sources"].items()
    ]
    columns = ("source", "role", "licence", "files", "documents", "bytes", "rejected")
    lead = "From files to training documents; every drop has a reason."
    body = table(columns, rows) + charts.funnel_chart(flows) + _drop_examples(stages["curate"])
    return Section("Funnel", lead, body)


def _drop_examples(curated: Artifact) -> str:
    """One dropped document for each source and reason; addresses and telephone-like numbers are covered."""
    counts = curated.counts["sources"]
    rows = [
        (e["source"], e["reason"], counts[e["source"]]["dropped"][e["reason"]], f"{e['value']:.4g}", masked(e["text"]))
        for e in examples(curated)
    ]
    columns = ("source", "reason", "documents", "value", "how an example begins (e-mails and numbers covered)")
    return fold(f"an example of each of {len(rows)} kinds of drops", table(columns, rows)) if rows else ""


def _account_section(run: Path) -> Section:
    lines = account(run)
    rows = [(e.source, e.what, e.left, e.terms, e.right, e.balances) for e in lines]
    wrong = sum(not line.balances for line in lines)
    lead = f"All {len(lines)} lines balance." if not wrong else f"{wrong} of {len(lines)} lines do NOT balance."
    return Section("Token account", lead, table(("source", "what", "count", "equals", "count ", "balances"), rows))


def _lineage_section(rows: list[StageStatus]) -> Section:
    data = [
        (
            r.name,
            r.state,
            r.fingerprint[:8],
            ", ".join(f"{k} {v.fingerprint[:8]}" for k, v in r.inputs.items()),
            readable(r.num_bytes),
            _when(r.finished) or r.detail,
        )
        for r in rows
    ]
    columns = ("stage", "state", "fingerprint", "made from", "bytes", "finished")
    return Section(
        "Lineage", "Each stage with the identity of its result and of what it was made from.", table(columns, data)
    )
