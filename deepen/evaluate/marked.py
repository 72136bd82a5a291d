"""Tables that were measured before the evaluation: by another process beside training, or by training itself.

A table is only ever taken for the checkpoint and the probe (by settings, files, tokenizer, documents and base) that it
was measured with; everything else is measured. What the other process scored is known by the hashes of the weights,
what training measured by what the checkpoint that it saved next says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepen.errors import DamageError
from deepen.evaluate.models.kept import Subject
from deepen.evaluate.probes.probe import Probe
from deepen.evaluate.tables import table_file
from deepen.formats.files.atomic import hash_file, link_or_copy
from deepen.formats.training.checkpoints import CheckpointInfo, read_state
from deepen.formats.training.scores_beside import MeasuredTable, identity_of, read_watched


@dataclass(frozen=True)
class MarkedTables:
    """What lies in a directory for the checkpoints that are evaluated."""

    directory: Path
    by_step: Mapping[int, Mapping[str, MeasuredTable]]
    """By step and probe, those that are of the checkpoints as they are."""

    def link(self, probe: Probe, subject: Subject, mark: str, path: Path) -> bool:
        """Make the table of ``probe`` for ``subject`` appear at ``path``; False when there is none, or a damaged one.

        ``mark`` is the probe's identity now.
        """
        known = {} if subject.blend else self.by_step.get(subject.step, {})
        table, source = known.get(probe.label), self.directory / table_file(probe, subject.key)
        if table is None or table.mark != mark or not source.is_file() or hash_file(source) != table.hash:
            return False
        link_or_copy(source, path)
        return True


def watched_tables(directory: Path, checkpoints: Iterable[CheckpointInfo]) -> MarkedTables:
    """What ``--watch`` left in ``directory`` for ``checkpoints``; nothing when there is no such directory."""
    known, found = read_watched(directory), dict[int, Mapping[str, MeasuredTable]]()
    for info in checkpoints if known else ():
        try:
            scores = known.get((info.step, identity_of(info)))
        except DamageError:
            continue
        if scores is not None:
            found[info.step] = scores.tables
    return MarkedTables(directory, found)


def tables_of_training(directory: Path, checkpoints: Iterable[CheckpointInfo]) -> MarkedTables:
    """What training measured in full into ``directory`` right before it saved ``checkpoints``."""
    named = {info.step: read_state(info).get("tables", {}) for info in checkpoints}
    return MarkedTables(
        directory,
        {
            step: {label: MeasuredTable.model_validate(one) for label, one in tables.items()}
            for step, tables in named.items()
        },
    )
