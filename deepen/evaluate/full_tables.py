"""Everything measured while training stands still, at intervals: the tables are kept and named in the next checkpoint.

The scores of training stay those of the subset, also where everything was measured: points of one curve, and decisions
on them, compare. What is kept here the evaluation afterwards takes over, so that all processes of a training share
work that otherwise one of them would do alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from deepen.evaluate.documents.likelihoods import write_likelihoods
from deepen.evaluate.probes.probe import Probe
from deepen.evaluate.tables import table_file, table_mark
from deepen.formats.files.records import keeps_records
from deepen.formats.manifest import Artifact


@dataclass
class FullTables:
    """Keeps the tables of whole probes in ``directory``; without one, and outside rank 0, nothing is written."""

    directory: Path | None
    baseline: Artifact
    _step: int = 0
    _named: dict[str, dict[str, str]] = field(default_factory=dict)

    def begin(self, step: int) -> None:
        """Forget what was measured before, of this step too: it may be reached a second time, with other weights."""
        self._step, self._named = step, {}

    def keep(self, probe: Probe, table: pa.Table) -> None:
        """Write a table of the step that was begun."""
        if self.directory is None or not keeps_records():
            return
        path = self.directory / table_file(probe, self._step)
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = write_likelihoods(path, table, self.directory)
        mark = table_mark(self.baseline.counts["probes"][probe.label]["mark"])
        self._named[probe.label] = {"mark": mark, "hash": entry.hash}

    def at(self, step: int) -> dict[str, dict[str, str]]:
        """By probe what was kept of ``step``, as its checkpoint is to name it; nothing if another step was the last."""
        return dict(self._named) if step == self._step else {}


def part_of(table: pa.Table, ids: frozenset[str]) -> pa.Table:
    """The rows of a subset."""
    return table.filter(pc.is_in(table["id"], value_set=pa.array(sorted(ids), pa.string())))
