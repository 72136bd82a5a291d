from pathlib import Path

import numpy as np
import pytest

from deepen.errors import DamageError
from deepen.formats.documents.document_ids import pack_ids, read_document_ids
from deepen.formats.files.arrays import open_array, write_array


def test_blocks_give_the_bytes_of_numpy_save(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.int32).reshape(8, 3)
    entry = write_array(tmp_path / "a.npy", [whole[:3], whole[3:]], shape=whole.shape, dtype=np.int32, root=tmp_path)
    np.save(tmp_path / "b.npy", whole)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert (entry.path, entry.bytes) == ("a.npy", (tmp_path / "a.npy").stat().st_size)


def test_an_empty_array_opens(tmp_path: Path) -> None:
    write_array(tmp_path / "a.npy", [np.empty((0, 2), np.uint64)], shape=(0, 2), dtype=np.uint64, root=tmp_path)
    assert open_array(tmp_path / "a.npy").shape == (0, 2)


def test_missing_rows_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="announced"):
        write_array(tmp_path / "a.npy", [np.zeros(2)], shape=(3,), dtype=np.float64, root=tmp_path)
    assert not (tmp_path / "a.npy").exists()


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(DamageError, match="a.npy"):
        open_array(tmp_path / "a.npy")


def test_document_ids_survive(tmp_path: Path) -> None:
    ids = ["00000000000000010000000000000002", "ffeeddccbbaa99887766554433221100"]
    halves = pack_ids(ids)
    assert halves[0].tolist() == [1, 2]
    write_array(tmp_path / "a.npy", [halves], shape=halves.shape, dtype=np.uint64, root=tmp_path)
    read = read_document_ids(tmp_path / "a.npy")
    assert (list(read), read[1], read[:1], len(read)) == (ids, ids[1], ids[:1], 2)


def test_what_is_no_document_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32 hexadecimal"):
        pack_ids(["abc"])
    write_array(tmp_path / "a.npy", [np.zeros(3)], shape=(3,), dtype=np.float64, root=tmp_path)
    with pytest.raises(DamageError, match="no document ids"):
        read_document_ids(tmp_path / "a.npy")
