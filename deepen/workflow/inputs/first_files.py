"""Of a limited source at an address only the first files are fetched, as many as its limit takes.

They are fetched one after the other and counted as ingest will count them. Which they were is pinned with what decides
it (settings of the source, version of every file), so a rerun fetches the same ones, whatever else lies in a cache.
They are read from a folder of links to exactly them, under the names they would have if all were there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from deepen.errors import OfflineError, SourceError
from deepen.formats.manifest import fingerprint
from deepen.ingest.config import HUB, Extraction, Source
from deepen.ingest.files import InputFile, reading_format
from deepen.plug import identity
from deepen.progress import say
from deepen.workflow.inputs.remote import Remote, cache_folder, check_unchanged

_RULES = 1
"""Raised when the choice of files changes, so that pins made before are not trusted."""
_NO_MATTER = ("name", "role", "category", "language", "licence")
"""Settings of a source that do not decide how much a file gives."""
Pin = dict[str, Any]
"""``address``, ``settings`` (their hash), ``files`` (version by location), ``of`` (how many there are), ``enough``."""


def first_files(
    source: Source, extraction: Extraction, pinned: Pin | None, list_remote: Callable[[], Remote] | None
) -> tuple[Path, Pin]:
    """The folder of the first files that the limit of ``source`` takes, and the pin that says which they are.

    ``list_remote`` None: nothing may be asked for, and what is not here raises ``OfflineError``. ``SourceError`` when a
    pinned file has changed or there is none.
    """
    from deepen.ingest.read.documents import files_needed  # loads the readers

    pinned = pinned if pinned is not None and pinned["address"] == source.path else None
    settings = _settings(source, extraction)
    if pinned is not None and pinned["settings"] == settings:
        folder = _folder(pinned)
        if all((folder / location).is_file() for location in pinned["files"]):
            _tell(source, pinned)
            return folder, pinned
    if list_remote is None:
        hint = "run `deepen fetch RECIPE` once with network access"
        message = f"the first files of `{source.path}` are not on this machine, and the run is offline"
        raise OfflineError(message, hint=hint)
    remote = list_remote()
    if not remote.files:
        raise SourceError(f"`{source.path}` names no file", hint="`**` crosses folders, `*` does not")
    if pinned is not None and not source.path.startswith(HUB):  # a commit does not change
        now = {name: remote.files.get(name, "gone") for name in pinned["files"]}
        check_unchanged(source.path, now, pinned["files"])
    if pinned is None or pinned["settings"] != settings:
        needed = files_needed(source, extraction, _fetched(source, remote))
        chosen = {file.location: remote.files[file.location] for file in needed.files}
        pinned = {"files": chosen, "of": len(remote.files), "enough": needed.is_enough}
        pinned |= {"address": source.path, "settings": settings}
    folder = _folder(pinned)
    for location in pinned["files"]:
        _link(folder / location, remote.fetch(location))
    _tell(source, pinned)
    return folder, pinned


def _fetched(source: Source, remote: Remote) -> Iterator[InputFile]:
    """The files in their order, each fetched when it is asked for."""
    for location in remote.files:
        path = remote.fetch(location)
        yield InputFile(str(path), location, reading_format(location, source.format), path.stat().st_size)


def _settings(source: Source, extraction: Extraction) -> str:
    """Hash of everything but the files that decides how many of them the limit takes."""
    own = {key: value for key, value in identity(source).items() if key not in _NO_MATTER}
    return fingerprint("first_files", _RULES, {"source": own, "extraction": identity(extraction)}, {})


def _folder(pin: Pin) -> Path:
    return cache_folder(f"first files of {pin['address']}", cast(Mapping[str, str], pin["files"]))


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target.absolute())
    part.replace(path)


def _tell(source: Source, pin: Pin) -> None:
    number, of = len(pin["files"]), pin["of"]
    if pin["enough"]:
        say(f"{source.name}: {number} of {of} files: enough for {source.limit}")
    else:
        say(f"{source.name}: all {of} files together are less than its limit, {source.limit}")
