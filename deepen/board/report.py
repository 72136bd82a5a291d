"""The report of a run as one self-contained HTML file: what was gained, what was kept, and from what it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from deepen.board import charts
from deepen.board.console import outcomes_of
from deepen.board.decisions import timeline_sections
from deepen.board.masking import masked
from deepen.board.outcomes import choice_cards, outcome_sections, read_choice
from deepen.board.page import Card, Section, fold, preformatted, render, table
from deepen.errors import RunError
from deepen.formats.files.atomic import write_bytes
from deepen.formats.files.json_text import read_object
from deepen.formats.files.own_hash import with_own_hash
from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact, InputEntry
from deepen.progress import readable
from deepen.recipe.reading import recipe_of
from deepen.runs.account import account
from deepen.runs.diagnose.evidence import case_of
from deepen.runs.diagnose.findings import RULES, diagnose
from deepen.runs.directory import finished_stages
from deepen.runs.lineage import StageStatus, status
from deepen.runs.order.rows import open_order, shares_over_time
from deepen.runs.verify import REPORT
from deepen.workflow.commands.preview_curation import examples

_MOST_STEPS = 200
_METRICS = ("step", "tokens", "loss", "learning_rate", "gradient_norm")
"""What charts need of a step's record."""
_FINDING = ("finding", "evidence", "remedy")


def write_report(run: Path) -> Path:
    """Write ``report.html`` into ``run`` from whatever stages are finished; raises ``RunError`` when none is."""
    stages = finished_stages(run)
    if not stages:
        raise RunError(f"`{run}` has no finished stage to report on", hint="run it first: `deepen run RECIPE`")
    recipe = recipe_of(run).model_dump(mode="json", by_alias=True)
    path = run / REPORT
    rows = status(run)
    script = f"<script>{get_plotlyjs()}</script>"
    page = render(
        f"deepen: {recipe['name']}",
        _subtitle(recipe, stages),
        _cards(stages),
        _sections(run, recipe, stages, rows),
        script,
    )
    write_bytes(path, with_own_hash(page))
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
        yield from choice_cards(read_choice(stages))
    if "train" in stages:
        counts = stages["train"].counts
        tokens = sum(source["tokens"] for source in counts["sources"].values())
        loss = counts["final_loss"]
        last = "the last loss was not finite" if loss is None else f"last loss {loss:.3f}"
        yield Card("trained", readable(tokens), f"tokens in {counts['steps']:,} steps; {last}")
    if "export" in stages:
        difference = stages["export"].counts["largest_logit_difference"]
        mood = "good" if difference == 0 else ""
        yield Card("export", f"{difference:.2g}", "largest difference of logits after reload", mood)


def _sections(
    run: Path, recipe: Mapping[str, Any], stages: Mapping[str, Artifact], rows: list[StageStatus]
) -> Iterator[Section]:
    if {"baseline", "evaluate", "select"} <= stages.keys():
        yield from outcome_sections(run, recipe, stages)
    if "train" in stages:
        yield _diagnosis_section(run)
        metrics = list(read_records(stages["train"].path / "metrics.jsonl", keys=_METRICS))
        body = charts.loss_chart(metrics) + charts.learning_rate_chart(metrics)
        yield from timeline_sections(run, stages["train"], float(recipe["evaluate"]["forgetting"]["budget"]))
        yield Section("Training", "Loss of every step and smoothed; learning rate and gradient norm below.", body)
    if {"tokenize", "mix"} <= stages.keys():
        yield _mixture_section(run, stages["mix"])
    if "tokenize" in stages and (stages["tokenize"].path / "report.json").is_file():
        yield _vocabulary_section(stages["tokenize"])
    if {"ingest", "curate"} <= stages.keys():
        yield _funnel_section(stages)
    yield _account_section(run)
    yield _lineage_section(rows)
    text = (run / "recipe.yaml").read_text()
    yield Section("Recipe", "With every default written out.", preformatted("show recipe.yaml", text))


def _diagnosis_section(run: Path) -> Section:
    """What went wrong, or what was looked for in vain."""
    found = [(finding.name, finding.evidence, finding.remedy) for finding in diagnose(case_of(run))]
    if not found:
        return Section("Diagnosis", f"Nothing found. Looked for: {', '.join(RULES)}.", "")
    return Section("Diagnosis", "What went wrong, by what one sees it, and what to do.", table(_FINDING, found))


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
    report = read_object(tokenized.path / "report.json")
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


def _part(rows: list[StageStatus], name: str, entry: InputEntry) -> str:
    """A word where a stage was made from a part of what its input is now."""
    now = next((row for row in rows if row.name == name), None)
    is_core = now is not None and now.core == entry.fingerprint != now.fingerprint
    return " (without probes that came later)" if is_core else ""


def _lineage_section(rows: list[StageStatus]) -> Section:
    data = [
        (
            r.name,
            r.state,
            r.fingerprint[:8],
            ", ".join(f"{k} {v.fingerprint[:8]}{_part(rows, k, v)}" for k, v in r.inputs.items()),
            readable(r.num_bytes),
            _when(r.finished) or r.detail,
        )
        for r in rows
    ]
    columns = ("stage", "state", "fingerprint", "made from", "bytes", "finished")
    return Section(
        "Lineage", "Each stage with the identity of its result and of what it was made from.", table(columns, data)
    )
