"""Tables of the evaluation that this one replaces: what neither probe nor model changed is not measured again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepen.evaluate.models.kept import Subject
from deepen.evaluate.probes.probe import Probe
from deepen.evaluate.tables import table_file
from deepen.formats.files.atomic import damage, link_or_copy
from deepen.formats.manifest import Artifact

TABLES, MODELS = "tables", "models"
"""In the counts of ``evaluate``: by probe, and by step or name of a blend, identities of what was measured."""


@dataclass(frozen=True)
class PreviousTables:
    """A finished evaluation of the same run."""

    artifact: Artifact

    def link(self, probe: Probe, subject: Subject, mark: str, path: Path) -> bool:
        """Make the table of ``probe`` for ``subject`` appear at ``path``; False when there is none, or a damaged one.

        ``mark`` is the probe's identity now.
        """
        counts, name = self.artifact.counts, table_file(probe, subject.key)
        same_probe = counts.get(TABLES, {}).get(probe.label) == mark
        if not same_probe or counts.get(MODELS, {}).get(str(subject.key)) != subject.identity:
            return False
        entry = next((one for one in self.artifact.manifest.files if one.path == name), None)
        if entry is None or damage(entry, self.artifact.path) is not None:
            return False
        link_or_copy(self.artifact.path / name, path)
        return True
