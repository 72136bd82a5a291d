"""Changes of the mixture that were appended to the order while a run went on: which are in force at a checkpoint.

A change is a segment file under ``train/order/``. It is void when training goes back to a checkpoint before the one on
which it was decided; it is in force from its first batch on otherwise. What was in force is written in each checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepen.errors import DamageError, RunError
from deepen.formats.files.atomic import entry_of
from deepen.formats.tokens.order import appended_files, check_parents, read_segment_file
from deepen.formats.training.checkpoints import CheckpointInfo, read_state
from deepen.progress import say

ORDER = "order"


def changes_in_force(
    out: Path, mix: Path, found: CheckpointInfo | None, newest: CheckpointInfo | None = None
) -> list[Path]:
    """The segment files that hold from the checkpoint ``found`` (None: the beginning) on; removes those it makes void.

    ``newest`` is the newest checkpoint where that is another one, because the run is on its way back from it.
    Raises ``DamageError`` when a file that the checkpoint names is gone or other, ``RunError`` when one begins before
    the checkpoint and was not in force there.
    """
    files = appended_files(out / ORDER)
    if not files and found is None:
        return []
    # On the way back `pass_over` does again what was decided since `found`: these changes rest on `newest`.
    step = max(info.step if info else 0 for info in (found, newest))
    state = read_state(found) if found else {}
    known = {entry["file"]: entry["hash"] for entry in state.get("order", [])}
    _check_known(out, known)
    kept = []
    for path in files:
        table = read_segment_file(path)
        name, first = path.relative_to(out).as_posix(), table.segments[0].first_batch
        if table.parent_step > step and name not in known:
            say(f"train: the change of mixture at batch {first} was decided at step {table.parent_step}; it is void")
            # The array before the file that names it: after a kill in between, that one is found again.
            (path.parent / table.segments[0].file).unlink(missing_ok=True)
            path.unlink()
        elif first < state.get("batch_index", 0) and name not in known:
            raise RunError(
                f"`{path}` changes the mixture from batch {first} on, and the run is at batch {state['batch_index']}",
                hint=f"remove it, or remove the checkpoints after step {first}",
            )
        else:
            kept.append(path)
    check_parents(mix, kept)
    return kept


def _check_known(out: Path, known: dict[str, str]) -> None:
    for name, digest in known.items():
        if not (out / name).is_file() or entry_of(out / name, out).hash != digest:
            raise DamageError(
                f"`{out / name}` is gone or is not what training had read",
                hint="put it back, or train again with --redo",
            )


def describe_changes(out: Path, files: list[Path]) -> list[dict[str, Any]]:
    """The files as checkpoints and the manifest name them."""
    described = []
    for path in files:
        table, entry = read_segment_file(path), entry_of(path, out)
        described.append(
            {
                "file": entry.path,
                "hash": entry.hash,
                "first_batch": table.segments[0].first_batch,
                "parent": table.parent,
                "reason": table.reason,
                "notes": list(table.notes),
            }
        )
    return described
