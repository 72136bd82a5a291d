"""Reuse between runs: equal finished work is referred to by path, and what is referred to is not taken away."""

from __future__ import annotations

from pathlib import Path

from deepen.errors import DamageError, RunError
from deepen.formats.files.atomic import link_or_copy
from deepen.formats.manifest import Artifact, Manifest, open_artifact, read_manifest, write_manifest
from deepen.formats.replaced import is_doomed
from deepen.formats.unchanged import small_faults
from deepen.progress import say
from deepen.runs.lock import locked


def find_neighbour(run: Path, stage: str, fingerprint: str) -> Artifact | None:
    """A finished artifact of ``stage`` with this fingerprint in another run under the same root."""
    for directory in sorted(run.parent.glob(f"*/{stage}")):
        manifest = _manifest_of(directory) if directory.parent != run and not is_doomed(directory) else None
        if manifest is None or manifest.location is not None or manifest.fingerprint != fingerprint:
            continue
        if manifest.counts.get("order_changes"):  # a change of mixture on the way is not in the fingerprint
            continue
        found = Artifact(directory, manifest)
        if not (faults := small_faults(found)):
            return found
        say(f"`{directory}` would do, but is damaged and passed over: {faults[0]}")
    return None


def _manifest_of(directory: Path) -> Manifest | None:
    """The manifest of another run's stage; None, with a message, when it cannot be read: that blocks nobody else."""
    try:
        return read_manifest(directory)
    except (DamageError, OSError) as error:
        what = error.message if isinstance(error, DamageError) else str(error)
        say(f"passing over `{directory}`: {what}")
        return None


def references_to(target: Path) -> list[Path]:
    """Stage directories of neighbouring runs that refer to ``target`` or to a stage inside it."""
    target = target.resolve()
    referring = []
    for directory in sorted(target.parents[0].glob("*/*")) + sorted(target.parents[1].glob("*/*")):
        manifest = _manifest_of(directory) if directory.is_dir() and not is_doomed(directory) else None
        if manifest is None or manifest.location is None:
            continue
        place = (directory / manifest.location).resolve()
        if (place == target or target in place.parents) and target not in directory.resolve().parents:
            referring.append(directory)
    return sorted(set(referring))


def make_unreferenced(target: Path, *, give_copies: bool) -> None:
    """See that nothing refers to ``target`` (a stage or a run), which is about to be replaced or removed.

    With ``give_copies`` (the replacement does not suit those runs) every reference becomes a result of its own, by hard
    links where possible. Raises ``RunError`` for a reference otherwise, and when a referring run is at work.
    """
    referring = references_to(target)
    if referring and not give_copies:
        names = ", ".join(f"`{directory}`" for directory in referring)
        raise RunError(f"`{target}` is referred to by {names}", hint="remove those first, with `deepen rm`")
    for directory in referring:
        with locked(directory.parent):
            artifact = open_artifact(directory)
            assert artifact is not None, "a reference that was just found is gone"
            for entry in artifact.manifest.files:
                link_or_copy(artifact.path / entry.path, directory / entry.path)
            write_manifest(directory, artifact.manifest)
        say(f"{directory}: has its own copy now, since `{target}` is replaced")
