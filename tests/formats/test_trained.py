"""The mask beside a shard: one byte per token, or no file at all."""

from pathlib import Path

import numpy as np
import pytest

from deepen.errors import DamageError
from deepen.formats.documents.documents import Document, Span, read_documents, write_documents
from deepen.formats.tokens.megatron import IndexedDatasetWriter
from deepen.formats.tokens.trained import TrainedMask, merge_trained, trained_path


def write_pair(prefix: Path, lengths: list[int], flags: list[int] | None) -> tuple[Path, int]:
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        writer.add_documents(np.arange(sum(lengths), dtype=np.uint16), np.array(lengths))
    if flags is not None:
        trained_path(prefix).write_bytes(bytes(flags))
    return prefix, sum(lengths)


def test_flags_are_read_by_sequence(tmp_path):
    prefix, _ = write_pair(tmp_path / "a.b", [3, 2], [0, 1, 1, 0, 1])
    mask = TrainedMask.open(prefix)
    assert mask.is_masked
    assert np.array_equal(mask.read(1, 0, 2), [0, 1])
    assert np.array_equal(mask.read(0, 1, 2), [1, 1])


def test_without_a_file_everything_is_trained(tmp_path: Path) -> None:
    mask = TrainedMask.open(write_pair(tmp_path / "a", [3], None)[0])
    assert mask.read(0, 0, 3) is None and not mask.is_masked


def test_parts_without_a_mask_are_trained_in_full_when_joined(tmp_path: Path) -> None:
    parts = [write_pair(tmp_path / "a", [2], None), write_pair(tmp_path / "b", [2, 1], [0, 0, 1])]
    names = [entry.path for entry in merge_trained(tmp_path / "out", parts, tmp_path, blocks=True)]
    assert names == ["out.trained", "out.trained.blocks"]
    assert trained_path(tmp_path / "out").read_bytes() == bytes([1, 1, 0, 0, 1])
    assert merge_trained(tmp_path / "out", parts[:1], tmp_path) == ()
    assert not any((tmp_path / name).exists() for name in names)


def test_a_mask_of_another_size_is_damage(tmp_path: Path) -> None:
    prefix, _ = write_pair(tmp_path / "a", [3], [1, 0])
    with pytest.raises(DamageError, match="2 bytes, its shard has 3 tokens"):
        TrainedMask.open(prefix)


def test_spans_survive_the_file(tmp_path: Path) -> None:
    spans = (Span("user", 0, 3), Span("assistant", 5, 5))
    documents = [Document("0" * 32, "why?", "s", spans=spans), Document("1" * 32, "plain", "s")]
    write_documents(tmp_path / "a.parquet", documents, tmp_path)
    assert [document.spans for document in read_documents(tmp_path / "a.parquet")] == [spans, None]
