"""Encoding nothing twice: the shard of a source whose documents are as they were is taken over.

Adding a source to a finished run so costs only that source. What a shard depends on is its documents, the tokenizer
(compared by its files, however they came to be), the settings, the encoder and FORMAT.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepen.formats.manifest import Artifact, StageJob
from deepen.formats.taken_over import Files, take_over
from deepen.progress import say

MADE_FROM = "made_from"
"""Key of a source's counts: the hash of the document files that its shard was made from."""


def documents_hash(curate: Artifact, files: Sequence[Path]) -> str:
    """Identity of a source's document files, from the hashes in the manifest of ``curate``: 32 hex digits."""
    hashes = {entry.path: entry.hash for entry in curate.manifest.files}
    names = [path.relative_to(curate.path).as_posix() for path in files]
    text = "\n".join(f"{name} {hashes.get(name, 'unknown')}" for name in names)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def carry_over(
    job: StageJob, prepared: dict[str, Any], made_from: dict[str, str], format_number: int
) -> dict[str, Files]:
    """Bring the shards of unchanged sources into ``job.out``; returns their files by source.

    ``made_from``: ``documents_hash`` by source.
    """
    earlier = job.previous
    if earlier is None or not _same_tokenizer(earlier, job, prepared, format_number):
        return {}
    found: dict[str, Files] = {}
    for name, mark in made_from.items():
        shard = {f"shards/{name}.{kind}" for kind in ("bin", "bin.blocks", "idx", "trained", "trained.blocks")}
        wanted = {*shard, f"documents/{name}.npy"}
        if earlier.counts["sources"].get(name, {}).get(MADE_FROM) == mark:
            files = take_over(earlier, wanted.__contains__, job.out)
            if files is not None:
                say(f"tokenize: the documents of `{name}` are as they were; its shard is taken over")
                found[name] = files
    return found


def _same_tokenizer(earlier: Artifact, job: StageJob, prepared: dict[str, Any], format_number: int) -> bool:
    before = {entry.path: entry.hash for entry in earlier.manifest.files if entry.path.startswith("tokenizer/")}
    after = {file["path"]: file["hash"] for file in prepared["files"] if file["path"].startswith("tokenizer/")}
    return (
        earlier.manifest.format == format_number
        and before == after
        and earlier.counts["encoder"] == prepared["encoder"]
        and job.identity is not None
        and earlier.manifest.config == job.identity
    )
