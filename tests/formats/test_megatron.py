"""The Megatron pair: byte-exact against vectors made with megatron-core, and every kind of damage is named."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen.errors import DamageError, SourceError
from deepen.formats.files.atomic import hash_file
from deepen.formats.tokens.megatron import IndexedDataset, IndexedDatasetWriter, bin_path, idx_path, token_dtype

HEAD = "4d4d49444944580000" + "0100000000000000"
COUNTS = "0200000000000000" + "0300000000000000" + "04000000" + "03000000"
BOUNDARIES = "000000000000000001000000000000000200000000000000"


def write(prefix: Path, documents: list[list[int]], dtype: str = "<u2") -> IndexedDatasetWriter:
    with IndexedDatasetWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add_documents(np.array(document), np.array([len(document)]))
    return writer


def test_golden_vector_u16(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2, 3, 0], [4, 5, 0]])
    assert (tmp_path / "a.bin").read_bytes().hex() == "0100020003000000" + "040005000000"
    pointers = "0000000000000000" + "0800000000000000"
    assert (tmp_path / "a.idx").read_bytes().hex() == HEAD + "08" + COUNTS + pointers + BOUNDARIES


def test_golden_vector_i32(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2, 3, 151643], [4, 5, 151643]], "<i4")
    data = (tmp_path / "a.bin").read_bytes()
    assert (len(data), data[12:16].hex()) == (28, "5b500200")
    pointers = "0000000000000000" + "1000000000000000"
    assert (tmp_path / "a.idx").read_bytes().hex() == HEAD + "04" + COUNTS + pointers + BOUNDARIES


def test_empty_documents_are_boundaries_without_a_sequence(tmp_path: Path) -> None:
    write(tmp_path / "a", [[0, 1], [0, 1, 2], [], [7]])
    dataset = IndexedDataset.open(tmp_path / "a")
    assert dataset.lengths.tolist() == [2, 3, 1]
    assert dataset.boundaries.tolist() == [0, 1, 2, 2, 3]
    assert dataset.offsets.tolist() == [0, 4, 10]
    assert (dataset.num_documents, dataset.num_sequences, dataset.num_tokens) == (4, 3, 6)


def test_a_document_of_two_sequences_opens(tmp_path: Path) -> None:
    write(tmp_path / "a", [[0, 1], [0, 1, 2]])
    path = idx_path(tmp_path / "a")
    index = path.read_bytes()
    boundaries = np.array([0, 2], "<i8").tobytes()
    path.write_bytes(index[:26] + (2).to_bytes(8, "little") + index[34:-24] + boundaries)
    dataset = IndexedDataset.open(tmp_path / "a")
    assert (dataset.num_documents, dataset.num_sequences) == (1, 2)
    assert dataset[1].tolist() == [0, 1, 2]


@given(st.lists(st.lists(st.integers(0, 60_000), max_size=9), max_size=20))
@settings(max_examples=40, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]) -> None:
    prefix = tmp_path_factory.mktemp("shard") / "a.b"  # a dot in the name is no suffix
    with IndexedDatasetWriter(prefix, "<u2") as writer:
        writer.add_documents(np.array(sum(documents, []), dtype=np.int64), np.array([len(d) for d in documents]))
    dataset = IndexedDataset.open(prefix)
    assert [dataset[k].tolist() for k in range(len(dataset))] == [d for d in documents if d]
    assert dataset.num_documents == len(documents)


def test_bulk_writing_equals_writing_one_by_one(tmp_path: Path) -> None:
    documents = [[1, 2], [], [3], [4, 5, 6]]
    write(tmp_path / "single", documents)
    with IndexedDatasetWriter(tmp_path / "bulk", "<u2") as writer:
        writer.add_documents(np.array(sum(documents, [])), np.array([2, 0, 1, 3]))
    for path in (bin_path, idx_path):
        assert path(tmp_path / "single").read_bytes() == path(tmp_path / "bulk").read_bytes()


def test_merging_equals_writing_all_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2], []])
    write(tmp_path / "b", [[3], [4, 5]])
    write(tmp_path / "all", [[1, 2], [], [3], [4, 5]])
    with IndexedDatasetWriter(tmp_path / "merged", "<u2") as writer:
        writer.add_dataset(IndexedDataset.open(tmp_path / "a"))
        writer.add_dataset(IndexedDataset.open(tmp_path / "b"))
    for path in (bin_path, idx_path):
        assert path(tmp_path / "all").read_bytes() == path(tmp_path / "merged").read_bytes()


def test_entries_carry_the_hashes_on_disk(tmp_path: Path) -> None:
    writer = write(tmp_path / "a", [[1, 2, 3]])
    assert [entry.path for entry in writer.entries] == ["a.bin", "a.idx"]
    assert [entry.hash for entry in writer.entries] == [hash_file(tmp_path / name) for name in ("a.bin", "a.idx")]


def test_a_writer_that_fails_leaves_no_pair(tmp_path: Path) -> None:
    with pytest.raises(KeyError), IndexedDatasetWriter(tmp_path / "a", "<u2") as writer:
        writer.add_documents(np.arange(3), np.array([3]))
        raise KeyError
    assert not (tmp_path / "a.bin").exists()
    assert not (tmp_path / "a.idx").exists()


def test_ids_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="do not fit"), IndexedDatasetWriter(tmp_path / "a", "<u2") as writer:
        writer.add_documents(np.array([70_000]), np.array([1]))


def test_dtype_follows_megatron() -> None:
    assert (token_dtype(65_499), token_dtype(65_500)) == (np.dtype("<u2"), np.dtype("<i4"))


def test_an_empty_shard_opens(tmp_path: Path) -> None:
    write(tmp_path / "a", [])
    assert (IndexedDataset.open(tmp_path / "a").num_tokens, len(IndexedDataset.open(tmp_path / "a"))) == (0, 0)


DAMAGES = {
    "no Megatron index": (SourceError, lambda idx: b"XXXXXXXXX" + idx[9:]),
    "TNTIDX": (SourceError, lambda idx: b"TNTIDX\0\0" + idx[8:]),
    "version 2": (SourceError, lambda idx: idx[:9] + b"\2" + idx[10:]),
    "big-endian": (SourceError, lambda idx: idx[:9] + bytes(7) + b"\1" + idx[17:]),
    "float32": (SourceError, lambda idx: idx[:17] + b"\7" + idx[18:]),
    "unknown code 99": (SourceError, lambda idx: idx[:17] + b"\x63" + idx[18:]),
    "asks for 82": (DamageError, lambda idx: idx[:-1]),
    "inside its header": (DamageError, lambda idx: idx[:20]),
    "documents cover": (DamageError, lambda idx: idx[:-8] + b"\1" + bytes(7)),
    "its index asks for": (DamageError, lambda idx: idx[:34] + b"\5" + idx[35:]),
    "sequences end at": (DamageError, lambda idx: idx[:50] + b"\2" + idx[51:]),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_every_damage_is_named_with_a_remedy(tmp_path: Path, message: str) -> None:
    write(tmp_path / "a", [[1, 2, 3, 0], [4, 5, 0]])
    kind, damage = DAMAGES[message]
    path = tmp_path / "a.idx"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(kind, match=message) as caught:
        IndexedDataset.open(tmp_path / "a")
    assert caught.value.hint
    assert "a.idx" in str(caught.value) or "a.bin" in str(caught.value)


def test_a_multimodal_index_opens(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2, 3, 0], [4, 5, 0]])
    with (tmp_path / "a.idx").open("ab") as file:
        file.write(bytes(2))
    assert IndexedDataset.open(tmp_path / "a")[1].tolist() == [4, 5, 0]


@pytest.mark.parametrize("name", ["a.bin", "a.idx"])
def test_a_missing_half_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a", [[1]])
    (tmp_path / name).unlink()
    with pytest.raises((SourceError, DamageError), match=name):
        IndexedDataset.open(tmp_path / "a")


@pytest.mark.parametrize("vocabulary_size", [65_499, 65_500, 65_535, 65_536, 65_537])
def test_vocabularies_around_the_limit_of_u16_keep_their_largest_id(tmp_path: Path, vocabulary_size: int) -> None:
    write(tmp_path / "a", [[vocabulary_size - 1, 0]], token_dtype(vocabulary_size))
    assert IndexedDataset.open(tmp_path / "a")[0].tolist() == [vocabulary_size - 1, 0]


def test_a_u16_pair_of_a_padded_vocabulary_opens(tmp_path: Path) -> None:
    write(tmp_path / "a", [[65_535, 0]], np.dtype("<u2"))
    assert int(IndexedDataset.open(tmp_path / "a").tokens.max()) == 65_535
