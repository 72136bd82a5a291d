"""Which files of a hub data set belong to a subset and a split, read from its card as the hub's own tools do.

The card (``README.md``) may list ``configs`` with ``data_files`` per split; without it the names of the files decide.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepen.errors import SourceError

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
