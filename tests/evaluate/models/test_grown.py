"""A run whose vocabulary grew: the base is scored as it was, with its own tokenizer, on the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from deepen.evaluate.config import EvaluateConfig
from deepen.evaluate.documents.likelihoods import read_likelihoods
from deepen.evaluate.documents.material import for_the_base, material_of
from deepen.evaluate.documents.windows import encode
from deepen.evaluate.during_training.in_loop import in_loop_evaluator
from deepen.evaluate.stage import baseline, evaluate
from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact, StageJob
from deepen.model.config import ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.new_rows import write_new_rows
from deepen.model.weights.load import load_run_model
from deepen.parallel.config import Compute
from tests.evaluate.conftest import artifact, write_checkpoint
from tests.grown_vocabulary import grow_tokenizer

TEXTS = {
    "papers": ["the heart pumps blood through the body", "fever is a high temperature", "naïve 😀 cells", "fever"],
    "web": ["the cat sat on the mat and the dog sat on the cat"],
}
CONFIG, CPU = EvaluateConfig(), Compute(device="cpu", threads=1)


@pytest.fixture
def pretrained(tmp_path: Path, base: ResolvedBase, tokenizer_folder: Path, model: LossModel) -> ResolvedBase:
    """A base folder with weights and tokenizer."""
    shutil.copytree(tokenizer_folder, tmp_path / "base")
    model.model.save_pretrained(tmp_path / "base")
    return ResolvedBase("here", tmp_path / "base", None, "base")


@pytest.fixture(params=[0, None], ids=["begin", "no-begin"])
def grown(request: Any, tmp_path: Path, pretrained: ResolvedBase) -> Artifact:
    """A tokenize stage that made words of the texts single tokens."""
    assert pretrained.path is not None
    extension = grow_tokenizer(pretrained.path, tmp_path / "tokenize", ["fever", " blood", " temperature", "naïve"])
    write_new_rows(pretrained.path, tmp_path / "tokenize", extension)
    counts = {"vocabulary_size": extension.vocabulary_size, "begin_of_document_id": request.param}
    return artifact(tmp_path / "tokenize", "tokenize", counts)


@pytest.fixture
def job(tmp_path: Path, curated: Callable[..., Artifact], grown: Artifact) -> Callable[..., StageJob]:
    inputs = {"curate": curated(TEXTS), "tokenize": grown}
    return lambda name, **more: StageJob(tmp_path / name, name, inputs | more)


def test_the_baseline_is_that_of_a_run_that_kept_the_vocabulary(job: Any, grown: Artifact, pretrained: Any) -> None:
    grown_job, size = job("a"), {"vocabulary_size": 300}
    kept = artifact(pretrained.path.parent / "kept", "tokenize", grown.counts | size)
    shutil.copytree(pretrained.path, kept.path / "tokenizer")
    kept_job = replace(job("b"), inputs=grown_job.inputs | {"tokenize": kept})
    baseline(CONFIG, grown_job, base=pretrained, compute=CPU)
    baseline(CONFIG, kept_job, base=pretrained, compute=CPU)
    ours, theirs = (read_likelihoods(job.out / "held_out.parquet").to_pydict() for job in (grown_job, kept_job))
    if grown.counts["begin_of_document_id"] is not None:
        assert ours == theirs
    else:  # what comes before the first place where both tokenizers begin a token is not scored
        assert ours["id"] == theirs["id"] and np.all(np.array(ours["bytes"]) <= np.array(theirs["bytes"]))


def test_both_tokenizers_are_scored_on_the_same_bytes(job: Any, grown: Artifact, pretrained: Any) -> None:
    material = material_of(job("a").inputs["curate"], grown, pretrained)
    ours, theirs = encode(material), encode(for_the_base(material))
    assert [one.num_bytes for one in ours.documents] == [one.num_bytes for one in theirs.documents]
    assert sum(one.num_scored for one in ours.documents) < sum(one.num_scored for one in theirs.documents)
    assert [one.num_bytes > 0 for one in ours.documents] == [one.num_scored > 0 for one in theirs.documents]
    for corpus, folder in ((ours, grown.path / "tokenizer"), (theirs, pretrained.path)):
        read = Tokenizer.from_file(str(folder / "tokenizer.json"))
        for text, one in zip([*TEXTS["papers"], *TEXTS["web"]], corpus.documents, strict=True):
            scored = read.decode(one.tokens[one.first_scored :].tolist())
            assert text.endswith(scored) and len(scored.encode()) == one.num_bytes


def test_checkpoints_of_a_grown_model_are_compared_with_the_base(job: Any, pretrained: Any) -> None:
    first = job("baseline")
    made = baseline(CONFIG, first, base=pretrained, compute=CPU)
    network = load_run_model(pretrained, first.inputs["tokenize"], seed=17)
    train = first.out.parent / "train"
    write_checkpoint(train / "checkpoints" / "step-000005", network, 5)
    more = {"baseline": Artifact(first.out, made), "train": artifact(train, "train", {})}
    second = job("evaluate", **more)
    evaluate(CONFIG, second, base=pretrained, compute=CPU)
    (record,) = read_records(second.out / "scores.jsonl")
    changes = [score["difference"] for score in record["scores"]]
    assert len(changes) == 4 and all(abs(change) < 1 for change in changes)
    evaluator = in_loop_evaluator(CONFIG, second.inputs, base=pretrained, seed=17)
    assert [score.value for score in evaluator(LossModel(network), 5, 5)] == [
        score["value"] for score in record["scores"]
    ]
