"""Directories that go, or give way to a better one, whole: a kill at any moment leaves the old, the new, or nothing.

Deleting takes time and has no order. A folder that is deleted where it lies could be left with a manifest and without
its files, or with checkpoints and without the mark that says whose they are. So it is renamed first, to a name that
nobody reads.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from deepen.errors import DamageError
from deepen.formats.files.atomic import sync_directory
from deepen.formats.manifest import read_manifest

_REMOVING = ".removing"


def remove_directory(directory: Path) -> None:
    """Delete a directory, all at once for whoever looks; nothing when it is not there."""
    if not directory.exists():
        return
    # No run and no stage has a name that begins with a dot.
    doomed = directory.with_name(f".{directory.name}{_REMOVING}")
    shutil.rmtree(doomed, ignore_errors=True)  # left by a kill
    directory.rename(doomed)
    sync_directory(directory.parent)  # before the first file goes
    shutil.rmtree(doomed)


def is_doomed(directory: Path) -> bool:
    """Whether a directory is one that ``remove_directory`` was deleting, or lies in one."""
    return any(name.startswith(".") and name.endswith(_REMOVING) for name in directory.parts)


def sweep(parent: Path) -> None:
    """Delete what is left in ``parent`` of directories whose removal was killed."""
    for doomed in parent.glob(f".*{_REMOVING}"):
        shutil.rmtree(doomed, ignore_errors=True)  # another process may be at the same


def put_in_place(directory: Path, aside: Path) -> None:
    """Let ``aside`` take the place of ``directory``; ``recover_swap`` ends what a kill interrupts."""
    old = _old(directory)
    directory.rename(old)
    aside.rename(directory)
    sync_directory(directory.parent)
    remove_directory(old)


def recover_swap(directory: Path) -> None:
    """Finish or undo a ``put_in_place`` that a kill interrupted."""
    aside, old = directory.with_name(directory.name + ".redo"), _old(directory)
    if old.exists() and not directory.exists():
        (aside if _is_finished(aside) else old).rename(directory)
    remove_directory(old)


def _old(directory: Path) -> Path:
    return directory.with_name(directory.name + ".old")


def _is_finished(directory: Path) -> bool:
    try:
        return read_manifest(directory) is not None
    except DamageError:
        return False
