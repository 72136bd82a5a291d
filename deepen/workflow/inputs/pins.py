"""What a run found at addresses, pinned in its ``pins.json`` so that a rerun uses the same.

Hub repositories are pinned by the commit they resolved to, files in stores by the version the store tells.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from deepen.errors import DeepenError, OfflineError, SourceError
from deepen.formats.files.atomic import write_json
from deepen.formats.files.json_text import read_object
from deepen.ingest.config import Extraction, Source
from deepen.workflow.inputs.first_files import first_files
from deepen.workflow.inputs.hub import CARD, list_dataset
from deepen.workflow.inputs.remote import Remote, remote_files


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

    @cached_property
    def _known(self) -> dict[str, Any]:
        """Commits, versions of files and first files, by what they are of."""
        remedy = "put it back; or remove it, and what it pinned is looked up anew"
        return read_object(self._path, hint=remedy) if self._path.is_file() else {}

    def snapshot(self, repository: str, *, kind: str, patterns: tuple[str, ...]) -> tuple[Path, str]:
        """Local folder and commit of a hub repository (``model`` or ``dataset``); downloads what is not there yet."""
        from huggingface_hub import snapshot_download

        name, _, revision = repository.partition("@")
        key = f"{kind}:{repository}"
        with self._reaching(f"hub {kind} `{repository}`"):
            folder = snapshot_download(
                name, repo_type=kind, revision=self._known.get(key) or revision or None,
                allow_patterns=list(patterns), local_files_only=self._offline,
            )  # fmt: skip
        commit = Path(folder).name
        self._pin(key, commit)
        return Path(folder), commit

    def remote(self, address: str) -> Path:
        """Local path of the files at an address that fsspec knows; fetches what is not there yet."""
        key = f"files:{address}"
        path, versions = remote_files(address, self._known.get(key), offline=self._offline)
        self._pin(key, versions)
        return path

    def first_files(self, source: Source, extraction: Extraction, list_files_there: Callable[[], Remote]) -> Path:
        """Local folder of the first files of a source at an address, as many as its limit takes."""
        key = f"first files:{source.name}"
        path, pin = first_files(source, extraction, self._known.get(key), None if self._offline else list_files_there)
        self._pin(key, pin)
        return path

    def _pin(self, key: str, found: Any) -> None:
        if self._known.get(key) != found:
            self._known[key] = found
            write_json(self._path, self._known)

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
