"""The folder of the export that this one replaces, where the model is the same: only its card is written anew.

Probes that come after training change what is said of a model, and mostly not which one is chosen.
"""

from __future__ import annotations

from typing import Any

from deepen.export.card import Export
from deepen.export.config import ExportConfig
from deepen.formats.files.atomic import FileEntry
from deepen.formats.manifest import StageJob, fingerprint
from deepen.formats.taken_over import take_over
from deepen.formats.training.adapters import Adapters
from deepen.formats.training.checkpoints import list_checkpoints
from deepen.formats.training.scores import Choice
from deepen.formats.training.scores_beside import identity_of

MODEL = "model"
"""In the counts of ``export``: identity of the model, and what else its card says of it."""
CARD, LINEAGE = "README.md", "deepen.json"


def model_mark(config: ExportConfig, job: StageJob, choice: Choice, format_number: int) -> str:
    """Identity of the files of weights and tokenizer; raises ``DamageError`` for a checkpoint that cannot be read."""
    steps = {part.step for part in choice.blend} | {choice.step}
    checkpoints = list_checkpoints(job.inputs["train"].path / "checkpoints") if steps != {None} else []
    inputs = {str(info.step): identity_of(info) for info in checkpoints if info.step in steps}
    inputs |= {name: job.inputs[name].fingerprint for name in ("tokenize", "train")}
    inputs |= {name: entry.fingerprint for name, entry in job.raw_inputs.items()}
    settings = {"export": config, "step": choice.step, "blend": choice.blend, "seed": job.seed}
    return fingerprint("export", format_number, settings, inputs)


def said_of(made: Export, mark: str) -> dict[str, Any]:
    """What is kept in the counts beside the rest, so that the card can be written again."""
    adapters = None if made.adapters is None else made.adapters.model_dump(mode="json")
    told = {"vocabulary_size": made.vocabulary_size, "num_new_tokens": made.num_new_tokens, "adapters": adapters}
    return {"mark": mark, **told}


def taken_over(job: StageJob, choice: Choice, base: str, mark: str) -> tuple[Export, list[FileEntry]] | None:
    """Link the files of ``job.previous`` into ``job.out``; None when it is another model, or damaged."""
    previous = job.previous
    if previous is None or previous.counts.get(MODEL, {}).get("mark") != mark:
        return None
    files = take_over(previous, lambda name: name not in (CARD, LINEAGE), job.out)
    if files is None:
        return None
    counts, model = previous.counts, previous.counts[MODEL]
    adapters = None if model["adapters"] is None else Adapters.model_validate(model["adapters"], strict=False)
    made = Export(
        base=base,
        choice=choice,
        num_parameters=counts["parameters"],
        vocabulary_size=model["vocabulary_size"],
        num_new_tokens=model["num_new_tokens"],
        dtype=counts["dtype"],
        difference=counts["largest_logit_difference"],
        compared_tokens=counts["compared_tokens"],
        compared_on=counts["compared_on"],
        adapters=adapters,
        merge_difference=counts.get("largest_merge_difference"),
    )
    return made, list(files)
