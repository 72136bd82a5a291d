"""Scores that another process makes beside a training: ``RUN/watch/scores.jsonl`` and the tables next to it.

Each record names the checkpoint by what it holds and each table by what it was measured with, so that neither a step
that was trained anew nor a probe that changed is ever mistaken for what was scored.
"""

from __future__ import annotations

from pathlib import Path

from deepen.formats.files.records import read_models
from deepen.formats.manifest import fingerprint
from deepen.formats.training.checkpoints import CheckpointInfo, is_of_weights, read_checkpoint
from deepen.formats.training.scores import SCORES, CheckpointScores, Score
from deepen.settings import Many, Settings

FOLDER_BESIDE = "watch"
"""Directory inside a run."""


class MeasuredTable(Settings):
    """What one probe measured of a checkpoint."""

    mark: str
    """Identity of the probe: settings, files, tokenizer, held-out documents and base."""
    hash: str
    """Of the table's file."""


class ScoresBeside(CheckpointScores):
    """The scores of a checkpoint, with what they are the scores of."""

    checkpoint: str
    """Identity of the checkpoint, as ``identity_of`` gives it."""
    tables: dict[str, MeasuredTable]
    """By probe; not those that failed."""
    late: Many[Score] = ()
    """Scores of probes that training knows nothing of (`in_loop: false`), tested together for themselves."""
    late_failed: dict[str, str] = {}
    """Such probes that could not be measured, with the reason."""

    @property
    def plain(self) -> CheckpointScores:
        """The scores alone, as training takes them."""
        return CheckpointScores(step=self.step, tokens=self.tokens, scores=self.scores, failed=self.failed)

    @property
    def everything(self) -> CheckpointScores:
        """The scores of all probes."""
        failed = self.failed | self.late_failed
        return CheckpointScores(step=self.step, tokens=self.tokens, scores=(*self.scores, *self.late), failed=failed)


def identity_of(info: CheckpointInfo) -> str:
    """Identity of a checkpoint: the training that made it and the hashes of its weights; raises ``DamageError``.

    Dropping the optimizer's state or marking a checkpoint changes nothing about it.
    """
    manifest = read_checkpoint(info)
    weights = {entry.path: entry.hash for entry in manifest.files if is_of_weights(entry.path)}
    return fingerprint("checkpoint", 1, {"step": manifest.step, "by": manifest.fingerprint}, weights)


def read_scores_beside(directory: Path) -> dict[tuple[int, str], ScoresBeside]:
    """The records of a ``watch`` directory by step and identity of the checkpoint.

    Of several about one checkpoint the first counts for training, the last for what came later.
    """
    found: dict[tuple[int, str], ScoresBeside] = {}
    for scores in read_models(directory / SCORES, ScoresBeside):
        first = found.setdefault((scores.step, scores.checkpoint), scores)
        newest = {"late": scores.late, "late_failed": scores.late_failed, "tables": scores.tables}
        found[scores.step, scores.checkpoint] = first.model_copy(update=newest)
    return found
