"""Where the tables of probes lie, and reading the base's."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from deepen.evaluate.documents.likelihoods import NOT_FINITE, read_likelihoods
from deepen.evaluate.probes.probe import Probe
from deepen.formats.manifest import Artifact, fingerprint
from deepen.formats.training.checkpoints import checkpoint_name
from deepen.progress import say

_MEASURES = 3
"""Raised when a table of the same model and probe would come out otherwise."""


def checked_table(found: object) -> pa.Table:
    """What a probe returned; raises ``TypeError`` when it is no table with a row per document or item."""
    if not isinstance(found, pa.Table) or "id" not in found.column_names:
        raise TypeError(f"the probe returned no table with a column `id`, but {type(found).__name__}")
    return found


def table_file(probe: Probe, model: int | str | None = None) -> str:
    """Name of the table of a probe for the base, the checkpoint of a step, or a model by name."""
    if model is None:
        return f"{probe.label}.parquet"
    return f"{probe.label}/{checkpoint_name(model) if isinstance(model, int) else model}.parquet"


def readable_file(probe: Probe, model: int | str | None = None) -> str:
    """Name of what people read beside the table."""
    return table_file(probe, model).removesuffix(".parquet") + ".md"


def table_mark(base_mark: str) -> str:
    """Identity of what a checkpoint is measured with: that of the base's result, and how this version measures."""
    return fingerprint("table", _MEASURES, {}, {"probe": base_mark})


def base_table(baseline: Artifact, probe: Probe) -> pa.Table | None:
    """The base's table of a probe; None when the base could not be measured with it."""
    path = baseline.path / table_file(probe)
    return read_likelihoods(path) if path.is_file() else None


def say_not_finite(table: pa.Table, step: int) -> None:
    """Tell about documents or items for which a model gave no number."""
    rows = table.filter(pc.equal(table["reason"], NOT_FINITE))
    names = rows["source"] if "source" in rows.column_names else rows["task"]
    what = "documents" if "source" in rows.column_names else "items"
    for name in pc.unique(names).to_pylist():
        say(f"step {step}: {what} of `{name}` have no finite likelihood; the {_whole(what)} is not scored")


def _whole(what: str) -> str:
    return "source" if what == "documents" else "task"
