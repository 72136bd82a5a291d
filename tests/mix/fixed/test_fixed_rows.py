"""Rows that came as token ids: kept as they are, told apart from padding, and refused with file and row."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from deepen.errors import SourceError
from deepen.formats.documents.document_ids import read_document_ids
from deepen.formats.documents.documents import document_id
from deepen.formats.files.atomic import damage
from deepen.formats.manifest import open_artifact
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.formats.tokens.order import Order, row_of, source_of
from deepen.formats.tokens.packs import Packs
from deepen.formats.tokens.trained import TrainedMask
from deepen.mix.config import MixConfig
from deepen.mix.fixed.rows import _lengths
from deepen.mix.stage import mix

DATA = os.environ.get("DEEPEN_TEST_DATA")
VOCABULARY = 50
ROW = pa.list_(pa.int32())
ROWS = [([1, 2, 3, 4], [-100, -100, 3, 4]), ([5, 6, 7, 0, 0, 0], [5, 6, 7, -100, -100, -100]), ([8] * 8, [8] * 8)]


def write_tokenizer(folder: Path, size: int = VOCABULARY) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {f"w{number}": number for number in range(size)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).save(str(folder / "tokenizer.json"))


def table(rows, kind=ROW) -> pa.Table:
    ids, labels = (pa.array([row[side] for row in rows], kind) for side in (0, 1))
    return pa.table({"input_ids": ids, "labels": labels, "seq_length": [len(row[1]) for row in rows]})


def save_to_disk(folder: Path, rows, num_files: int = 2) -> Path:
    """The layout of ``datasets.Dataset.save_to_disk``: Arrow streams, state.json and dataset_info.json."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{num_files:05d}.arrow" for number in range(num_files)]
    for number, name in enumerate(names):
        part = table(rows[number::num_files])
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, part.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    (folder / "cache-0123.arrow").write_bytes(b"left by datasets")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.fixture
def run(make_job, tmp_path):
    """``run(rows or path, out=...)``: mix one source and fixed rows; returns the stage's directory and counts."""
    write_tokenizer(tmp_path / "tokenize/tokenizer")

    def made(given, out="out", tokenizer="base", workers=1, **settings):
        path = given if isinstance(given, str) else str(save_to_disk(tmp_path / f"{out}.rows", given))
        job = make_job(out, papers=("domain", [14, 7, 5]), workers=workers)
        artifact = job.inputs["tokenize"]
        counts = {**artifact.counts, "vocabulary_size": VOCABULARY}
        tokenize = replace(artifact, manifest=artifact.manifest.model_copy(update={"counts": counts}))
        fixed = [{"name": "ready", "role": "replay", "path": path, "tokenizer": tokenizer}]
        config = MixConfig.model_validate({"sequence_length": 8, "max_epochs": 9, "fixed_rows": fixed, **settings})
        job = replace(job, inputs={**job.inputs, "tokenize": tokenize})
        return job.out, mix(config, job, batch_tokens=16, num_batches=4).counts

    return made


def test_every_row_is_one_row_with_its_targets(run) -> None:
    out, counts = run(ROWS)
    shard = IndexedDataset.open(out / "shards/ready")
    mask = TrainedMask.open(out / "shards/ready", shard)
    assert [shard[row].tolist() for row in range(3)] == [[1, 2, 3, 4], [8] * 8, [5, 6, 7]]
    assert [mask.read(row, 0, len(shard[row])).tolist() for row in range(3)] == [[0, 0, 1, 1], [1] * 8, [1, 1, 1]]
    packs = Packs.open(out, "ready")
    assert [packs.row(row).tolist() for row in range(3)] == [[[0, 0, 4]], [[1, 0, 8]], [[2, 0, 3]]]
    assert read_document_ids(out / "documents/ready.npy")[2] == document_id("ready", "data-00001-of-00002.arrow:0")
    assert counts["fixed_rows"]["ready"]["ignored_columns"] == ["seq_length"]


def test_the_counts_balance(run, capsys) -> None:
    out, counts = run([*ROWS, ([0, 0], [-100, -100])])
    found, packed = counts["fixed_rows"]["ready"], counts["sources"]["ready"]
    assert (found["rows_read"], found["documents"], found["empty_rows"]) == (4, 3, 1)
    assert (found["positions_read"], found["tokens"], found["padding_removed"], found["targets"]) == (20, 15, 5, 13)
    assert packed["shard_tokens"] == packed["packed_tokens"] == 15
    assert packed["slots"] == 24 == packed["packed_tokens"] + packed["padding"]
    assert packed["order_rows"] > 0
    assert "not curated, not checked against test items" in capsys.readouterr().err
    artifact = open_artifact(out)
    assert not any(damage(entry, out) for entry in artifact.manifest.files)
    assert "shards/ready.trained" in {entry.path for entry in artifact.manifest.files}


def test_bytes_of_targets_are_those_of_their_text(run) -> None:
    _, counts = run([([1, 2, 30], [-100, 2, 30])])
    assert counts["fixed_rows"]["ready"]["target_bytes"] == len("w2 w30")


def test_without_labels_everything_is_a_target(run, tmp_path) -> None:
    pq.write_table(table(ROWS, pa.large_list(pa.int64())).drop_columns("labels"), tmp_path / "rows.parquet")
    out, counts = run(str(tmp_path / "*.parquet"))
    assert not TrainedMask.open(out / "shards/ready").is_masked
    assert counts["fixed_rows"]["ready"]["targets"] == counts["fixed_rows"]["ready"]["tokens"] == 18


def test_shares_hold_with_fixed_rows(run) -> None:
    out, counts = run(
        [([number % 40 + 1] * 8, [-100, *[number % 40 + 1] * 7]) for number in range(20)], domain_share=0.5
    )
    assert abs(counts["phases"][0]["realised"]["ready"] - 0.5) < 0.15
    order = Order.open(out)
    rows = np.concatenate([order.batch(batch) for batch in range(4)])
    seen = row_of(rows[source_of(rows) == 1])
    assert len(set(seen.tolist())) == len(seen)


def test_a_balance_of_categories_leaves_fixed_rows_alone(run) -> None:
    assert run(ROWS, balance="category")[1]["sources"]["ready"]["packed_tokens"] == 15


BAD = {
    "outside": (
        [([1], [1]), ([2], [2]), ([3, 50], [3, 50])],
        "00000-of-00002.arrow`, row 1, position 1: id 50 is outside",
    ),
    "shifted": ([([1, 2], [2, -100])], "row 0, position 0: the label is 2, the id 1"),
    "lengths": ([([1, 2], [1])], "row 0: not as many labels as ids"),
    "long": ([([1], [1]), ([2], [2]), ([3] * 9, [3] * 9), ([3] * 11, [3] * 11)], "row 1 has 9 tokens"),
    "null": ([([1], [1]), ([1], [1]), (None, [1])], "row 1: `input_ids` is null"),
    "none": ([([1, None], [1, 2])], "holds a null"),
}


@pytest.mark.parametrize("kind", BAD)
def test_rows_that_cannot_be_right_are_refused(run, tmp_path, kind) -> None:
    rows, message = BAD[kind]
    with pytest.raises(SourceError) as caught:
        run(str(save_to_disk(tmp_path / "bad", rows)))
    assert message in caught.value.message
    assert caught.value.hint
    if kind == "long":
        assert "at least 11" in caught.value.hint


def test_another_tokenizer_is_refused_and_one_that_grew_is_not(run, tmp_path) -> None:
    write_tokenizer(tmp_path / "smaller", VOCABULARY - 10)
    assert run(ROWS, out="grown", tokenizer=str(tmp_path / "smaller"))[1]["fixed_rows"]["ready"]["documents"] == 3
    write_tokenizer(tmp_path / "larger", VOCABULARY + 10)
    with pytest.raises(SourceError, match="10 of its 60 tokens differ, first 'w50'"):
        run(ROWS, tokenizer=str(tmp_path / "larger"))


def test_a_folder_that_is_not_whole_or_not_one_is_refused(run, tmp_path) -> None:
    folder = save_to_disk(tmp_path / "cut", ROWS)
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(SourceError, match="is missing, and state.json lists it"):
        run(str(folder))
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(SourceError, match="several splits: train, test"):
        run(str(folder))


def test_a_file_that_ends_early_is_refused(run, tmp_path) -> None:
    folder = save_to_disk(tmp_path / "cut", ROWS * 50)
    path = folder / "data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(SourceError, match=r"00001-of-00002.arrow` cannot be read from row \d+ on"):
        run(str(folder))


def test_leftovers_of_a_kill_and_workers_change_nothing(run, tmp_path) -> None:
    rows = save_to_disk(tmp_path / "rows", ROWS * 30)
    one, _ = run(str(rows), out="one")
    for name in ("shards/ready.bin", "shards/ready.trained", "documents/ready.npy.tmp", "shards/ready.idx.tmp"):
        (tmp_path / "two" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "two" / name).write_bytes(b"half")
    two, _ = run(str(rows), out="two", workers=2)
    assert _bytes(one) == _bytes(two)


def _bytes(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.skipif(not DATA, reason="DEEPEN_TEST_DATA is not set")
def test_a_tokenizer_without_a_json_file_is_compared(run, tmp_path) -> None:
    with pytest.raises(SourceError, match="of its 32,000 tokens differ, first '<unk>'"):
        run(ROWS, tokenizer=f"{DATA}/tokenizer_llama2")


ROW_OF_TARGETS = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=8)


@given(st.lists(ROW_OF_TARGETS, min_size=1, max_size=6))
def test_padding_takes_no_target_and_nothing_before_the_last_one(rows) -> None:
    flat = [pair for row in rows for pair in row]
    ids = np.array([pair[0] for pair in flat], dtype=np.int64)
    flags = np.array([pair[1] for pair in flat], dtype=np.uint8)
    lengths = _lengths(ids, flags, np.cumsum([len(row) for row in rows]))
    for row, length in zip(rows, lengths.tolist(), strict=True):
        cut = row[length:]
        assert not any(is_target for _, is_target in cut)
        assert len(cut) != 1
        assert len({token for token, _ in cut}) <= 1
