"""Finished files are believed only when they are as their manifest says: what is checked, when, and what it costs.

Before a stage works, everything that it is about to read is hashed, except shards: these are checked block by block
while they are read (``files/blocks.py``). Before a finished stage is called up to date, all sizes are compared and its
small files are hashed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deepen.errors import DamageError
from deepen.formats.files.atomic import FileEntry, damage, wrong_size
from deepen.formats.files.blocks import blocks_path
from deepen.formats.files.hashes import HashCache
from deepen.formats.manifest import Artifact, StageJob

SMALL_BYTES = 16 << 20
SMALL_BYTES_IN_ALL = 256 << 20
"""Of a stage that is only asked whether it is up to date, files of up to 16 MiB are hashed, the smallest first, up to
256 MiB in all. That is every order, index, table of scores and JSON of all but huge runs, and takes about a second
from a slow disk; ``deepen run`` on a finished run stays quick."""
_THREADS = 4
_SHARDS = (".bin", ".trained")


def faults_of(
    artifact: Artifact, is_hashed: Callable[[FileEntry], bool], *, but: frozenset[str] = frozenset()
) -> list[str]:
    """What is wrong with the files of an artifact: sizes of all are compared, and the bytes of those ``is_hashed``.

    Checkpoints named in ``but`` are not looked at.
    """

    def fault(entry: FileEntry) -> str | None:
        # Sizes cost nothing; hashing takes as long as reading.
        return damage(entry, artifact.path) if is_hashed(entry) else wrong_size(entry, artifact.path)

    with ThreadPoolExecutor(_THREADS) as threads:  # hashing lets go of the interpreter, as reading does
        entries = [entry for entry in artifact.manifest.files if _checkpoint_of(entry) not in but]
        return [found for found in threads.map(fault, entries) if found is not None]


def _checkpoint_of(entry: FileEntry) -> str | None:
    folder, _, rest = entry.path.partition("/")
    return rest.partition("/")[0] if folder == "checkpoints" else None


def _removed_checkpoints(artifact: Artifact) -> frozenset[str]:
    """Checkpoints that are gone as a whole while others are there: somebody made room, which damages nothing."""
    names = {name for entry in artifact.manifest.files if (name := _checkpoint_of(entry)) is not None}
    gone = frozenset(name for name in names if not (artifact.path / "checkpoints" / name).exists())
    return gone if len(gone) < len(names) else frozenset()


def small_faults(artifact: Artifact) -> list[str]:
    """What is wrong with an artifact as far as sizes and its small files tell."""
    small, total = set(), 0
    for entry in sorted(artifact.manifest.files, key=lambda entry: (entry.bytes, entry.path)):
        total += entry.bytes
        if entry.bytes > SMALL_BYTES or total > SMALL_BYTES_IN_ALL:
            break
        small.add(entry.path)
    return faults_of(artifact, lambda entry: entry.path in small, but=_removed_checkpoints(artifact))


def all_faults(artifact: Artifact) -> list[str]:
    """What is wrong with an artifact, by hashing all its files."""
    return faults_of(artifact, lambda entry: True)


def check_unchanged(artifact: Artifact, *hashed: str) -> None:
    """Check an artifact before it is read: every file has its size, those under ``hashed`` also their bytes.

    Shards are left to whoever reads them. Raises ``DamageError`` naming all files that are not as their stage left
    them.
    """
    refuse_damaged(
        artifact, faults_of(artifact, lambda entry: entry.path.startswith(hashed) and not entry.path.endswith(_SHARDS))
    )


def check_inputs(job: StageJob, reads: Mapping[str, Iterable[str]]) -> None:
    """``check_unchanged`` for what a stage is about to read: prefixes of files by the name of the input."""
    for name, prefixes in reads.items():
        if name in job.inputs:
            check_unchanged(job.inputs[name], *prefixes)


def check_shards_without_blocks(artifact: Artifact, known: Path) -> None:
    """Hash the shards that have no table of blocks (version 0.1 wrote none), once: ``known`` remembers them by size
    and time. Raises ``DamageError``."""
    names = {entry.path for entry in artifact.manifest.files}
    old = [
        entry
        for entry in artifact.manifest.files
        if entry.path.endswith(_SHARDS) and blocks_path(Path(entry.path)).as_posix() not in names
    ]
    if not old:
        return
    cache = HashCache(known)
    wrong = [entry for entry in old if cache.hash(artifact.path / entry.path) != entry.hash]
    cache.save()
    refuse_damaged(artifact, [fault for entry in wrong if (fault := damage(entry, artifact.path)) is not None])


def refuse_damaged(artifact: Artifact, faults: list[str]) -> None:
    """Raise ``DamageError`` that names ``faults`` and the command that mends them; nothing when there are none."""
    if faults:
        raise DamageError(
            f"the files of `{artifact.manifest.stage}` are not as it left them:\n  " + "\n  ".join(faults),
            hint=f"put them back, or: {remedy(artifact.path)}",
        )


def remedy(stage: Path) -> str:
    """What mends a stage's directory, in words: the command that makes anew what is damaged of it."""
    if (stage.parent / "recipe.yaml").is_file():
        return f"`deepen {stage.name} {stage.parent} --redo` makes what is damaged anew"
    return f"remove `{stage}` and make it again"
