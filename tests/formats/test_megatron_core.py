"""With megatron-core itself, where it is installed: its files are ours, and its ``GPTDataset`` reads what we write."""

from pathlib import Path

import numpy as np
import pytest

from deepen.formats.tokens.megatron import IndexedDataset, IndexedDatasetWriter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

DOCUMENTS = [[1, 2, 3, 0], [4, 5, 0], [6, 7, 8, 9, 10, 0], [11, 0], [12, 13, 14, 15, 0]] * 6


def write(prefix: Path) -> list[int]:
    with IndexedDatasetWriter(prefix, "<u2") as writer:
        for ids in DOCUMENTS:
            writer.add_documents(np.array(ids, np.uint16), np.array([len(ids)]))
    return [token for ids in DOCUMENTS for token in ids]


def test_both_builders_write_the_same_bytes(tmp_path: Path) -> None:
    theirs = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    import torch

    builder = theirs.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for ids in DOCUMENTS:
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    write(tmp_path / "ours")
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    assert IndexedDataset.open(tmp_path / "theirs").num_tokens == 120


def test_megatrons_merge_is_ours(tmp_path: Path) -> None:
    theirs = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    for name in ("a", "b"):
        write(tmp_path / name)
    builder = theirs.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    with IndexedDatasetWriter(tmp_path / "ours", "<u2") as writer:
        for name in ("a", "b"):
            builder.add_index(str(tmp_path / name))
            writer.add_dataset(IndexedDataset.open(tmp_path / name))
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()


def test_gpt_dataset_reads_our_pair(tmp_path: Path) -> None:
    gpt = pytest.importorskip("megatron.core.datasets.gpt_dataset")
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    from types import SimpleNamespace

    write(tmp_path / "data")
    tokenizer = SimpleNamespace(eod=0, pad=0, vocab_size=16, unique_identifiers={"class": "test"})
    config = gpt.GPTDatasetConfig(
        random_seed=7, sequence_length=8, blend=([str(tmp_path / "data")], None), split="1,0,0", tokenizer=tokenizer,
        reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
        path_to_cache=str(tmp_path / "cache"),
    )  # fmt: skip
    low_level = indexed.IndexedDataset(str(tmp_path / "data"))
    indices = np.arange(len(DOCUMENTS), dtype=np.int32)
    dataset = gpt.GPTDataset(low_level, str(tmp_path / "data"), indices, None, gpt.Split.train, config)
    order = np.concatenate([DOCUMENTS[k] for k in dataset.document_index])
    windows = {tuple(order[begin : begin + 8].tolist()) for begin in range(0, len(order) - 8, 8)}
    assert {tuple(dataset[k]["tokens"].tolist()) for k in range(len(dataset))} == windows
