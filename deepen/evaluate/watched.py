"""Tables that another process measured while training went on: marked by it, taken over by the evaluation afterwards.

A table is only ever taken for the checkpoint (by its weights' hashes) and the probe (by settings, files, tokenizer,
documents and base) that it was measured with; everything else is measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deepen.errors import DamageError
from deepen.evaluate.probes.probe import Probe
from deepen.evaluate.tables import table_file
from deepen.formats.atomic import hash_file, link_or_copy
from deepen.formats.checkpoints import CheckpointInfo
from deepen.formats.watched import WatchedScores, identity_of, read_watched


@dataclass(frozen=True)
class WatchedTables:
    """What lies in a ``watch`` directory for the checkpoints that are evaluated."""

    directory: Path
    by_step: dict[int, WatchedScores]
    """Those that are of the checkpoints as they are."""

    def link(self, probe: Probe, key: int | str, mark: str, path: Path) -> bool:
        """Make the table of ``probe`` for the checkpoint of step ``key`` appear at ``path``; False when there is none.

        ``mark`` is the probe's identity now.
        """
        scores = self.by_step.get(key) if isinstance(key, int) else None
        table = scores.tables.get(probe.label) if scores is not None else None
        source = self.directory / table_file(probe, key)
        if table is None or table.mark != mark or not source.is_file() or hash_file(source) != table.hash:
            return False
        link_or_copy(source, path)
        return True


def watched_tables(directory: Path, checkpoints: Iterable[CheckpointInfo]) -> WatchedTables:
    """What ``directory`` holds for ``checkpoints``; nothing when there is no such directory."""
    known, found = read_watched(directory), dict[int, WatchedScores]()
    for info in checkpoints if known else ():
        try:
            scores = known.get((info.step, identity_of(info)))
        except DamageError:
            continue
        if scores is not None:
            found[info.step] = scores
    return WatchedTables(directory, found)
