"""The model card: a README whose every number comes from a manifest or a score file.

Nothing is estimated here; what was not measured is said to be not measured. The text is a pure function of the run's
artifacts, so the card of a rerun is the same to the byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepen.formats.files.records import read_models
from deepen.formats.manifest import Artifact
from deepen.formats.training.adapters import Adapters
from deepen.formats.training.said import said_chance, said_change, said_interval
from deepen.formats.training.scores import REPORT_ON, SCORES, CheckpointScores, Choice, Score


@dataclass(frozen=True)
class Export:
    """What the card needs to know about the exported model."""

    base: str
    """What the recipe calls the base."""
    choice: Choice
    num_parameters: int
    """Tied weights count once."""
    vocabulary_size: int
    num_new_tokens: int
    """Tokens of it that the run added to the base's vocabulary."""
    dtype: str
    difference: float | None
    """Largest absolute difference of logits between the model in memory and its export; None: tensors were compared."""
    compared_tokens: int
    compared_on: str
    """What text the logits were compared on."""
    adapters: Adapters | None = None
    """What was trained beside the base's weights and merged into them; None: the weights themselves."""
    merge_difference: float | None = None
    """Largest absolute difference of logits that merging made."""


def model_card(export: Export, lineage: Mapping[str, Artifact]) -> str:
    """The text of README.md: Markdown with a metadata header as the Hugging Face hub reads it."""
    sections = [
        _header(export), _summary(export), _loading(), _data(lineage), _training(lineage), _scores(export, lineage),
        _choice(export), _limits(export, lineage), _provenance(lineage),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def _header(export: Export) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- continued-pretraining"]
    return "\n".join([*lines, "- deepen", "---"])


def _summary(export: Export) -> str:
    step = export.choice.step
    what = (
        f"the untouched base `{export.base}`: no checkpoint of the run was chosen over it"
        if step is None
        else f"`{export.base}` after continued pretraining, {_source(export.choice)}"
    )
    size = (
        f"{export.num_parameters:,} parameters in {export.dtype} and a vocabulary of {export.vocabulary_size:,} tokens"
    )
    if export.num_new_tokens:
        size += f", {export.num_new_tokens:,} of them added in this run (the tables have some rows to spare)"
    if export.adapters is not None:
        size += (
            f". Trained were adapters beside the base's frozen weights ({export.adapters.title}); they are merged into "
            f"the weights, which changed logits by at most {export.merge_difference:.3g}"
        )
    proof = (
        f"its logits on {export.compared_tokens:,} tokens of {export.compared_on} differ from those of the model in "
        f"memory by at most {export.difference:.3g}"
        if export.difference is not None
        else "every tensor equals that of the checkpoint; logits were not compared"
    )
    return (
        f"# {export.base}, continued with deepen\n\nThis folder holds {what}. It has {size}. Reloaded from "
        f"these files, {proof}."
    )


def _loading() -> str:
    return (
        "## How to load it\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("PATH")\ntokenizer = AutoTokenizer.from_pretrained("PATH")\n```\n'
        "\nOr try it on the command line: `deepen chat PATH`."
    )


def _data(lineage: Mapping[str, Artifact]) -> str:
    """Sources with their licences, documents and the tokens that were really trained."""
    if "curate" not in lineage:
        return ""
    curated = lineage["curate"].counts["sources"]
    tokenized = lineage["tokenize"].counts["sources"] if "tokenize" in lineage else {}
    trained = lineage["train"].counts["sources"] if "train" in lineage else {}
    rows = [
        [
            name, counts["role"], counts.get("licence") or "not stated", f"{counts['documents_kept']:,}",
            _number(tokenized.get(name, {}).get("tokens")), _number(trained.get(name, {}).get("tokens")),
            f"{counts['held_out']:,}",
        ]
        for name, counts in curated.items()
    ]  # fmt: skip
    fixed = lineage["mix"].counts.get("fixed_rows", {}) if "mix" in lineage else {}
    rows += [
        [
            name, counts["role"], "not stated", f"{counts['documents']:,}", _number(counts["tokens"]),
            _number(trained.get(name, {}).get("tokens")), "0",
        ]
        for name, counts in fixed.items()
    ]  # fmt: skip
    heading = ["source", "role", "licence", "documents", "tokens", "tokens trained", "held-out documents"]
    notes = (
        "Domain sources are what the model was to learn; replay sources remind it of what it knew; watch sources "
        "are only scored. Tokens trained counts repetitions."
    )
    if fixed:
        notes += (
            f" Prepared by other tools as token ids, and so not curated, not checked against test items and not "
            f"scored: {', '.join(fixed)}."
        )
    return f"## Data\n\n{_table(heading, rows)}\n\n{notes}"


def _training(lineage: Mapping[str, Artifact]) -> str:
    if "train" not in lineage:
        return ""
    train = lineage["train"]
    counts = train.counts
    tokens = sum(source["tokens"] for source in counts["sources"].values())
    text = f"## Training\n\nThe whole run took {counts['steps']:,} optimizer steps over {tokens:,} tokens"
    if "mix" in lineage:
        shapes = {phase["sequence_length"]: phase["rows_per_batch"] for phase in lineage["mix"].counts["phases"]}
        rows = ", then ".join(f"{length:,} tokens, {rows:,} rows per step" for length, rows in shapes.items())
        text += f", in rows of {rows}"
    text += "."
    if counts.get("skipped_batches"):
        text += f" {counts['skipped_batches']:,} batches were skipped because loss or gradient was not finite."
    if counts.get("final_loss") is not None:
        text += f" The loss at its last step was {counts['final_loss']:.4f} nats per token."
    settings = json.dumps(train.manifest.config, indent=1, ensure_ascii=False, sort_keys=True)
    return f"{text}\n\nSettings other than deepen's defaults:\n\n```json\n{settings}\n```"


def _source(choice: Choice) -> str:
    return f"a blend: {choice.title}" if choice.blend else f"checkpoint of step {choice.step}"


def _scores(export: Export, lineage: Mapping[str, Artifact]) -> str:
    """The chosen checkpoint's scores against the base; the base's own when it was kept."""
    if "evaluate" not in lineage:
        return ""
    choice, evaluated = export.choice, lineage["evaluate"].path
    scores = list(read_models(evaluated / (REPORT_ON if choice.confirmed else SCORES), CheckpointScores))
    chosen = next((one for one in scores if (one.step, one.blend) == (choice.step, choice.blend)), None)
    half = "On the half of documents and items that had no part in the choice. " if choice.confirmed else ""
    notes = half + (
        "Bits per byte of held-out documents, which were kept out of training together with their near-duplicates; "
        "lower is better. Changes are relative to the base on the same documents, with 95 % intervals from a paired "
        "bootstrap over documents. New: domain sources; kept: replay and watch sources; rows named mean are means over "
        "sources."
    )
    if chosen is not None:
        rows = [_score_row(score) for score in chosen.scores]
        heading = ["score", "ability", "base", "this model", "change", "95 % interval", "documents"]
        return f"## Scores\n\n{_table(heading, rows)}\n\n{notes}{_contamination(chosen, lineage['evaluate'])}"
    base = lineage["evaluate"].counts["sources"]
    rows = [
        [name, counts["ability"], f"{counts['bits_per_byte']:.4f}", f"{counts['scored']:,}"]
        for name, counts in base.items()
        if counts["bits_per_byte"] is not None
    ]
    return f"## Scores\n\n{_table(['source', 'ability', 'bits per byte', 'documents'], rows)}\n\nScores of the base."


def _contamination(chosen: CheckpointScores, evaluated: Artifact) -> str:
    """What was found of test items in the training text, and the scores without them."""
    found = evaluated.counts.get("contamination") or {}
    hit = {label: counts for label, counts in found.get("probes", {}).items() if counts["hits"]}
    told = [f"{one['hits']:,} of {one['items']:,} items of {label}" for label, one in hit.items()]
    text = f"\n\nIn the training text stand {' and '.join(told)}." if told else ""
    if found.get("failed"):
        text += f"\n\nIt was not looked through for items of {', '.join(found['failed'])}."
    if chosen.without_hits:
        rows = [_score_row(score) for score in chosen.without_hits]
        heading = ["score without those items", "ability", "base", "this model", "change", "95 % interval", "items"]
        text += f"\n\n{_table(heading, rows)}"
    return text


def _score_row(score: Score) -> list[str]:
    name = score.probe if ":" in score.probe else f"{score.probe}, mean"
    if score.unit != "bits per byte":
        name = f"{score.probe} ({score.unit}, {'higher' if score.higher_is_better else 'lower'} is better)"
    if score.chance is not None:
        name += f"; {said_chance(score)}"
    return [
        name, score.ability, f"{score.baseline:.4f}", f"{score.value:.4f}", said_change(score), said_interval(score),
        f"{score.items:,}",
    ]  # fmt: skip


def _choice(export: Export) -> str:
    return f"## Why this checkpoint\n\n{export.choice.reason}"


def _limits(export: Export, lineage: Mapping[str, Artifact]) -> str:
    """What a reader could wrongly assume, as far as the run's own records show it."""
    taught = "train" in lineage and lineage["train"].counts.get("objective") == "sft"
    limits = [
        "It was taught to answer by examples alone; nothing was done for safety."
        if taught
        else "It continues text: it was not taught to follow instructions, and nothing was done for safety.",
        "The scores measure how well text is predicted, not whether statements are true.",
    ]
    sources = lineage["evaluate"].counts["sources"] if "evaluate" in lineage else {}
    unmeasured = [name for name, counts in sources.items() if not counts["scored"]]
    if unmeasured:
        limits.append(f"Without held-out documents, and so without scores: {', '.join(unmeasured)}.")
    if sources and not any(counts["ability"] == "kept" and counts["scored"] for counts in sources.values()):
        limits.append("Forgetting was not measured: there are no scored replay or watch documents.")
    curated = lineage["curate"].counts["sources"] if "curate" in lineage else {}
    fixed = lineage["mix"].counts.get("fixed_rows", {}) if "mix" in lineage else {}
    if fixed or any(counts.get("licence") is None for counts in curated.values()):
        limits.append("Some sources state no licence.")
    if export.dtype == "bfloat16":
        limits.append("Weights were rounded to bfloat16; the scores above are those of the float32 checkpoint.")
    return "## Known limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _provenance(lineage: Mapping[str, Artifact]) -> str:
    rows = [[name, f"`{artifact.fingerprint}`", artifact.manifest.code.version] for name, artifact in lineage.items()]
    return f"## Provenance\n\n{_table(['stage', 'fingerprint', 'deepen'], rows)}\n\nThe same is in `deepen.json`."


def lineage_record(export: Export, lineage: Mapping[str, Artifact]) -> dict[str, Any]:
    """Contents of ``deepen.json``: where this model comes from, without paths or times."""
    return {
        "base": export.base,
        "step": export.choice.step,
        "blend": [part.model_dump() for part in export.choice.blend],
        "dtype": export.dtype,
        "parameters": export.num_parameters,
        "largest_logit_difference": export.difference,
        "compared_tokens": export.compared_tokens,
        "stages": {
            name: {
                "fingerprint": artifact.fingerprint,
                "format": artifact.manifest.format,
                "code": artifact.manifest.code.model_dump(mode="json", exclude_none=True),
            }
            for name, artifact in lineage.items()
        },
    }


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
