"""Local files that are one input of a run, and what identifies them: contents, and names where those matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepen.formats.files.hashes import HashCache
from deepen.formats.manifest import InputEntry, fingerprint


@dataclass(frozen=True)
class InputFiles:
    """Local files that are one input of a run."""

    path: str
    """As the recipe has it, for people."""
    files: Mapping[str, Path]
    """By name, location or number, in their order."""
    kind: Literal["file", "probe_files", "fixed_rows", "tokenizer"]
    """What the identity is of: names belong to that of rows and tokenizers, not to that of a lone file or a probe."""


def identify_files(found: Mapping[str, InputFiles], hash_cache: Path) -> dict[str, InputEntry]:
    """The identity of each input; ``hash_cache`` spares reading unchanged files again."""
    cache, entries = HashCache(hash_cache), dict[str, InputEntry]()
    for name, one in found.items():
        hashes = {key: cache.hash(path) for key, path in one.files.items()}
        match one.kind:
            case "file":
                (mark,) = hashes.values()
            case "probe_files":
                mark = fingerprint(one.kind, 1, list(hashes.values()), {})
            case _:
                mark = fingerprint(one.kind, 1, hashes, {})
        entries[name] = InputEntry(path=one.path, fingerprint=mark)
    cache.save()
    return entries


def named_files(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder that any of ``patterns`` matches, by name."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return {path.name: path for path in files}


def tokenizers_as_inputs(folders: Mapping[str, Path], patterns: tuple[str, ...]) -> dict[str, InputFiles]:
    """The tokenizers of prepared rows, given their folders by the rows' names and what their files are called."""
    return {
        f"fixed_rows_tokenizer:{name}": InputFiles(str(folder), named_files(folder, patterns), "tokenizer")
        for name, folder in folders.items()
    }
