"""What an earlier result of a stage holds of the one that replaces it: taken over, so that nothing is made twice.

Whether a part of it is what would be made now, each stage asks by an identity that it kept in its counts. Here is what
holds for all: only files that are as the earlier manifest says are believed, and they are linked where possible.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deepen.formats.files.atomic import FileEntry, damage, hash_file, link_or_copy
from deepen.formats.manifest import Artifact

Files = tuple[FileEntry, ...]


def intact_files(earlier: Artifact, wanted: Callable[[str], bool]) -> Files | None:
    """The files whose names are ``wanted``; None when one of them is not as it was written."""
    files = tuple(entry for entry in earlier.manifest.files if wanted(entry.path))
    return None if any(damage(entry, earlier.path) for entry in files) else files


def take_over(earlier: Artifact, wanted: Callable[[str], bool], out: Path) -> Files | None:
    """Bring the ``wanted`` files into ``out`` under their names; None, and nothing is brought, when one is damaged."""
    files = intact_files(earlier, wanted)
    for entry in files or ():
        link_or_copy(earlier.path / entry.path, out / entry.path)
    return files


def take_over_file(source: Path, expected: str, target: Path) -> bool:
    """Bring one file to ``target``; False, and nothing is brought, when its hash is not the ``expected`` one."""
    if not source.is_file() or hash_file(source) != expected:
        return False
    link_or_copy(source, target)
    return True
