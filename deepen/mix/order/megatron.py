"""Megatron-LM's own order: the samples of its GPTDataset, blended by its BlendedDataset, index for index.

Documents of all epochs are shuffled and spliced into samples of S + 1 tokens that overlap by one; the samples are
shuffled again; sources are interleaved by weight. It is here for people who must repeat or go on with a Megatron run.
Its drawbacks come along: a document can repeat before others were seen once, a longer run is ordered anew from its
start, and with isolation off (as there) a row is one text across documents. Memory: 8 bytes per document and epoch, 16
per sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepen.engine.compiled import njit
from deepen.errors import SourceError
from deepen.formats.files.arrays import Array, open_array, write_array
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.formats.tokens.order import row_ids
from deepen.formats.tokens.packs import write_packs

_EXTRA = 1
"""Tokens of a sample beyond its positions: the last label."""
_SURPLUS = 0.005  # more samples than its share, since the blend cannot hit shares exactly
_SEPARATE_BELOW = 0.80  # of an epoch: a last one that is used less than this is shuffled by itself
_BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class Indices:
    """What Megatron's GPTDataset builds for one source."""

    document: Array
    """int32: sequences, epoch after epoch, shuffled."""
    sample: Array
    """[samples + 1, 2]: place in ``document`` and token there at which each sample begins."""
    shuffle: Array
    """uint32[samples]: the k-th sample that is trained."""
    epochs: int


def gpt_indices(lengths: Array, sequence_length: int, num_samples: int, seed: int) -> Indices:
    """Megatron's document, sample and shuffle index for ``num_samples`` samples of all sequences of a source."""
    tokens = int(lengths.sum(dtype=np.int64))
    epochs = max(1, -(-(num_samples * sequence_length + _EXTRA) // tokens))
    separate, before_last = False, 0
    if epochs > 1:
        before_last = ((epochs - 1) * tokens - _EXTRA) // sequence_length
        per_epoch = (tokens - _EXTRA) // sequence_length
        separate = num_samples - before_last < int(_SEPARATE_BELOW * per_epoch)
    # Megatron's generator, and one for both shuffles: the samples' begins where the documents' has left it.
    random = np.random.RandomState(seed)
    document = _document_index(len(lengths), epochs, separate, random)
    total = (epochs * tokens - _EXTRA) // sequence_length
    sample = _sample_index(np.ascontiguousarray(lengths, dtype=np.int32), document, sequence_length, total)
    shuffle = np.arange(total, dtype=np.uint32 if total < 2**32 - 2 else np.int64)  # the type, too, is Megatron's
    for part in (shuffle[:before_last], shuffle[before_last:]) if separate else (shuffle,):
        random.shuffle(part)
    return Indices(document, sample, shuffle, epochs)


def _document_index(num_sequences: int, epochs: int, separate: bool, random: np.random.RandomState) -> Array:
    parts = (epochs - 1, 1) if separate else (epochs,)
    found = []
    for number in parts:
        part = np.tile(np.arange(num_sequences, dtype=np.int32), number)
        random.shuffle(part)
        found.append(part)
    return np.concatenate(found)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sample_index(lengths: Array, document: Array, sequence_length: int, num_samples: int) -> Array:
    """Where samples begin; the next begins at the last token of the one before."""
    found = np.zeros((num_samples + 1, 2), np.int64)
    place, offset = 0, 0
    for sample in range(1, num_samples + 1):
        left = sequence_length + _EXTRA
        while left > 0:
            here = lengths[document[place]] - offset
            left -= here
            if left <= 0:
                # `left + here` tokens of this document are the sample's; the last of them is the next one's first, too.
                offset += left + here - _EXTRA
            else:
                place, offset = place + 1, 0
        found[sample, 0], found[sample, 1] = place, offset
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def _rows_of_samples(lengths: Array, document: Array, sample: Array) -> tuple[Array, Array]:
    """Samples as packed rows: each with its S + 1 tokens."""
    num_samples = len(sample) - 1
    rows = np.zeros(num_samples + 1, np.int64)
    for number in range(num_samples):
        # It touches every document from its first place to the next one's.
        rows[number + 1] = rows[number] + sample[number + 1, 0] - sample[number, 0] + 1
    segments = np.empty((rows[-1], 3), np.int64)
    at = 0
    for number in range(num_samples):
        for place in range(sample[number, 0], sample[number + 1, 0] + 1):
            start = sample[number, 1] if place == sample[number, 0] else 0
            is_last = place == sample[number + 1, 0]
            end = sample[number + 1, 1] + _EXTRA if is_last else lengths[document[place]]  # with the last label
            segments[at, 0], segments[at, 1], segments[at, 2] = document[place], start, end - start
            at += 1
    return rows, segments


@njit(cache=True)  # type: ignore[untyped-decorator]
def blend(weights: Array, size: int, caps: Array) -> tuple[Array, Array]:
    """Megatron's BlendedDataset: for each of ``size`` samples its source (int16) and its number there (int64).

    A source that has given as many samples as ``caps`` says leaves.
    """
    sources = np.empty(size, np.int16)
    numbers = np.empty(size, np.int64)
    counts = np.zeros(len(weights), np.int64)
    for at in range(size):
        # The source that lacks most. `max(at, 1)` and the order of the sums are Megatron's: floats must round alike.
        best, most = -1, 0.0
        for source in range(len(weights)):
            if counts[source] < caps[source]:
                error = weights[source] * max(at, 1) - counts[source]
                if best < 0 or error > most:
                    best, most = source, error
        sources[at], numbers[at] = best, counts[best]
        counts[best] += 1
    return sources, numbers


def blend_all(sizes: Array) -> tuple[Array, Array]:
    """Megatron's exhaustive BlendedDataset: all samples of all sources once, sizes as weights; what is spent leaves."""
    total = int(sizes.sum())
    return blend(sizes / max(1, total), total, sizes)  # type: ignore[no-any-return]


def samples_asked(num_rows: int, share: float) -> int:
    """How many samples Megatron asks of a source in a blend: its share, rounded up, and half a percent more."""
    return num_rows if share == 1 else math.ceil(math.ceil(num_rows * share) * (1 + _SURPLUS))


@dataclass(frozen=True)
class MegatronPart:
    """One source to index."""

    shard: Path
    out: Path
    source: str
    share: float
    """Of all tokens."""
    num_rows: int | None
    """In the whole order; None: one pass over the source, however many that are."""
    sequence_length: int
    seed: int
    max_epochs: float


def index_source(part: MegatronPart) -> dict[str, Any]:
    """Index one source and write its rows and its shuffle; returns entries, counts and supplies as ``pack_source``.

    Raises ``SourceError`` when the source would be passed more than ``max_epochs`` times.
    """
    lengths = np.asarray(IndexedDataset.open(part.shard).lengths)
    tokens = int(lengths.sum(dtype=np.int64))
    one_pass = max(0, tokens - _EXTRA) // part.sequence_length
    asked = one_pass if part.num_rows is None else samples_asked(part.num_rows, part.share)
    if asked * part.sequence_length > part.max_epochs * max(tokens, 1):
        raise SourceError(
            f"mix: Megatron's order asks `{part.source}` for {asked * part.sequence_length:,} tokens of the {tokens:,} "
            f"it has: more than mix.max_epochs ({part.max_epochs:g}) passes",
            hint="train on fewer tokens, raise mix.max_epochs, or ask less of this source",
        )
    if asked == 0 or tokens == 0:
        rows, segments, shuffle, epochs = np.zeros(1, np.int64), np.empty((0, 3), np.int64), np.empty(0, np.uint32), 1
        left_over = tokens
    else:
        found = gpt_indices(lengths, part.sequence_length, asked, part.seed)
        rows, segments = _rows_of_samples(np.ascontiguousarray(lengths, np.int32), found.document, found.sample)
        shuffle, epochs = found.shuffle, found.epochs
        place, offset = found.sample[-1].tolist()
        left_over = int(lengths[found.document[place:]].sum(dtype=np.int64)) - offset
    if len(lengths) < 2**31:
        segments = segments.astype(np.int32)
    path = part.out / "packs" / f"{part.source}.shuffle.npy"
    entry = write_array(path, [shuffle], shape=shuffle.shape, dtype=shuffle.dtype, root=part.out)
    files = [*write_packs(part.out, part.source, rows, segments), entry]
    num_rows = len(rows) - 1
    supply = {
        "category": None, "sequence_length": part.sequence_length, "first_row": 0, "rows": num_rows,
        "tokens": num_rows * part.sequence_length, "documents": int(np.count_nonzero(lengths)), "pieces": len(segments),
    }  # fmt: skip
    counts = {"shard_tokens": tokens, "passes": epochs, "left_over": left_over}
    return {"files": [file.model_dump() for file in files], "supplies": [supply], **counts}


def blended_blocks(
    out: Path, sources: Sequence[tuple[str, float]], num_rows: int, *, one_pass: bool = False
) -> Iterator[Array]:
    """The order of ``num_rows`` samples of ``sources`` (name, share) that ``index_source`` wrote into ``out``.

    With ``one_pass`` shares do not count: it is the beginning of Megatron's blend of everything. Raises ``SourceError``
    when there are not so many samples.
    """
    asked = [(index, share) for index, (_, share) in enumerate(sources) if share > 0]
    shuffles = [open_array(out / "packs" / f"{sources[index][0]}.shuffle.npy") for index, _ in asked]
    if one_pass:
        chosen, numbers = blend_all(np.array([len(shuffle) for shuffle in shuffles], dtype=np.int64))
        if len(chosen) < num_rows:
            raise SourceError(
                f"mix: one pass over all sources is {len(chosen):,} rows, the run asks for {num_rows:,}",
                hint="train on fewer tokens, or set mix.order: megatron",
            )
    else:
        weights = np.array([share for _, share in asked])
        chosen, numbers = blend(weights / weights.sum(), num_rows, np.full(len(asked), num_rows))
    for first in range(0, num_rows, _BLOCK_ROWS):
        block = np.empty(min(_BLOCK_ROWS, num_rows - first), dtype=np.uint64)
        for place, (index, _) in enumerate(asked):
            mine = chosen[first : first + len(block)] == place
            taken = numbers[first : first + len(block)][mine]
            if len(taken) and taken[-1] >= len(shuffles[place]):  # a source's numbers ascend, so the last tells of all
                raise SourceError(
                    f"mix: source `{sources[index][0]}` is too short for a sample of Megatron's order",
                    hint="use shorter rows, add documents, or set mix.order: shuffled",
                )
            block[mine] = row_ids(index, shuffles[place][taken])
        yield block
