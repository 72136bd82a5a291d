"""Blocks of large files: what is read is checked first, once per process, and damage is named."""

import numpy as np
import pytest

from deepen.errors import DamageError
from deepen.formats.files import blocks as blocks_module
from deepen.formats.files.blocks import BLOCK_BYTES, blocks_path
from deepen.formats.tokens.megatron import IndexedDataset, IndexedDatasetWriter, bin_path
from deepen.formats.tokens.trained import TrainedMask, TrainedWriter, trained_path

LENGTHS = [70_000, 1, 200_000, 131_073, 5]


def written(folder, *, blocks=True):
    """A pair of several blocks whose documents cross them, and its mask; returns the prefix and the tokens."""
    tokens = np.random.default_rng(5).integers(0, 60_000, sum(LENGTHS)).astype(np.uint16)
    prefix = folder / "shards" / "a"
    with IndexedDatasetWriter(prefix, np.uint16, blocks=blocks) as writer, TrainedWriter(prefix, blocks=blocks) as mask:
        at = 0
        for length in LENGTHS:  # in pieces that do not end where blocks do
            piece = tokens[at : at + length]
            writer.add_documents(piece, [length])
            mask.add(length, (piece % 2).astype(np.uint8))
            at += length
    names = [entry.path for entry in (*writer.entries, *mask.entries)]
    assert names == (["a.bin", "a.bin.blocks", "a.idx", "a.trained", "a.trained.blocks"] if blocks else names)
    return prefix, tokens


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_checked_reading_gives_what_was_written(tmp_path):
    prefix, tokens = written(tmp_path)
    dataset, mask = IndexedDataset.open(prefix), TrainedMask.open(prefix)
    ends = np.cumsum(LENGTHS)
    for sequence, (length, end) in enumerate(zip(LENGTHS, ends, strict=True)):
        assert (dataset[sequence] == tokens[end - length : end]).all()
        assert (mask.read(sequence, 0, length) == tokens[end - length : end] % 2).all()
    assert (dataset.ids(0, dataset.num_tokens) == tokens).all()
    assert len(dataset.read(4, 0, 99)) == 5  # beyond the end there is nothing, and nothing to check


@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_a_flipped_byte_is_found_by_whoever_reads_its_block_and_by_nobody_else(tmp_path, block):
    prefix, tokens = written(tmp_path)
    assert -(-tokens.nbytes // BLOCK_BYTES) == 4
    at = min(block * BLOCK_BYTES + 7, tokens.nbytes - 1)
    flip(bin_path(prefix), at)
    dataset = IndexedDataset.open(prefix)
    for other in {0, 1, 2, 3} - {block}:
        dataset.ids(other * BLOCK_BYTES // 2, other * BLOCK_BYTES // 2 + 1)
    with pytest.raises(DamageError, match=rf"block {block} of .*a\.bin.* \(bytes {block * BLOCK_BYTES} to "):
        dataset.ids(at // 2, at // 2 + 1)
    with pytest.raises(DamageError, match=f"block {block} of"):  # it stays damaged
        dataset.ids(0, dataset.num_tokens)


def test_a_flipped_flag_of_the_mask_is_found(tmp_path):
    prefix, _ = written(tmp_path)
    flip(trained_path(prefix), LENGTHS[0] + 3)
    mask = TrainedMask.open(prefix)
    with pytest.raises(DamageError, match=r"block 0 of .*a\.trained"):
        mask.read(0, 0, 5)


def test_each_block_is_hashed_once(tmp_path, monkeypatch):
    prefix, _ = written(tmp_path)
    dataset, hashed = IndexedDataset.open(prefix), []
    whole = blocks_module.xxhash.xxh3_64_intdigest
    monkeypatch.setattr(blocks_module.xxhash, "xxh3_64_intdigest", lambda data: hashed.append(len(data)) or whole(data))
    for _ in range(3):
        for sequence in range(len(LENGTHS)):
            dataset.read(sequence, 0, LENGTHS[sequence])
    assert sum(hashed) == dataset.tokens.nbytes and len(hashed) == 4


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"", lambda data: b"x" + data[1:]])
def test_a_table_that_is_none_is_named(tmp_path, change):
    prefix, _ = written(tmp_path)
    table = blocks_path(bin_path(prefix))
    table.write_bytes(change(table.read_bytes()))
    with pytest.raises(DamageError, match=r"a\.bin\.blocks"):
        IndexedDataset.open(prefix)


def test_a_pair_without_a_table_is_read_as_before(tmp_path):
    prefix, tokens = written(tmp_path)
    written(tmp_path, blocks=False)  # over the first: a table that is left would not fit
    assert not blocks_path(bin_path(prefix)).exists() and not blocks_path(trained_path(prefix)).exists()
    assert (IndexedDataset.open(prefix).ids(0, len(tokens)) == tokens).all()


def test_an_empty_pair_has_an_empty_table(tmp_path):
    with IndexedDatasetWriter(tmp_path / "shards" / "none", np.uint16, blocks=True):
        pass
    assert len(IndexedDataset.open(tmp_path / "shards" / "none").ids(0, 0)) == 0
