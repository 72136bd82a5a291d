"""Batches of several lengths, and rows whose documents are joined, made by the real mix stage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepen.formats.manifest import Artifact, StageJob
from deepen.formats.tokens.order import row_of, source_of
from deepen.mix.config import MixConfig
from deepen.mix.order.megatron import gpt_indices
from deepen.mix.stage import mix
from deepen.train.batches.read import IGNORED, Batches

Make = Callable[..., Batches]


@pytest.fixture
def make(inputs: dict[str, Artifact], tmp_path: Path) -> Make:
    """Batches of 64 tokens from the two sources, mixed by the given settings."""

    def build(num_batches: int = 12, **keys: Any) -> Batches:
        job = StageJob(tmp_path / "mix", "mix", inputs, seed=1234)
        config = MixConfig.model_validate({"sequence_length": 16, "domain_share": 1.0, **keys})
        mix(config, job, batch_tokens=64, num_batches=num_batches)
        return Batches.open(inputs["tokenize"].path, tmp_path / "mix")

    return build


def test_batches_follow_the_lengths(make: Make) -> None:
    batches = make(sequence_length=[{"until": "50%", "length": 8}, {"length": 32}])
    assert [batches[number].tokens_BT.shape for number in (0, 5, 6, 11)] == [(8, 8), (8, 8), (2, 32), (2, 32)]
    assert batches.sequence_length == 32
    assert all(batches[number].labels_BT.shape == batches[number].tokens_BT.shape for number in (0, 6))


def test_megatron_samples_are_trained_token_for_token(make: Make) -> None:
    """Rows and labels are what GPTDataset returns for the same indices: text and text shifted by one."""
    batches = make(order="megatron", max_epochs=10, weights={"papers": 1.0, "web": 1e-9})
    shard = batches.sources[0].shard
    found = gpt_indices(np.asarray(shard.lengths), 16, 49, 1234)
    text = np.concatenate([shard[sequence] for sequence in found.document.tolist()])
    for number in range(len(batches)):
        ids = batches.order.batch(number)
        for index in np.flatnonzero(source_of(ids) == 0).tolist():
            sample = text[16 * int(row_of(ids[index])) :][:17]
            assert batches[number].tokens_BT[index].tolist() == sample[:-1].tolist()
            assert batches[number].labels_BT[index].tolist() == sample[1:].tolist()
            assert batches[number].positions_BT[index].tolist() == list(range(16))


def test_megatron_samples_can_be_isolated(make: Make) -> None:
    batch = make(order="megatron", isolate=True, max_epochs=10)[0]
    last = np.diff(batch.documents_BT, axis=1) != 0
    assert (batch.labels_BT[:, :-1][last] == IGNORED).all()
    assert (batch.positions_BT[:, 1:][last] == 0).all()


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
def test_joined_rows_predict_across_documents_and_nothing_in_the_padding(make: Make, packing: str) -> None:
    isolated, joined = (make(isolate=isolate, packing=packing) for isolate in (True, False))
    for number in range(len(joined)):
        apart, together = isolated[number], joined[number]
        assert np.array_equal(apart.tokens_BT, together.tokens_BT)
        assert (together.positions_BT == np.arange(16)).all()
        filled = apart.documents_BT >= 0
        inner = filled[:, :-1] & filled[:, 1:]
        assert (together.labels_BT[:, :-1][inner] == together.tokens_BT[:, 1:][inner]).all()
        assert (together.labels_BT[~filled] == IGNORED).all()
        assert (together.labels_BT[:, -1] == apart.labels_BT[:, -1]).all()
