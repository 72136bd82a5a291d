"""Which files of a hub data set belong to a subset and a split, read from its card as the hub's own tools do.

The card (``README.md``) may list ``configs`` with ``data_files`` per split; without it the names of the files decide.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepen.errors import SourceError
from deepen.ingest.files import list_files
from deepen.workflow.inputs.remote import Remote

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

CARD = "README.md"


def read_card(path: Path) -> dict[str, Any]:
    """The YAML at the head of a data set's card; empty when there is none or it cannot be read."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not text.startswith("---"):
        return {}
    try:
        value = YAML(typ="safe", pure=True).load(io.StringIO(text[3:].partition("\n---")[0]))
    except YAMLError:
        return {}
    return dict(value) if isinstance(value, Mapping) else {}


def pattern_in_card(name: str, card: Mapping[str, Any], subset: str | None, split: str) -> str | None:
    """The one pattern of the files of ``subset`` and ``split`` of data set ``name``; None when its card lists nothing.

    Raises ``SourceError`` that lists what there is when subset or split are not found, or are not one pattern.
    """
    configs = {str(config.get("config_name", "default")): config for config in card.get("configs") or ()}
    if not configs:
        return None
    chosen = subset or next((key for key, config in configs.items() if config.get("default")), next(iter(configs)))
    if chosen not in configs:
        raise SourceError(f"hub dataset `{name}` has no subset `{chosen}`", hint=f"subsets: {', '.join(configs)}")
    splits = _splits(configs[chosen].get("data_files"))
    if split not in splits:
        raise SourceError(f"subset `{chosen}` of `{name}` has no split `{split}`", hint=f"splits: {', '.join(splits)}")
    patterns = splits[split]
    if len(patterns) != 1:
        listed = ", ".join(patterns)
        raise SourceError(
            f"split `{split}` of `{name}` is several patterns: {listed}",
            hint=f"give each as a source of its own: path: hf://{name}/PATTERN",
        )
    return patterns[0]


def list_dataset(name: str, commit: str, patterns: Sequence[str], file_format: str) -> Remote:
    """The files of a data set that the first of ``patterns`` with any files names, in the order of their paths.

    Which files a pattern names is told by the code that reads folders, on empty files of the same names.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.hf_api import RepoFile

    every = HfApi().list_repo_tree(name, repo_type="dataset", revision=commit, recursive=True)
    versions = {entry.path: _version(entry) for entry in every if isinstance(entry, RepoFile)}
    beginnings = tuple(re.split(r"[*?[]", pattern)[0] for pattern in patterns)
    with tempfile.TemporaryDirectory(prefix="deepen-listing-") as tree:
        for path in (path for path in versions if path.startswith(beginnings)):
            Path(tree, path).parent.mkdir(parents=True, exist_ok=True)
            Path(tree, path).touch()
        listed = (list_files(f"{tree}/{pattern}", file_format) for pattern in patterns)
        files = next((files for files in listed if files), [])
        paths = {file.location: Path(file.path).relative_to(tree).as_posix() for file in files}

    def fetch(location: str) -> Path:
        return Path(hf_hub_download(name, paths[location], repo_type="dataset", revision=commit))

    return Remote({location: versions[path] for location, path in paths.items()}, fetch)


def as_hub_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """The same for the hub's client, in whose patterns ``**/`` stands for one folder at least, not for none."""
    return tuple(dict.fromkeys(one for pattern in patterns for one in (pattern, pattern.replace("**/", ""))))


def _version(entry: RepoFile) -> str:
    return f"{entry.size} bytes, " + (f"sha256={entry.lfs.sha256}" if entry.lfs else f"blob={entry.blob_id}")


def _splits(data_files: Any) -> dict[str, list[str]]:
    """Patterns by split, from the forms that a card may have."""
    if isinstance(data_files, str):
        return {"train": [data_files]}
    if isinstance(data_files, Mapping):
        return {str(split): _listed(paths) for split, paths in data_files.items()}
    if all(isinstance(entry, Mapping) for entry in data_files or ()):
        return {str(entry.get("split", "train")): _listed(entry.get("path")) for entry in data_files or ()}
    return {"train": [str(entry) for entry in data_files]}


def _listed(paths: Any) -> list[str]:
    return [paths] if isinstance(paths, str) else [str(path) for path in paths or ()]
