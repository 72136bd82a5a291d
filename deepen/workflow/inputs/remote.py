"""Source files at an address that fsspec knows (s3, gs, http and more): listed once, pinned, fetched to a local cache.

The pin holds the version of every file as its store tells it (version id, etag, checksum, time or at least size), so
a rerun reads the same files or says which one has changed. What is fetched is read like local files, and identified by
content like them.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from deepen.errors import MissingExtraError, OfflineError, SourceError
from deepen.formats.files.atomic import sync_directory
from deepen.progress import track

CACHE = "DEEPEN_CACHE"
"""Environment variable: where fetched files are kept."""
_VERSIONS = ("VersionId", "version_id", "generation", "ETag", "etag", "md5Hash", "content_md5", "sha256", "checksum")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")
Listing = dict[str, str]
"""Version of each file by its path relative to the address's fixed part."""


@dataclass(frozen=True)
class Remote:
    """Files at an address, to be fetched one by one."""

    files: Listing
    """Version of each file by its location, in the order in which they are read."""
    fetch: Callable[[str], Path]
    """Brings the file of a location here, if it is not there yet, and returns its path."""


def remote_files(address: str, pinned: Listing | None, *, offline: bool) -> tuple[Path, Listing]:
    """Local path (file or folder) of what ``address`` names, and the versions; ``pinned`` ones are not asked for again.

    Raises ``OfflineError`` when something is missing and must not be fetched, ``SourceError`` when a pinned file has
    changed or nothing can be reached, ``MissingExtraError`` when the store's client is not installed.
    """
    if pinned is not None:
        folder = cache_folder(address, pinned)
        if all((folder / name).is_file() for name in pinned):
            return _local(folder, address, pinned), pinned
    if offline:
        hint = "run `deepen fetch RECIPE` once with network access"
        raise OfflineError(f"`{address}` is not on this machine, and the run is offline", hint=hint)
    with _reaching(address):
        system, root, infos = _listed(address)
        found = {name: _version(info) for name, info in infos.items()}
        if pinned is not None:
            check_unchanged(address, found, pinned)
        folder = cache_folder(address, found)
        _fetch(system, root, infos, folder)
    return _local(folder, address, found), found


def list_remote(address: str) -> Remote:
    """The files at an address in the order of their paths, each to be fetched by itself into the same cache."""
    with _reaching(address):
        system, root, infos = _listed(address)
    found = {name: _version(info) for name, info in infos.items()}
    folder = cache_folder(address, found)

    def fetch(name: str) -> Path:
        with _reaching(address):
            _fetch(system, root, {name: infos[name]}, folder)
        return folder / name

    return Remote(found, fetch)


@contextmanager
def _reaching(address: str) -> Iterator[None]:
    """Says in words of ours why the store at ``address`` gave nothing."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(f"`{address}`: {error}", hint="`pip install 'deepen[remote]'`") from error
    except (OSError, ValueError) as error:
        hint = "check the address, the network and your credentials for the store"
        raise SourceError(f"`{address}` cannot be fetched: {type(error).__name__}: {error}", hint=hint) from error


def cache_folder(address: str, versions: Mapping[str, str]) -> Path:
    """The folder of one state of one address: another version of any file is another folder."""
    root = os.environ.get(CACHE) or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "deepen")
    text = "\n".join([address, *(f"{name}\0{version}" for name, version in sorted(versions.items()))])
    return Path(root).expanduser() / "fetched" / xxhash.xxh3_128_hexdigest(text.encode())


def _local(folder: Path, address: str, versions: Listing) -> Path:
    """A lone file keeps its name, as a local file does; several are a folder."""
    is_file = list(versions) == [address.rstrip("/").rsplit("/", 1)[-1]] and not glob.has_magic(address)
    return folder / next(iter(versions)) if is_file else folder


def _listed(address: str) -> tuple[Any, str, dict[str, Mapping[str, Any]]]:
    """The store, the fixed part of the address and what it knows of each file below it, hidden ones left out."""
    from fsspec.core import url_to_fs

    system, path = url_to_fs(address)
    path = path.rstrip("/")
    is_web = address.startswith(("http://", "https://"))  # pages are no folders, and `?` is no wildcard there
    if glob.has_magic(path) and not is_web:
        parts = path.split("/")
        root = "/".join(parts[: next(number for number, part in enumerate(parts) if glob.has_magic(part))])
        infos = {name: info for name, info in system.glob(path, detail=True).items() if info.get("type") == "file"}
    elif not is_web and system.isdir(path):
        root, infos = path, system.find(path, detail=True)
    else:
        root, infos = path.rpartition("/")[0], {path: system.info(path)}
    relative = {name.removeprefix(root).strip("/"): info for name, info in sorted(infos.items())}
    found = {name: info for name, info in relative.items() if not any(part.startswith(".") for part in name.split("/"))}
    if not found:
        raise SourceError(f"`{address}` names no file", hint="`**` crosses folders, `*` does not")
    if any(".." in name.split("/") for name in found):
        raise SourceError(f"`{address}` lists paths that leave it", hint="name the files one by one")
    return system, root, found


def _version(info: Mapping[str, Any]) -> str:
    known = [f"{name}={info[name]}" for name in _VERSIONS if info.get(name)]
    known = known or [f"{name}={info[name]}" for name in _TIMES if info.get(name)]
    return f"{info.get('size')} bytes" + (f", {known[0]}" if known else "")


def check_unchanged(address: str, found: Mapping[str, str], pinned: Mapping[str, str]) -> None:
    """Raise ``SourceError`` that names the files whose versions are not the pinned ones."""
    if found == pinned:
        return
    changed = sorted(name for name in {*found, *pinned} if found.get(name) != pinned.get(name))
    raise SourceError(
        f"`{address}` is not what this run began with: {', '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}",
        hint="begin a new run, or remove this address from `pins.json` to take what is there now",
    )


def _fetch(system: Any, root: str, infos: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Fetch what is not there yet; a file appears under its name when it is complete."""
    missing = {name: info for name, info in infos.items() if not (folder / name).is_file()}
    total = sum(float(info.get("size") or 0) for info in missing.values())
    with track("fetch", total, "B") as tracker:
        for name, info in missing.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            system.get_file(f"{root}/{name}" if root else name, str(part))
            if info.get("size") is not None and part.stat().st_size != info["size"]:
                raise OSError(f"{name}: {part.stat().st_size} bytes arrived, {info['size']} were announced")
            part.replace(path)
            sync_directory(path.parent)
            tracker.advance(float(info.get("size") or 0), name)
