"""Where the tables of probes lie, and reading the base's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from deepen.errors import DamageError
from deepen.evaluate.documents.likelihoods import NOT_FINITE, read_likelihoods
from deepen.evaluate.models.kept import Subject
from deepen.evaluate.probes.probe import Probe
from deepen.formats.files.atomic import FileEntry, write_bytes
from deepen.formats.manifest import Artifact, fingerprint
from deepen.formats.taken_over import take_over_file
from deepen.formats.training.checkpoints import CheckpointInfo, checkpoint_name, read_state
from deepen.formats.training.scores_beside import MeasuredTable, identity_of, read_scores_beside
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


def write_readable(out: Path, probe: Probe, model: int | str | None, text: str | None) -> list[FileEntry]:
    """Write what people read beside the table, if there is anything; returns its entry."""
    if text is None:
        return []
    name = readable_file(probe, model)
    return [write_bytes(out / name, text.encode()).model_copy(update={"path": name})]


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


@dataclass(frozen=True)
class KnownTables:
    """What lies in a directory for the models that are evaluated."""

    directory: Path
    by_model: Mapping[int | str, Mapping[str, MeasuredTable]]
    """By step or name of a blend, and probe: those that are of the models as they are."""

    def link(self, probe: Probe, subject: Subject, mark: str, path: Path) -> bool:
        """Make the table of ``probe`` for ``subject`` appear at ``path``; False when there is none, or a damaged one.

        ``mark`` is the probe's identity now.
        """
        table = self.by_model.get(subject.key, {}).get(probe.label)
        if table is None or table.mark != mark:
            return False
        return take_over_file(self.directory / table_file(probe, subject.key), table.hash, path)


def tables_beside_training(directory: Path, checkpoints: Iterable[CheckpointInfo]) -> KnownTables:
    """What ``--watch`` left in ``directory`` for ``checkpoints``; nothing when there is no such directory."""
    known, found = read_scores_beside(directory), dict[int | str, Mapping[str, MeasuredTable]]()
    for info in checkpoints if known else ():
        try:
            # By identity as well: a checkpoint that was trained anew is another model of the same step.
            scores = known.get((info.step, identity_of(info)))
        except DamageError:
            continue
        if scores is not None:
            found[info.step] = scores.tables
    return KnownTables(directory, found)


def tables_of_training(directory: Path, checkpoints: Iterable[CheckpointInfo]) -> KnownTables:
    """What training measured in full into ``directory`` right before it saved ``checkpoints``."""
    named = {info.step: read_state(info).get("tables", {}) for info in checkpoints}
    return KnownTables(
        directory,
        {
            step: {label: MeasuredTable.model_validate(one) for label, one in tables.items()}
            for step, tables in named.items()
        },
    )


TABLES = "tables"
"""In the counts of ``evaluate``: by probe, the identity of what was measured."""


MODELS = "models"
"""The same by step or name of a blend."""


def tables_of_evaluation(earlier: Artifact, subjects: Iterable[Subject], probes: Iterable[Probe]) -> KnownTables:
    """What a finished evaluation of the same run measured of ``subjects``."""
    hashes = {entry.path: entry.hash for entry in earlier.manifest.files}
    marks, models = earlier.counts.get(TABLES, {}), earlier.counts.get(MODELS, {})
    return KnownTables(
        earlier.path,
        {
            subject.key: {
                probe.label: MeasuredTable(mark=marks[probe.label], hash=hashes[name])
                for probe in probes
                if (name := table_file(probe, subject.key)) in hashes and probe.label in marks
            }
            for subject in subjects
            if models.get(str(subject.key)) == subject.identity
        },
    )
