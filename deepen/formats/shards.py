"""Where the tokens of a source lie: in the tokenize stage, or in the mix, which holds rows that came as token ids."""

from __future__ import annotations

from pathlib import Path

from deepen.formats.tokens.megatron import idx_path


def stage_with_shard(source: str, tokenize: Path, mix: Path) -> Path:
    """The stage directory with ``shards/SOURCE`` and ``documents/SOURCE.npy``; fixed rows are in ``mix``."""
    return mix if idx_path(mix / "shards" / source).is_file() else tokenize
