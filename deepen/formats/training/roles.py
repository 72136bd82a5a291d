"""What each checkpoint of a run is kept for, and which stay.

Roles are a function of the manifests alone, so that nothing has to be kept in step with them: a resumed run, ``deepen
show`` and the scoring afterwards all see the same. The newest depend on how fast the machine was (saves may come by the
clock); every other role depends on the run's numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from deepen.errors import DamageError
from deepen.formats.training.checkpoints import (
    CheckpointInfo,
    CheckpointManifest,
    drop_optimizer,
    list_checkpoints,
    read_checkpoint,
    remove_checkpoint,
)

Role = Literal["latest", "newest", "milestone", "begins_decay", "best_new", "best_kept", "last_good", "awaits_scores"]
"""``latest`` is the newest of all, ``newest`` one of the last N; ``best_new`` and ``best_kept`` gained most and forgot
least of those that were scored; ``last_good`` is the newest that was ``good``; one that ``awaits_scores`` of another
process may turn out to be any of these."""

_WITH_OPTIMIZER: set[Role] = {"latest", "newest", "begins_decay", "last_good", "awaits_scores"}
"""Roles of checkpoints that training goes on from, or back to."""


def roles(manifests: Sequence[CheckpointManifest], keep: int) -> dict[int, tuple[Role, ...]]:
    """The roles of each step's checkpoint, none for those that may go; ``manifests`` by rising step.

    Of equal scores the earliest is the best one.
    """
    resumable = [manifest.step for manifest in manifests if not manifest.weights_only]
    members: dict[Role, set[int]] = {
        "latest": set(resumable[-1:]),
        "newest": set(resumable[-keep:]),
        "milestone": {manifest.step for manifest in manifests if manifest.milestone},
        "begins_decay": {manifest.step for manifest in manifests if manifest.begins_decay},
        "best_new": _best(manifests, lambda manifest: manifest.new),
        "best_kept": _best(manifests, lambda manifest: manifest.kept),
        "last_good": {m.step for m in [m for m in manifests if m.good and not m.weights_only][-1:]},
        "awaits_scores": {manifest.step for manifest in manifests if manifest.awaits_scores},
    }
    return {
        manifest.step: tuple(role for role, steps in members.items() if manifest.step in steps)
        for manifest in manifests
    }


def _best(manifests: Sequence[CheckpointManifest], score: Callable[[CheckpointManifest], float | None]) -> set[int]:
    scored = [(value, manifest.step) for manifest in manifests if (value := score(manifest)) is not None]
    return {min(scored)[1]} if scored else set()


def prune(directory: Path, keep: int, *, weights_only: bool = False) -> None:
    """Remove the checkpoints without a role, those that cannot be read included unless they are among the newest.

    With ``weights_only`` the optimizer's state goes, too, where no role needs it.
    """
    infos = list_checkpoints(directory)
    found = {info.step: manifest for info in infos if (manifest := _readable(info)) is not None}
    mine = roles(list(found.values()), keep)
    # A checkpoint that cannot be read may be a passing fault of the disk: among the newest it is left to people.
    newest = {info.step for info in infos[-keep:]}
    for info in infos:
        if info.step not in found:
            if info.step not in newest:
                remove_checkpoint(info)
        elif not mine[info.step]:
            remove_checkpoint(info)
        elif weights_only and not _WITH_OPTIMIZER & set(mine[info.step]):
            drop_optimizer(info)


def candidates(directory: Path) -> list[CheckpointInfo]:
    """The checkpoints that may be chosen, oldest first: milestones, those that their scores keep or will judge.

    Others are kept for resuming only, and which ones there are depends on how fast the machine was.
    """
    infos = list_checkpoints(directory)
    found = {info.step: manifest for info in infos if (manifest := _readable(info)) is not None}
    mine = roles(list(found.values()), keep=1)
    return [info for info in infos if info.step in found and _lasts(found[info.step], mine[info.step])]


def _lasts(manifest: CheckpointManifest, mine: Sequence[Role]) -> bool:
    scored = manifest.new is not None or manifest.kept is not None
    return (
        manifest.milestone
        or manifest.awaits_scores
        or (scored and bool({"best_new", "best_kept", "last_good"} & set(mine)))
    )


def role_records(directory: Path, keep: int) -> list[dict[str, Any]]:
    """One record per checkpoint for people: ``checkpoint``, ``roles``, ``bytes`` and whether it is ``weights_only``."""
    infos = list_checkpoints(directory)
    found = {info.step: manifest for info in infos if (manifest := _readable(info)) is not None}
    mine = roles(list(found.values()), keep)
    records = []
    for info in infos:
        manifest = found.get(info.step)
        records.append(
            {
                "checkpoint": info.path.name,
                "roles": list(mine.get(info.step, ())) if manifest else ["damaged"],
                "bytes": sum(entry.bytes for entry in manifest.files) if manifest else 0,
                "weights_only": manifest.weights_only if manifest else False,
            }
        )
    return records


def _readable(info: CheckpointInfo) -> CheckpointManifest | None:
    try:
        return read_checkpoint(info)
    except DamageError:
        return None
