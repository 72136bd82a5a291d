"""What a run found at addresses, pinned in its ``pins.json`` so that a rerun uses the same.

Hub repositories are pinned by the commit they resolved to, files in stores by the version the store tells.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deepen.errors import DeepenError, OfflineError, SourceError
from deepen.formats.files.atomic import write_json
from deepen.formats.files.json_text import read_object
from deepen.ingest.config import Extraction, Source
from deepen.workflow.inputs.first_files import Pin, first_files
from deepen.workflow.inputs.hub import CARD, list_dataset
from deepen.workflow.inputs.remote import Listing, Remote, remote_files

_FIRST = "first files:"
"""Beginning of a pin's key: which files of a limited source were needed."""


@contextmanager
def without_network(offline: bool) -> Iterator[None]:
    """Tell the hub libraries to connect to nothing while the block runs, if ``offline``.

    They read the variable when they are first imported, so this must come before.
    """
    before = os.environ.get("HF_HUB_OFFLINE")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        if offline:
            os.environ.pop("HF_HUB_OFFLINE")
            os.environ.update({"HF_HUB_OFFLINE": before} if before is not None else {})


class Pins:
    """Finds what addresses name, as it was found before, and remembers what is new."""

    def __init__(self, path: Path, *, offline: bool) -> None:
        self._path, self._offline = path, offline
        remedy = "put it back; or remove it, and what it pinned is looked up anew"
        known = read_object(path, hint=remedy) if path.is_file() else {}
        self._commits: dict[str, str] = {key: value for key, value in known.items() if isinstance(value, str)}
        pinned = {key: value for key, value in known.items() if isinstance(value, dict)}
        self._pinned_files: dict[str, Listing] = {k: v for k, v in pinned.items() if not k.startswith(_FIRST)}
        self._first_files: dict[str, Pin] = {k: v for k, v in pinned.items() if k.startswith(_FIRST)}

    def snapshot(self, repository: str, *, kind: str, patterns: tuple[str, ...]) -> tuple[Path, str]:
        """Local folder and commit of a hub repository (``model`` or ``dataset``); downloads what is not there yet."""
        from huggingface_hub import snapshot_download

        name, _, revision = repository.partition("@")
        pinned = self._commits.get(f"{kind}:{repository}")
        with self._reaching(f"hub {kind} `{repository}`"):
            folder = snapshot_download(
                name, repo_type=kind, revision=pinned or revision or None, allow_patterns=list(patterns),
                local_files_only=self._offline,
            )  # fmt: skip
        commit = Path(folder).name
        if pinned != commit:
            self._commits[f"{kind}:{repository}"] = commit
            self._save()
        return Path(folder), commit

    def remote(self, address: str) -> Path:
        """Local path of the files at an address that fsspec knows; fetches what is not there yet."""
        key = f"files:{address}"
        path, versions = remote_files(address, self._pinned_files.get(key), offline=self._offline)
        if self._pinned_files.get(key) != versions:
            self._pinned_files[key] = versions
            self._save()
        return path

    def first_files(self, source: Source, extraction: Extraction, list_files_there: Callable[[], Remote]) -> Path:
        """Local folder of the first files of a source at an address, as many as its limit takes."""
        key = f"{_FIRST}{source.name}"
        pinned = self._first_files.get(key)
        path, pin = first_files(source, extraction, pinned, None if self._offline else list_files_there)
        if pinned != pin:
            self._first_files[key] = pin
            self._save()
        return path

    def list_dataset(self, repository: str, patterns: Sequence[str], file_format: str) -> Remote:
        """The files of a hub data set that ``patterns`` name, at the commit that is pinned here."""
        _, commit = self.snapshot(repository, kind="dataset", patterns=(CARD,))
        what = f"hub dataset `{repository}`"
        with self._reaching(what):
            remote = list_dataset(repository.partition("@")[0], commit, patterns, file_format)

        def fetch(location: str) -> Path:
            with self._reaching(what):
                return remote.fetch(location)

        return Remote(remote.files, fetch)

    def _save(self) -> None:
        write_json(self._path, {**self._commits, **self._pinned_files, **self._first_files})

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            yield
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
            raise self._not_found(what, error) from error

    def _not_found(self, what: str, error: Exception) -> DeepenError:
        if self._offline:
            hint = "run `deepen fetch RECIPE` once with network access"
            return OfflineError(f"{what} is not on this machine, and the run is offline", hint=hint)
        hint = "check the name and the network, or log in with `hf auth login` for a gated repository"
        return SourceError(f"{what} cannot be fetched: {error}", hint=hint)
