"""Where a token is no target its label is not in the loss, and the account says so."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from deepen.formats.manifest import Artifact, StageJob
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.formats.tokens.trained import trained_path
from deepen.parallel.config import Compute
from deepen.train.batches.counts import SourceCounts, count_batch
from deepen.train.batches.read import IGNORED, Batches
from deepen.train.stage import train
from deepen.train.starting.build import prepare_run
from deepen.train.starting.proofs import prove_accumulation
from deepen.train.step import train_step


@pytest.fixture
def masked(inputs, tmp_path):
    """The inputs of the other tests, one of whose sources has a mask; and its flags."""
    for artifact in inputs.values():
        shutil.copytree(artifact.path, tmp_path / artifact.path.name)
    prefix = tmp_path / "tokenize/shards/papers"
    flags = (np.random.default_rng(7).random(IndexedDataset.open(prefix).num_tokens) < 0.4).astype(np.uint8)
    trained_path(prefix).write_bytes(flags.tobytes())
    return {name: Artifact(tmp_path / name, artifact.manifest) for name, artifact in inputs.items()}, flags


def test_labels_that_are_no_targets_are_ignored_and_counted(inputs, masked) -> None:
    found, flags = masked
    plain = Batches.open(inputs["tokenize"].path, inputs["mix"].path)
    batches = Batches.open(found["tokenize"].path, found["mix"].path)
    shard, counts = batches.sources[0].shard, [SourceCounts(), SourceCounts()]
    for number in range(len(batches)):
        before, after = plain[number], batches[number]
        count_batch(counts, after, applied=True)
        expected = before.labels_BT.copy()
        for row, at in zip(*np.nonzero((before.labels_BT != IGNORED) & (before.source_B == 0)[:, None]), strict=True):
            piece_begin = at - before.positions_BT[row, at]  # one piece per document in a row of the fixture
            sequence = before.documents_BT[row, at]
            place = _start(batches, number, row, piece_begin) + before.positions_BT[row, at] + 1
            if flags[shard.offsets[sequence] // 2 + place] == 0:
                expected[row, at] = IGNORED
        assert np.array_equal(after.labels_BT, expected)
        assert np.array_equal((before.labels_BT != after.labels_BT).sum(1), after.masked_B)
    assert counts[0].masked > 100 and counts[1].masked == 0
    assert all(total.tokens == total.loss_tokens + total.masked + total.without_label for total in counts)
    assert counts[0].without_label == sum(_document_ends(plain, number, 0) for number in range(len(plain)))


def _start(batches, number, row, position):
    """Where in its document the piece begins that stands at a position of a row."""
    at = 0
    for _, start, length in batches.sources[0].packs.row(int(batches.order.batch(number)[row]) & (2**48 - 1)).tolist():
        if at == position:
            return start
        at += length
    raise AssertionError("no piece begins here")


def _document_ends(batches, number, source):
    batch = batches[number]
    own = batch.source_B == source
    return int(((batch.labels_BT == IGNORED) & (batch.documents_BT >= 0))[own].sum())


def test_the_loss_is_the_mean_over_targets_alone(masked, tmp_path, base, settings) -> None:
    found, _ = masked
    job = StageJob(tmp_path / "run", "run", found)
    run = prepare_run(settings(z_loss=0.0), job, base, Compute(device="cpu", threads=1, micro_batch_rows=4))
    run.trainee.model.double()
    batch = run.batches[1]
    tokens, labels, positions = map(torch.from_numpy, (batch.tokens_BT, batch.labels_BT, batch.positions_BT))
    logits = run.trainee.model.model(input_ids=tokens, position_ids=positions, use_cache=False).logits
    by_hand = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED).item()
    result = train_step(run.trainee, batch, 0.0)
    assert batch.masked_B.sum() > 0
    assert result.nll_B.sum() / (batch.labels_BT != IGNORED).sum() == pytest.approx(by_hand, rel=1e-12)


def test_a_run_counts_what_is_masked(masked, tmp_path, base, settings) -> None:
    found, _ = masked
    compute = Compute(device="cpu", threads=1, micro_batch_rows=4)
    manifest = train(settings(), StageJob(tmp_path / "run", "run", found), base=base, compute=compute)
    papers = manifest.counts["sources"]["papers"]
    assert papers["masked"] > 0
    assert papers["tokens"] == papers["loss_tokens"] + papers["masked"] + papers["without_label"]


class _Silenced:
    """Batches whose first rows have no label, as rows of a long question have none."""

    def __init__(self, batches, num_rows, num_batches):
        self.batches, self.num_rows, self.num_batches = batches, num_rows, num_batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, number):
        batch = self.batches[number]
        labels_BT = batch.labels_BT.copy()
        labels_BT[: self.num_rows if number < self.num_batches else 0] = IGNORED
        return replace(batch, labels_BT=labels_BT)


def test_accumulation_is_proven_on_rows_that_have_labels(inputs, tmp_path, base, settings) -> None:
    compute = Compute(device="cpu", threads=1, micro_batch_rows=4)
    run = prepare_run(settings(), StageJob(tmp_path / "run", "run", inputs), base, compute)
    rows = len(run.batches[0].source_B)
    proof = prove_accumulation(replace(run, batches=_Silenced(run.batches, rows, 1)))
    assert proof.passed is True, proof.found
    nothing = prove_accumulation(replace(run, batches=_Silenced(run.batches, rows, 99)))
    assert nothing.passed is None and "no row" in nothing.found
