"""New tokens that a run hardly ever shows are counted and warned of."""

from pathlib import Path

import numpy as np

from deepen.formats.tokens.megatron import IndexedDatasetWriter
from deepen.formats.tokens.new_token_counts import count_new_tokens, write_new_token_counts
from deepen.mix.exposures import FLOOR, exposure_line, exposures

SOURCES = {"domain": {"epochs": 2.0}, "replay": {"epochs": 0.5}}


def test_new_tokens_of_a_shard_are_counted(tmp_path: Path) -> None:
    with IndexedDatasetWriter(tmp_path / "papers", np.dtype(np.uint16)) as writer:
        writer.add_documents(np.array([1, 12, 10, 3, 12], dtype=np.uint16), np.array([3, 2]))
    assert count_new_tokens(tmp_path / "papers", 10, 14).tolist() == [1, 0, 2, 0]


def test_exposures_are_counts_times_epochs(tmp_path: Path) -> None:
    counts = {"domain": np.array([FLOOR, 10, 0]), "replay": np.array([0, 20, 0])}
    write_new_token_counts(tmp_path, counts)
    found = exposures(tmp_path, SOURCES)
    assert found == {"tokens": 3, "floor": FLOOR, "under_floor": 2, "never": 1, "fewest": 0.0, "median": 30.0}
    assert "warning: 2 of 3 new tokens are shown fewer than 100 times, 1 of them never" in exposure_line(found)


def test_those_in_fixed_rows_count(tmp_path: Path) -> None:
    write_new_token_counts(tmp_path, {"domain": np.array([0, 10])})
    found = exposures(tmp_path, {**SOURCES, "ready": {"epochs": 3.0}}, {"ready": np.array([50, 0])})
    assert found is not None
    assert (found["never"], found["fewest"], found["median"]) == (0, 20.0, 85.0)


def test_enough_exposures_are_no_warning(tmp_path: Path) -> None:
    write_new_token_counts(tmp_path, {"domain": np.array([FLOOR, FLOOR]), "replay": np.array([0, 0])})
    assert "warning" not in exposure_line(exposures(tmp_path, SOURCES))


def test_a_vocabulary_that_was_kept_has_none(tmp_path: Path) -> None:
    assert exposures(tmp_path, SOURCES) is None
