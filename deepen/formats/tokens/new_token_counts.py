"""``new_token_counts.json``: how often each token of an extended vocabulary stands in each shard.

Written by `tokenize` from the finished shards; `mix` multiplies with what it takes of each source.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deepen.formats.files.arrays import Array
from deepen.formats.files.atomic import FileEntry, write_json
from deepen.formats.files.json_text import read_object
from deepen.formats.tokens.megatron import IndexedDataset

NEW_TOKEN_COUNTS = "new_token_counts.json"
_BLOCK = 1 << 24


def count_new_tokens(shard: Path, base_vocabulary_size: int, vocabulary_size: int) -> Array:
    """int64[new tokens]: how often each id from ``base_vocabulary_size`` on stands in a shard; memory is flat."""
    counts = np.zeros(vocabulary_size - base_vocabulary_size, dtype=np.int64)
    dataset = IndexedDataset.open(shard)
    for begin in range(0, dataset.num_tokens, _BLOCK):
        block = dataset.ids(begin, min(begin + _BLOCK, dataset.num_tokens))
        # New ids follow all old ones.
        new = block[block >= base_vocabulary_size].astype(np.int64) - base_vocabulary_size
        counts += np.bincount(new, minlength=len(counts))
    return counts


def write_new_token_counts(directory: Path, counts: Mapping[str, Array]) -> FileEntry:
    """Write the counts of every source, in the order of ids."""
    return write_json(directory / NEW_TOKEN_COUNTS, {name: array.tolist() for name, array in counts.items()})


def read_new_token_counts(directory: Path) -> dict[str, Array] | None:
    """The counts of every source; None when the vocabulary is the base's own."""
    path = directory / NEW_TOKEN_COUNTS
    if not path.is_file():
        return None
    return {name: np.array(counts, dtype=np.int64) for name, counts in read_object(path).items()}
